"""A serving plan's figures: what a steady state says, and what a simulation of its requests finds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hetsched.cluster import Cluster
from hetsched.cost.serving.plan_cost import ServingCost
from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.plan import ServingPlan
from hetsched.requests import Requests
from hetsched.simulate.serving.result import ServingRun
from hetsched.simulate.serving.run import MEMORY_FRACTION, Settings, Watch, simulate_serving

DEFAULTS = Settings()


def play(
    cluster: Cluster,
    plan: ServingPlan,
    requests: Requests,
    settings: Settings = DEFAULTS,
    memory_fraction: float = MEMORY_FRACTION,
    watch: Watch | None = None,
) -> ServingRun:
    """Simulate the plan; a replica that does not fit its GPUs is played as if it had room for one full batch."""
    times: dict[str, ReplicaTimes] = {}
    longest = int((requests.input_tokens + requests.output_tokens).max())
    for pipeline in plan.pipelines:
        found = replica_times(cluster, plan.model, pipeline.stages, plan.precision, memory_fraction)
        if not found.fits:
            tokens = pipeline.max_batch * longest + 1
            rooms = tuple(tokens * stage.kv_bytes_per_token for stage in found.stages)
            found = replace(found, kv_room_bytes=rooms)
        times[pipeline.name] = found
    return simulate_serving(cluster, plan, requests, settings, times=times, watch=watch)


def prediction(
    cluster: Cluster, cost: ServingCost, run: ServingRun, reference: ReplicaTimes | None = None
) -> dict[str, Any]:
    """The plan file's `predicted` object: the steady state's figures, and those of the simulation where it has any.

    reference: what `slo.scale` refers to.
    """
    steady: Mapping[str, Any] = cost.predicted()
    simulated = run.predicted(cost.usd_per_hour, reference=reference)
    notes = [*steady["notes"], *cluster.notes]
    if cost.violations:
        notes.append("the plan does not fit; times are as if it had room for one full batch")
    return {**steady, **simulated, "notes": notes}
