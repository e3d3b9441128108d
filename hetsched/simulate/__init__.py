"""Discrete-event simulation: what a plan does, event by event."""
