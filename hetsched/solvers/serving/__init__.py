"""Solvers of serving problems: which GPUs make which replicas."""
