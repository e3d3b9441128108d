"""Bounds: what no plan of a problem can beat."""

from hetsched.bound.lower import Bound, lower_bound_s

__all__ = ["Bound", "lower_bound_s"]
