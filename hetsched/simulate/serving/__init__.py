"""A serving plan under load: requests arrive, wait, are batched step by step, and leave."""
