"""hetsched: the planner for the GPUs you actually have."""

__version__ = "0.1.0"
