"""The default cost model, `roofline`: one training iteration of pipelines of any shape.

Each pipeline's schedule is played exactly (`schedule.py`). When a stage has done its last backward and its message has
left, it all-reduces the gradients of its blocks, group by group from the last blocks on, each group's members waiting
for one another (the bundled executor starts its groups all at once, in that order). Then it takes its optimiser step.
The iteration ends with the last device. Transfers that use a node's network at the same time share it (`network.py`):
hops of one kind of all pipelines; activations and their gradients, on average, where they cross (`hops.py`); and
all-reduces that no stage has in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from hetsched.cluster import Cluster
from hetsched.cost.account import MEMORY_FRACTION, account
from hetsched.cost.base import Assumptions, Cost
from hetsched.cost.chains import ChainPricer
from hetsched.cost.compute import StageWork, optimizer_s
from hetsched.cost.network import all_reduce_s
from hetsched.cost.placement import Placement, place
from hetsched.cost.schedule import Hop, play
from hetsched.cost.traffic import GATHERED_WEIGHTS, gradient_bytes
from hetsched.cost.workers import speed_notes
from hetsched.model import ModelSpec
from hetsched.plan import Options, Plan
from hetsched.workload import TrainingJob


@dataclass(frozen=True, slots=True)
class Iteration:
    """When everything of one iteration ends, in seconds from its start; lists are [pipeline][stage].

    works: for one micro-batch, ZeRO 3's gathers included; hops: of each pipeline; backward_s: the last message;
    reduced_s: the last gradients; finished_s: the optimiser step. reductions_s: of each gradient group.
    """

    placement: Placement
    works: list[list[StageWork]]
    hops: list[list[Hop]]
    backward_s: list[list[float]]
    reduced_s: list[list[float]]
    finished_s: list[list[float]]
    reductions_s: list[float]

    @property
    def seconds(self) -> float:
        """The whole iteration."""
        return max(map(max, self.finished_s))


@dataclass(frozen=True, slots=True)
class Roofline:
    """See the module. A plan may use `memory_fraction` of each device's memory."""

    memory_fraction: float = MEMORY_FRACTION
    name: str = "roofline"

    @property
    def assumes(self) -> Assumptions:
        """Nothing."""
        return Assumptions()

    def refuses(self, plan: Plan) -> str | None:
        """Nothing: every training plan has a price."""
        return None

    def price(self, cluster: Cluster, plan: Plan) -> Cost:
        """The plan's iteration time and memory; HetschedError where a device is not in the cluster."""
        return iteration_cost(play_iteration(cluster, plan), self.memory_fraction)

    def chains(
        self,
        cluster: Cluster,
        members: Sequence[Sequence[int]],
        model: ModelSpec,
        job: TrainingJob,
        options: Options,
    ) -> ChainPricer | None:
        """The roofline by chains of classes, for plans whose stages overlap with their messages."""
        if not options.overlap:
            return None
        from hetsched.cost.roofline_chains import RooflineChains

        return RooflineChains(cluster, members, model, job, options, self.memory_fraction)


def play_iteration(cluster: Cluster, plan: Plan) -> Iteration:
    """One iteration of the plan, played; HetschedError where a device is not in the cluster."""
    return play_placed(place(cluster, plan))


def play_placed(placement: Placement) -> Iteration:
    """One iteration of a plan in its place, played."""
    cluster, plan = placement.cluster, placement.plan
    reductions = [
        all_reduce_s(cluster, placement.members(ring), gradient_bytes(plan, group), lanes)
        for group, ring, lanes in zip(placement.groups, placement.rings, placement.gradient_lanes, strict=True)
    ]
    return play_worked(placement, with_gathers(placement, placement.works), reductions)


def play_worked(placement: Placement, works: list[list[StageWork]], reductions: list[float]) -> Iteration:
    """The iteration of stages that work as is said: how often messages meet depends on how fast they go."""
    hops = [placement.hops(p, work) for p, work in enumerate(works)]
    return play_parts(placement, works, hops, reductions)


def play_parts(
    placement: Placement,
    works: list[list[StageWork]],
    hops: list[list[Hop]],
    reductions: list[float],
    ends: list[list[float]] | None = None,
) -> Iteration:
    """The iteration of which each part takes as long as is said; ends: when the last messages have left, if known."""
    plan, options = placement.plan, placement.plan.options
    if ends is None:
        ends = [
            play(options.schedule, work, links, pipeline.micro_batches, options.overlap)
            for pipeline, work, links in zip(plan.pipelines, works, hops, strict=True)
        ]
    reduced = [list(times) for times in ends]
    for group, seconds in zip(placement.groups, reductions, strict=True):
        end = max(reduced[p][s] for p, s in group.members) + seconds
        for p, s in group.members:
            reduced[p][s] = end
    shards = len(plan.pipelines) if options.zero else 1
    finished = [
        [
            end + optimizer_s(worker, plan.model, stage.layers, shards)
            for end, worker, stage in zip(times, workers, pipeline.stages, strict=True)
        ]
        for times, workers, pipeline in zip(reduced, placement.workers, plan.pipelines, strict=True)
    ]
    return Iteration(placement, works, hops, ends, reduced, finished, reductions)


def with_gathers(placement: Placement, works: list[list[StageWork]]) -> list[list[StageWork]]:
    """The works with ZeRO 3's gathers, where the plan has them."""
    return [
        [
            StageWork(work.forward_s + gather, work.backward_s + gather, work.tensor_parallel_s)
            for work, gather in zip(*pair, strict=True)
        ]
        for pair in zip(works, gathers_s(placement), strict=True)
    ]


def gathers_s(placement: Placement) -> list[list[float]]:
    """ZeRO 3: each pass of each micro-batch first gathers the stage's weights, half an all-reduce; else nothing."""
    plan = placement.plan
    gather_s = [[0.0] * len(line) for line in placement.teams]
    if plan.options.zero != GATHERED_WEIGHTS:
        return gather_s
    for group, ring, lanes in zip(placement.groups, placement.rings, placement.gradient_lanes, strict=True):
        size = float(group.parameters * plan.workload.dtype_bytes)
        seconds = all_reduce_s(placement.cluster, placement.members(ring), size, lanes) / 2
        for p, s in group.members:
            gather_s[p][s] += seconds
    return gather_s


def iteration_cost(iteration: Iteration, memory_fraction: float) -> Cost:
    """The Cost of an iteration whose times are known."""
    placement = iteration.placement
    return account(
        placement.cluster,
        placement.plan,
        iteration.seconds,
        breakdown_s(iteration),
        memory_fraction,
        _notes(placement),
    )


def breakdown_s(iteration: Iteration) -> dict[str, float]:
    """Seconds by cause along the pipeline that ends its backwards last; the parts add up to the iteration.

    compute: its busiest stage; tensor_parallel: what its devices talk; bubble: what the schedule adds with free links;
    pipeline_parallel: what the links add; data_parallel: from there until the last gradient is reduced, and the
    busiest stage's gathers of ZeRO 3; optimizer: the rest.
    """
    plan, ends = iteration.placement.plan, iteration.backward_s
    slowest = int(np.argmax([max(times) for times in ends]))
    pipeline, work = plan.pipelines[slowest], iteration.works[slowest]
    passes_s = [w.forward_s + w.backward_s for w in work]
    most = passes_s.index(max(passes_s))
    busy, alone = passes_s[most] * pipeline.micro_batches, iteration.placement.works[slowest][most]
    gathering = busy - (alone.forward_s + alone.backward_s) * pipeline.micro_batches
    talking = work[most].tensor_parallel_s * pipeline.micro_batches
    unhindered = max(busy, *play(plan.options.schedule, work, [Hop()] * (len(work) - 1), pipeline.micro_batches))
    end, end_reduced = max(ends[slowest]), max(map(max, iteration.reduced_s))
    return {
        "compute": busy - talking - gathering,
        "tensor_parallel": talking,
        "pipeline_parallel": end - unhindered,
        "bubble": unhindered - busy,
        "data_parallel": end_reduced - end + gathering,
        "optimizer": iteration.seconds - end_reduced,
    }


def _notes(placement: Placement) -> tuple[str, ...]:
    plan = placement.plan
    notes = speed_notes(placement.cluster, plan.model, plan.workload, chain(*placement.workers))
    spanning = [
        f"stage {s} of {pipeline.name}"
        for pipeline, line in zip(plan.pipelines, placement.teams, strict=True)
        for s, team in enumerate(line)
        if team.spans
    ]
    if spanning:
        more = f" and {len(spanning) - 1} more stages" if len(spanning) > 1 else ""
        notes += (
            f"{spanning[0]}{more} on several nodes: what its GPUs tell one another is taken to meet nothing else",
        )
    return notes
