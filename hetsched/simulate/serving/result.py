"""What came of a simulation: when each request had its first and its last token, and what each replica did."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetsched.cost.serving.reference import alone
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.plan import ServingPlan
from hetsched.requests import Requests
from hetsched.simulate.serving.job import Moment
from hetsched.units import SECONDS_PER_HOUR, SECONDS_PER_MS, TOKENS_PER_MILLION
from hetsched.workload import Slo

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What one replica did.

    requests: served, where a decode replica ended them; busy: (depth,), the share of the time each stage worked;
    prompt_s: seconds that the busiest, or a link between two, did so on prompts; kv_*_tokens: of its KV cache.
    """

    name: str
    requests: int
    decoded_tokens: int
    prefilled_tokens: int
    steps: int
    busy: tuple[float, ...]
    prompt_s: float
    peak_batch: int
    preemptions: int
    kv_capacity_tokens: int
    kv_peak_tokens: int
    kv_mean_tokens: float

    def to_json(self) -> dict[str, Any]:
        """Its figures, with shares of the KV cache."""
        capacity = max(1, self.kv_capacity_tokens)
        return {
            "requests": self.requests,
            "decoded_tokens": self.decoded_tokens,
            "prefilled_tokens": self.prefilled_tokens,
            "steps": self.steps,
            "busy": list(self.busy),
            "peak_batch": self.peak_batch,
            "preemptions": self.preemptions,
            "kv_capacity_tokens": self.kv_capacity_tokens,
            "kv_peak": self.kv_peak_tokens / capacity,
            "kv_mean": self.kv_mean_tokens / capacity,
        }


@dataclass(frozen=True, eq=False)
class ServingRun:
    """One simulation. Arrays are (requests,), in the order of arrival.

    first_s, finish_s: when a request had its first and its last token, nan where it was rejected; begun_s: since when
    it was decoded, later than first_s where its KV was handed on; decoded_before: tokens that decode steps of its
    replica had made by then; entry, replica: the positions of the pipelines that it came to and that finished it.
    span_s: from the first arrival to the last token. moments: the life of the request that was recorded.
    """

    plan: ServingPlan
    requests: Requests
    first_s: Floats
    begun_s: Floats
    decoded_before: Counts
    finish_s: Floats
    rejected: Mask
    preemptions: Counts
    entry: Counts
    replica: Counts
    loads: tuple[ReplicaLoad, ...]
    span_s: float
    moments: tuple[Moment, ...] = ()

    @cached_property
    def ttft_s(self) -> Floats:
        """Time to the first token."""
        return np.asarray(self.first_s - self.requests.arrival_s)

    @cached_property
    def e2e_s(self) -> Floats:
        """From arrival to the last token."""
        return np.asarray(self.finish_s - self.requests.arrival_s)

    @cached_property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; nan for outputs of one token."""
        after = self.requests.output_tokens - 1
        return np.asarray(np.where(after > 0, (self.finish_s - self.first_s) / np.maximum(after, 1), np.nan))

    @property
    def served(self) -> int:
        """Requests that have all their tokens."""
        return int((~self.rejected).sum())

    @property
    def requests_per_s(self) -> float:
        """Requests served a second."""
        return self.served / self.span_s if self.span_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens a second."""
        return float(self.requests.output_tokens[~self.rejected].sum()) / self.span_s if self.span_s else 0.0

    def meets(self, slo: Slo, reference: ReplicaTimes | None = None) -> Mask:
        """(requests,): whether each is within all limits; a rejected one is not.

        reference: what `slo.scale` refers to: a request's time alone there is its reference latency.
        """
        within = ~self.rejected
        times: dict[str, Floats] = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        if slo.scale is not None and reference is not None:
            times["scale"] = self.scale(reference)
        for name, limit in slo.limits.items():
            if name in times:
                within &= ~(times[name] > limit.value)  # of one output token there is no TPOT, which is no miss
        return np.asarray(within)

    def scale(self, reference: ReplicaTimes) -> Floats:
        """Each request's time over what it takes alone on the reference: the least SLO scale that it keeps."""
        alone_s = alone(reference, self.requests.input_tokens, self.requests.output_tokens)[1]
        return np.asarray(self.e2e_s / alone_s)

    def attainment(self, slo: Slo, reference: ReplicaTimes | None = None) -> float:
        """The share of requests that are within all limits."""
        return float(self.meets(slo, reference).mean())

    def keeps(self, slo: Slo, reference: ReplicaTimes | None = None) -> bool:
        """Whether each limit holds for its percentile of the requests; without limits, whether all were served."""
        if not slo.limits:
            return not self.rejected.any()
        return all(
            self.attainment(Slo(**{name: limit}), reference) * 100.0 >= limit.percentile - 1e-9
            for name, limit in slo.limits.items()
        )

    def reached(self, name: str, percentile: float, reference: ReplicaTimes | None = None) -> float:
        """The least limit of that name which holds for the percentile of the requests; infinite where none does."""
        if name == "scale":
            if reference is None:
                return float("nan")
            values = self.scale(reference)
        else:
            values = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}[name]
        values = np.where(self.rejected, np.inf, np.nan_to_num(values, nan=0.0))  # no TPOT of one token is no miss
        return float(np.percentile(values, percentile, method="inverted_cdf"))

    def tightness(self, slo: Slo, reference: ReplicaTimes | None = None) -> float:
        """By how much all limits could be scaled and still be kept; below 1 where they are kept."""
        shares = [self.reached(name, limit.percentile, reference) / limit.value for name, limit in slo.limits.items()]
        return max(shares, default=0.0)

    def predicted(
        self, usd_per_hour: float | None, slo: Slo | None = None, reference: ReplicaTimes | None = None
    ) -> dict[str, Any]:
        """The plan file's `predicted` object; slo: the plan's own where it is not given."""
        tokens_per_s = self.output_tokens_per_s
        usd_per_million = None
        if usd_per_hour is not None and tokens_per_s:
            usd_per_million = usd_per_hour / SECONDS_PER_HOUR / tokens_per_s * TOKENS_PER_MILLION
        scale = {} if reference is None else {"slo_scale": spread(self.scale(reference))}
        return {
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": tokens_per_s,
            "ttft_ms": spread(self.ttft_s / SECONDS_PER_MS),
            "tpot_ms": spread(self.tpot_s / SECONDS_PER_MS),
            "e2e_ms": spread(self.e2e_s / SECONDS_PER_MS),
            **scale,
            "slo_attainment": self.attainment(slo or self.plan.workload.slo, reference),
            "usd_per_hour": usd_per_hour,
            "usd_per_million_tokens": usd_per_million,
            "requests": len(self.requests),
            "offered_per_s": self.requests.rate_per_s,
            "rejected": int(self.rejected.sum()),
            "preemptions": int(self.preemptions.sum()),
            "span_s": self.span_s,
            "replicas": {load.name: load.to_json() for load in self.loads},
        }


def spread(values: Floats) -> dict[str, float | None]:
    """{"mean", "p50", "p90", "p99"} of those that are known; None where none is."""
    known = values[np.isfinite(values)]
    if not known.size:
        return dict.fromkeys(("mean", *(f"p{p}" for p in PERCENTILES)))
    found = np.percentile(known, PERCENTILES).tolist()
    return {"mean": float(known.mean()), **{f"p{p}": value for p, value in zip(PERCENTILES, found, strict=True)}}
