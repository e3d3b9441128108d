"""What a serving plan does in a steady state, and whether it fits: means without the simulator's luck and queues."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from hetsched.cluster import Cluster
from hetsched.cost.base import Violation
from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.cost.serving.steady import Operation, SteadyReplica, Traffic
from hetsched.plan import ServingPipeline, ServingPlan
from hetsched.units import SECONDS_PER_HOUR, SECONDS_PER_MS, TOKENS_PER_MILLION

MEMORY_FRACTION = 0.92


@dataclass(frozen=True)
class ServingCost:
    """A plan's figures at `requests_per_s`: the load's rate, or all that the plan can serve where it has none.

    capacity_per_s: with the plan's shares, all of it. ttft_s, tpot_s, e2e_s: means over requests; infinite beyond the
    capacity. memory_bytes: by device, with the KV cache of as many requests as are in flight at most. loads: by
    pipeline, its share of its own capacity.
    """

    requests_per_s: float
    capacity_per_s: float
    output_tokens: float
    ttft_s: float
    tpot_s: float
    e2e_s: float
    memory_bytes: Mapping[str, int]
    violations: tuple[Violation, ...] = ()
    usd_per_hour: float | None = None
    loads: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def feasible(self) -> bool:
        """Whether no limit is broken."""
        return not self.violations

    @property
    def output_tokens_per_s(self) -> float:
        """Of all replicas."""
        return self.requests_per_s * self.output_tokens

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Price of a million output tokens, where every node's price is known."""
        if self.usd_per_hour is None or not self.output_tokens_per_s:
            return None
        return self.usd_per_hour / SECONDS_PER_HOUR / self.output_tokens_per_s * TOKENS_PER_MILLION

    def predicted(self) -> dict[str, Any]:
        """The plan file's `predicted` object, as far as a steady state goes: means, no percentiles."""
        return {
            "requests_per_s": self.requests_per_s,
            "capacity_requests_per_s": self.capacity_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "ttft_ms": {"mean": self.ttft_s / SECONDS_PER_MS},
            "tpot_ms": {"mean": self.tpot_s / SECONDS_PER_MS},
            "e2e_ms": {"mean": self.e2e_s / SECONDS_PER_MS},
            "usd_per_hour": self.usd_per_hour,
            "usd_per_million_tokens": self.usd_per_million_tokens,
            "memory_bytes": dict(self.memory_bytes),
            "loads": dict(self.loads),
            "violations": [violation.to_json() for violation in self.violations],
            "notes": list(self.notes),
        }


def traffic_of(plan: ServingPlan) -> Traffic:
    """The plan's load by its means."""
    load = plan.workload
    return Traffic.of(load.isl, load.osl, load.isl_sigma)


def steady_replica(
    plan: ServingPlan, pipeline: ServingPipeline, times: ReplicaTimes, traffic: Traffic
) -> SteadyReplica:
    """A pipeline of the plan under its load."""
    options = plan.options
    return SteadyReplica(
        times,
        traffic,
        pipeline.max_batch,
        options.chunked_prefill_tokens > 0,
        options.max_prefill_tokens,
        pipeline.role != "decode",
        pipeline.role != "prefill",
    )


def price_serving(
    cluster: Cluster,
    plan: ServingPlan,
    memory_fraction: float = MEMORY_FRACTION,
    traffic: Traffic | None = None,
) -> ServingCost:
    """The plan's cost in a steady state. traffic: of the trace, where the plan's load has one that was read.

    Raises HetschedError where the plan names a device that the cluster lacks.
    """
    traffic = traffic or traffic_of(plan)
    priced = {
        pipeline.name: replica_times(cluster, plan.model, pipeline.stages, plan.precision, memory_fraction)
        for pipeline in plan.pipelines
    }
    steady = {
        pipeline.name: steady_replica(plan, pipeline, priced[pipeline.name], traffic) for pipeline in plan.pipelines
    }
    shares = arriving_shares(plan)
    capacity = min((steady[name].capacity_per_s / share for name, share in shares.items() if share > 0.0), default=0.0)
    rate = plan.workload.rate_per_s
    seen = {name: one.at(shares[name] * (capacity * 0.999 if rate is None else rate)) for name, one in steady.items()}
    served = capacity if rate is None else min(rate, capacity)
    violations = [v for pipeline in plan.pipelines for v in _violations(cluster, pipeline, priced, traffic)]
    memory: dict[str, int] = {}
    for pipeline in plan.pipelines:
        memory |= _memory(pipeline, priced[pipeline.name], steady[pipeline.name], traffic)
    return ServingCost(
        served,
        capacity,
        traffic.output_tokens,
        *_means(plan, seen, shares),
        memory,
        tuple(violations),
        cluster.usd_per_hour(list(dict.fromkeys(cluster.device(name).node for name in memory))),
        {name: _load(one.capacity_per_s, shares[name] * served) for name, one in steady.items()},
    )


@dataclass(frozen=True, slots=True)
class ServingRoofline:
    """The default cost model of serving plans: `price_serving`."""

    memory_fraction: float = MEMORY_FRACTION
    name: str = "roofline"

    def price(self, cluster: Cluster, plan: ServingPlan) -> ServingCost:
        """The plan's cost; HetschedError where it names a device that the cluster lacks."""
        return price_serving(cluster, plan, self.memory_fraction)


def arriving_shares(plan: ServingPlan) -> dict[str, float]:
    """What share of all requests goes through each pipeline."""
    shares = {pipeline.name: 0.0 for pipeline in plan.pipelines}
    shares |= plan.shares(None)
    for pipeline in plan.pipelines:
        if pipeline.role == "prefill":
            for target, share in plan.shares(pipeline.name).items():
                shares[target] += shares[pipeline.name] * share
    return shares


def _means(plan: ServingPlan, seen: Mapping[str, Operation], shares: Mapping[str, float]) -> tuple[float, float, float]:
    """TTFT, TPOT and end to end: of the pipelines that do the first token, and of those that do the others."""
    first = [p.name for p in plan.pipelines if p.role != "decode"]
    rest = [p.name for p in plan.pipelines if p.role != "prefill"]
    ttft = _mean({name: seen[name].ttft_s for name in first}, shares)
    tpot = _mean({name: seen[name].tpot_s for name in rest}, shares)
    return ttft, tpot, ttft + max(0.0, plan.workload.osl - 1.0) * tpot


def _mean(values: Mapping[str, float], shares: Mapping[str, float]) -> float:
    weights = sum(shares[name] for name in values)
    return sum(value * shares[name] for name, value in values.items() if shares[name]) / weights if weights else inf


def _load(capacity_per_s: float, rate_per_s: float) -> float:
    return rate_per_s / capacity_per_s if capacity_per_s else inf


def _violations(
    cluster: Cluster, pipeline: ServingPipeline, priced: Mapping[str, ReplicaTimes], traffic: Traffic
) -> list[Violation]:
    """Devices on which the weights leave no room for the KV cache of one mean request."""
    times, whole = priced[pipeline.name], traffic.input_tokens + traffic.output_tokens
    found = []
    for stage, used, room, device_names in zip(
        times.stages, times.used_bytes, times.kv_room_bytes, (stage.devices for stage in pipeline.stages), strict=True
    ):
        needed = whole * stage.kv_bytes_per_token
        if needed > room:
            found += [Violation(name, "memory", used + needed, used + room) for name in device_names]
    return found


def _memory(pipeline: ServingPipeline, times: ReplicaTimes, steady: SteadyReplica, traffic: Traffic) -> dict[str, int]:
    whole = max(1, steady.largest_batch) * (traffic.input_tokens + traffic.output_tokens)
    return {
        name: int(used + whole * times_of.kv_bytes_per_token)
        for stage, times_of, used in zip(pipeline.stages, times.stages, times.used_bytes, strict=True)
        for name in stage.devices
    }
