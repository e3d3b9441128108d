"""Planning of serving: drafts from a solver, the simulator's judgement of the best of them."""
