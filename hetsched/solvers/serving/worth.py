"""What a replica is worth: the rate at which it keeps the SLO, by the steady state. Cheap, so that a search can ask it
of thousands of groups; the simulator has the last word."""

from dataclasses import dataclass
from math import inf, log

import numpy as np

from hetsched.cost.serving.reference import alone
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.cost.serving.steady import Operation, SteadyReplica
from hetsched.requests import Counts, Requests
from hetsched.workload import Limit, Slo

FULL = 0.97  # of its capacity, where no limit says less
TOKEN_SPREAD = 1.1  # a request's time per token over the mean one, at the percentiles that SLOs name
HALVINGS = 14


@dataclass(frozen=True, eq=False)
class Worth:
    """Judges steady replicas by an SLO. reference: what `slo.scale` refers to."""

    requests: Requests
    slo: Slo
    reference: ReplicaTimes | None = None

    def rate_per_s(self, steady: SteadyReplica) -> float:
        """The highest rate at which it keeps every limit; 0 where it never does."""
        most = steady.capacity_per_s * FULL
        if most <= 0.0 or not self.slo.limits:
            return most
        if not self.keeps(steady, most / 1024):
            return 0.0
        low, high = most / 1024, most
        if self.keeps(steady, high):
            return high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.keeps(steady, middle) else (low, middle)
        return low

    def keeps(self, steady: SteadyReplica, rate_per_s: float) -> bool:
        """Whether the limits hold at a rate."""
        seen, slo = steady.at(rate_per_s), self.slo
        if slo.ttft is not None and self._first(seen, steady, slo.ttft) > slo.ttft.value:
            return False
        if slo.tpot is not None and seen.tpot_s * TOKEN_SPREAD > slo.tpot.value:
            return False
        if slo.e2e is not None:
            tokens = self._length(self.requests.output_tokens, slo.e2e) - 1.0
            if self._first(seen, steady, slo.e2e) + tokens * seen.tpot_s * TOKEN_SPREAD > slo.e2e.value:
                return False
        return slo.scale is None or self._scale(seen, steady, slo.scale) <= slo.scale.value

    def _first(self, seen: Operation, steady: SteadyReplica, limit: Limit) -> float:
        """Time to the first token at the limit's percentile: a long prompt, and a wait that is exponential."""
        longer = self._length(self.requests.input_tokens, limit) / self.requests.mean_input_tokens
        return steady.prompt_s * longer + self._wait(seen, steady, limit)

    def _wait(self, seen: Operation, steady: SteadyReplica, limit: Limit) -> float:
        if seen.ttft_s == inf:
            return inf
        tail = log(1.0 / max(1.0 - limit.percentile / 100.0, 1e-3))
        return (seen.ttft_s - steady.prompt_s) * tail

    def _scale(self, seen: Operation, steady: SteadyReplica, limit: Limit) -> float:
        """A mean request's time over the reference's, with the wait of the percentile."""
        if self.reference is None:
            return 0.0
        tokens = self.requests.mean_output_tokens
        whole = steady.prompt_s + self._wait(seen, steady, limit) + (tokens - 1.0) * seen.tpot_s * TOKEN_SPREAD
        return whole / float(alone(self.reference, self.requests.mean_input_tokens, tokens)[1])

    def _length(self, tokens: Counts, limit: Limit) -> float:
        return float(np.percentile(tokens, limit.percentile))
