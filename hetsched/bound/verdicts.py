"""What is known of which plans can end by a time: those that can't can't by an earlier one."""

from collections.abc import Callable, Hashable


class Verdicts:
    """By what tells plans apart, the latest end that is excluded and the earliest that is not."""

    def __init__(self) -> None:
        self._excluded: dict[Hashable, float] = {}
        self._allowed: dict[Hashable, float] = {}

    def of(self, plans: Hashable, end_s: float, allow: Callable[[], bool]) -> bool:
        """Whether these plans may end by `end_s`: what is known, or what `allow` finds."""
        if end_s <= self._excluded.get(plans, 0.0):
            return False
        if end_s >= self._allowed.get(plans, float("inf")):
            return True
        allowed = allow()
        (self._allowed if allowed else self._excluded)[plans] = end_s
        return allowed
