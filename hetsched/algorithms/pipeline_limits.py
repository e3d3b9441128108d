"""The pace that makes a pipeline of many rounds end soonest: branch and bound on the limits of `pipeline_dp`.

No pipeline with its largest in [a, b) beats the least sum for the limit b plus (r - 1) · a in r rounds. Intervals of
limits are halved, the most promising first, until none can hold a pipeline better than the best found (Land and Doig
1960, doi:10.2307/1910129). Each limit looked at costs a dynamic programme, or two with round trips.
"""

from heapq import heappop, heappush
from math import inf

from hetsched.algorithms.pipeline_dp import ROUNDING, Line, PipelineProgramme

NARROW = 1e-9  # of a limit: intervals that narrow are not looked into
MOST_LINES = 30  # found, with round trips


def best_pipelines(programme: PipelineProgramme, repeats: int, tolerance: float = 0.0) -> list[Line]:
    """Pipelines among which is the best of all for `repeats` rounds, but for a share `tolerance` of its time.

    With round trips the least pace is exact, and the best time is known as far as the two programmes agree: see
    `pipeline_dp`. Empty where none fits.
    """
    least = least_limit(programme)
    free = None if least is None else programme.solve(inf)
    if least is None or free is None:
        return []
    search = _Search(programme, repeats, tolerance, free)
    search.look(least, least)
    search.consider(free.sum_s, least, free.largest_s)
    search.run()
    return list(dict.fromkeys(search.found))


def least_limit(programme: PipelineProgramme) -> float | None:
    """No pipeline has a smaller largest; None where none fits. Round trips are not looked at."""
    limits = programme.limits
    low, high = 0, len(limits)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if programme.reaches(limits[middle]) else (middle + 1, high)
    return float(limits[low]) if low < len(limits) else None


class _Search:
    """Intervals of limits that are still open, by what no pipeline in them can beat; and the lines found."""

    def __init__(self, programme: PipelineProgramme, repeats: int, tolerance: float, free: Line) -> None:
        self.programme, self.repeats, self.tolerance = programme, repeats, tolerance
        self.found, self.best = [free], free.seconds(repeats)
        self.open: list[tuple[float, float, float, float]] = []  # bound, least sum, from, to

    def consider(self, sum_s: float, low: float, high: float) -> None:
        """An interval of limits in which no sum is smaller."""
        bound = sum_s + (self.repeats - 1) * low
        if high - low > max(NARROW, self.tolerance / 2) * high and bound < self.best * (1 - NARROW):
            heappush(self.open, (bound, sum_s, low, high))

    def look(self, limit: float, low: float) -> None:
        """Solve for a limit; what is between `low` and it is an interval from then on."""
        line = self.programme.solve(limit)
        if line is None:
            return
        self._keep(line)
        if line.largest_s <= limit * (1 + ROUNDING):
            self.consider(line.sum_s, low, line.largest_s)
            return
        tight = self.programme.solve(limit, by_slack=True)
        if tight is not None:
            self._keep(tight)
            self.consider(line.sum_s, low, limit)

    def _keep(self, line: Line) -> None:
        self.found.append(line)
        self.best = min(self.best, line.seconds(self.repeats))

    def run(self) -> None:
        """Halve intervals until none can hold a better pipeline."""
        while self.open and (not self.programme.trips or len(self.found) < MOST_LINES):
            bound, sum_s, low, high = heappop(self.open)
            if bound >= self.best * (1 - self.tolerance):
                return
            high = min(high, (self.best - sum_s) / (self.repeats - 1))
            limit = (low + high) / 2
            self.look(limit, low)
            self.consider(sum_s, limit, high)
