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
    """Judges steady replicas by an SLO. reference: what `slo.scale` refers to.

    A replica that only prefills is held to what happens until the first token, one that only decodes to what does after
    it; of a limit on all of a request they get `prompt_share` and the rest.
    """

    requests: Requests
    slo: Slo
    reference: ReplicaTimes | None = None
    prompt_share: float = 0.3

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
        if seen.ttft_s == inf:
            return False
        if slo.ttft is not None and steady.prefills and self._first(seen, steady, slo.ttft) > slo.ttft.value:
            return False
        if slo.tpot is not None and steady.decodes and seen.tpot_s * TOKEN_SPREAD > slo.tpot.value:
            return False
        if slo.e2e is not None:
            tokens = self._length(self.requests.output_tokens, slo.e2e) - 1.0
            first_s = self._first(seen, steady, slo.e2e)
            if not self._whole(first_s, tokens * seen.tpot_s * TOKEN_SPREAD, steady, slo.e2e.value):
                return False
        return slo.scale is None or self._scale(seen, steady, slo.scale)

    def _whole(self, first_s: float, rest_s: float, steady: SteadyReplica, limit_s: float) -> bool:
        """Whether a request is done in time, as far as the replica has a part in it."""
        if not steady.decodes:
            return first_s <= self.prompt_share * limit_s
        if not steady.prefills:
            return rest_s <= (1.0 - self.prompt_share) * limit_s
        return first_s + rest_s <= limit_s

    def _first(self, seen: Operation, steady: SteadyReplica, limit: Limit) -> float:
        """Time to the first token at the limit's percentile: a long prompt, and a wait that is exponential."""
        longer = self._length(self.requests.input_tokens, limit) / self.requests.mean_input_tokens
        return steady.prompt_s * longer + self._wait(seen, steady, limit)

    def _wait(self, seen: Operation, steady: SteadyReplica, limit: Limit) -> float:
        tail = log(1.0 / max(1.0 - limit.percentile / 100.0, 1e-3))
        return (seen.ttft_s - steady.prompt_s) * tail

    def _scale(self, seen: Operation, steady: SteadyReplica, limit: Limit) -> bool:
        """Whether a mean request's time, with the wait of the percentile, is within the limit times the reference's."""
        if self.reference is None:
            return True
        tokens = self.requests.mean_output_tokens
        first_s = steady.prompt_s + self._wait(seen, steady, limit)
        rest_s = (tokens - 1.0) * seen.tpot_s * TOKEN_SPREAD
        alone_s = float(alone(self.reference, self.requests.mean_input_tokens, tokens)[1])
        return self._whole(first_s, rest_s, steady, limit.value * alone_s)

    def _length(self, tokens: Counts, limit: Limit) -> float:
        return float(np.percentile(tokens, limit.percentile))
