"""From a grid of devices, replicas × stages, to the best plan on it: layers, batch shares and the open options."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from hetsched.algorithms.chain_split import chain_split
from hetsched.cluster import Cluster, Gpu
from hetsched.cost.account import MEMORY_FRACTION
from hetsched.cost.base import NOTHING_ASSUMED, Assumptions, CostModel
from hetsched.cost.compute import Worker, stage_work
from hetsched.cost.memory import RESERVE_BYTES, stage_bytes, usable_bytes
from hetsched.cost.published.dtfm import paper_messages_gigabytes
from hetsched.cost.traffic import GATHERED_WEIGHTS
from hetsched.model import ModelSpec
from hetsched.plan import Layers, Options, Pipeline, Plan, Stage
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.workload import TrainingJob

Grid = Sequence[Sequence[int]]  # [stage][replica]: positions in cluster.devices
USUAL = 4  # of the micro-batch sizes allowed the fourth from above, if that is not the smallest


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of what a grid leaves open."""

    micro_batch: int
    schedule: str
    zero: int
    recompute: bool


def variants(problem: Problem, assumes: Assumptions) -> Iterator[list[Variant]]:
    """For each schedule and micro-batch size allowed, the settings from the fastest to the one of least memory.

    Where the cost model knows one setting alone, that; but what the user has fixed stands in the plan anyway.
    """
    choices = problem.choices
    zero = assumes.zero if choices.zero is None else choices.zero
    recompute = assumes.recompute if choices.recompute is None else choices.recompute
    zeros = (0, 1, 2) if zero is None else (zero,)
    last = (GATHERED_WEIGHTS,) if zero is None else ()  # which costs most: weights cross the network in each pass
    recomputes = (False, True) if recompute is None else (recompute,)
    fixed = assumes.schedule if choices.schedule is None else choices.schedule
    for schedule in (fixed,) if fixed else problem.schedules:
        for size in problem.micro_batches:
            settings = [*product(recomputes, zeros), *product(recomputes, last)]
            yield [Variant(size, schedule, zero, recompute) for recompute, zero in settings]


def usual_sizes(count: int) -> Iterator[int]:
    """Of so many sizes in ascending order the position of the one to look at first, and of smaller ones if need be.

    With larger ones, which may turn out better, deep pipelines look worse than they can be.
    """
    at = max(1, count - USUAL) % count
    yield at
    while at:
        at //= 2
        yield at


def settle(
    problem: Problem, model: CostModel, grid: Grid, *, even: bool = False, quick: bool = False, width: int = 1
) -> tuple[Candidate, Variant]:
    """The best candidate on this grid over the open options, and which they were.

    Memory is saved (ZeRO, then recompute) only as far as needed, for recomputing costs time. With `even`, layers and
    batches are split evenly; `quick` looks at one schedule and one micro-batch size, or smaller ones where that does
    not fit. No size is larger than leaves each pipeline one.
    """
    best: tuple[Candidate, Variant] | None = None
    sizes = problem.micro_batches_of(len(grid[0]))
    ladders = [ladder for ladder in variants(problem, model.assumes) if ladder[0].micro_batch in sizes]
    for ladder in [ladders[at] for at in usual_sizes(len(sizes))] if quick else ladders:
        for variant in ladder:
            candidate = on_grid(problem, model, grid, variant, even=even, width=width)
            if best is None or candidate.cost.rank(problem.objective) < best[0].cost.rank(problem.objective):
                best = candidate, variant
            if candidate.cost.feasible:
                break
        if quick and best and best[0].cost.feasible:
            break
    if best is None:
        raise AssertionError("a problem allows at least one variant")
    return best


def on_grid(
    problem: Problem, model: CostModel, grid: Grid, variant: Variant, *, even: bool = False, width: int = 1
) -> Candidate:
    """The plan on this grid with these options, and its price; with `even`, layers and batches are split evenly."""
    plan = grid_plan(
        problem, grid, variant, memory_fraction=model.memory_fraction, assumes=model.assumes, even=even, width=width
    )
    return Candidate(plan, model.price(problem.cluster, plan))


def grid_plan(
    problem: Problem,
    grid: Grid,
    variant: Variant,
    *,
    memory_fraction: float = MEMORY_FRACTION,
    assumes: Assumptions = NOTHING_ASSUMED,
    even: bool = False,
    width: int = 1,
) -> Plan:
    """A plan with one tensor-parallel degree: pipeline k is the k-th device of every stage, and the next ones.

    Layers are split by speed under memory limits, exactly (`chain_split`), or else evenly; batch shares follow the
    pipelines' speeds. With `even`, both are even; so is either where the cost model `assumes` it. width: the
    tensor-parallel degree; each stage is so many devices that follow one another. Only even plans have more than 1.
    """
    if width > 1 and not even:
        raise AssertionError("only even plans are made with tensor parallelism")
    cluster, model = problem.cluster, problem.model
    job = TrainingJob(problem.job.global_batch, problem.job.seq_len, variant.micro_batch, problem.job.dtype)
    replicas, stages = len(grid[0]), len(grid)
    options = Options(
        variant.schedule,
        variant.recompute,
        variant.zero,
        problem.choices.compression,
        paper_messages_gigabytes(model, problem.choices.published_batch, replicas, stages),
    )
    gpus = [tuple(cluster.devices[row[k]].gpu for row in grid) for k in range(replicas)]
    share = -(-job.global_batch // (job.micro_batch * replicas))
    if even or assumes.even_layers:
        splits = [even_split(model.num_layers, stages)] * replicas
    else:
        splits = [split_layers(model, job, options, kinds, share, replicas, memory_fraction) for kinds in gpus]
    pace_s = (
        [1.0] * replicas
        if even
        else [_pace_s(model, job, options, kinds, layers) for kinds, layers in zip(gpus, splits, strict=True)]
    )
    counts = [share] * replicas
    if not assumes.even_batches:
        counts = apportion(max(replicas, -(-job.global_batch // job.micro_batch)), pace_s)
    pipelines = tuple(
        Pipeline(
            f"p{k}",
            tuple(
                Stage(layers, tuple(device.name for device in cluster.devices[row[k] : row[k] + width]))
                for layers, row in zip(splits[k], grid, strict=True)
            ),
            counts[k],
        )
        for k in range(replicas)
    )
    return Plan(model, job, pipelines, options)


def grid_of(cluster: Cluster, plan: Plan) -> list[list[int]]:
    """The grid of a plan whose pipelines have one depth."""
    rows = zip(*(pipeline.stages for pipeline in plan.pipelines), strict=True)
    return [[cluster.index_of[stage.devices[0]] for stage in row] for row in rows]


def shape_of(plan: Plan) -> tuple[int, int]:
    """(replicas, stages) of a plan on a grid."""
    return len(plan.pipelines), len(plan.pipelines[0].stages)


def variant_of(plan: Plan) -> Variant:
    """The settings of a plan."""
    options = plan.options
    return Variant(plan.workload.micro_batch, options.schedule, options.zero, options.recompute)


@lru_cache(maxsize=4096)
def even_split(num_layers: int, stages: int) -> tuple[Layers, ...]:
    """Layers split as evenly as can be, the earlier stages taking one more where it does not divide."""
    bounds = [-(-num_layers * s // stages) for s in range(stages + 1)]
    return tuple((bounds[s], bounds[s + 1]) for s in range(stages))


@lru_cache(maxsize=4096)
def split_layers(
    model: ModelSpec,
    job: TrainingJob,
    options: Options,
    gpus: tuple[Gpu, ...],
    micro_batches: int,
    peers: int,
    memory_fraction: float = MEMORY_FRACTION,
) -> tuple[Layers, ...]:
    """The split of least largest stage time that fits the devices' memory; where none does, that which lacks least."""
    depth, blocks = len(gpus), model.num_layers
    whole = [stage_work(Worker(gpu), model, job, (1, 2), options.recompute) for gpu in gpus] if blocks > 3 else None
    if depth == 1 or whole is None:
        return even_split(blocks, depth)
    item = np.array([[work.forward_s + work.backward_s] * blocks for work in whole])
    first, last = ((0, 1), (blocks - 1, blocks))
    extra = np.zeros(depth)
    for s, layers in ((0, first), (depth - 1, last)):
        work = stage_work(Worker(gpus[s]), model, job, layers, options.recompute)
        extra[s] = work.forward_s + work.backward_s - item[s, 0]

    def needed(s: int, layers: Layers) -> float:
        return float(stage_bytes(model, job, options, Stage(layers, ("",)), s, depth, micro_batches, peers))

    per_block = np.array([needed(s, (1, 3)) - needed(s, (1, 2)) for s in range(depth)])
    ends = [first if s == 0 else last if s == depth - 1 else (1, 2) for s in range(depth)]
    fixed = np.array([needed(s, ends[s]) for s in range(depth)]) - per_block
    capacity = np.array([usable_bytes(gpu.memory_bytes, memory_fraction) for gpu in gpus])
    found = chain_split(
        item,
        extra=np.maximum(extra, 0.0),
        item_memory=np.repeat(per_block[:, None], blocks, axis=1),
        fixed_memory=np.maximum(fixed, RESERVE_BYTES),
        capacity=capacity,
    )
    if found is None:
        shares = np.repeat((per_block / capacity)[:, None], blocks, axis=1)
        found = chain_split(shares, extra=np.maximum(fixed, RESERVE_BYTES) / capacity)
    if found is None:
        return even_split(blocks, depth)
    bounds = found[0].tolist()
    return tuple((bounds[s], bounds[s + 1]) for s in range(depth))


@lru_cache(maxsize=4096)
def _pace_s(
    model: ModelSpec, job: TrainingJob, options: Options, gpus: tuple[Gpu, ...], layers: tuple[Layers, ...]
) -> float:
    """Seconds a micro-batch takes on the pipeline's slowest stage."""
    works = [
        stage_work(Worker(gpu), model, job, part, options.recompute) for gpu, part in zip(gpus, layers, strict=True)
    ]
    return max(work.forward_s + work.backward_s for work in works)


def apportion(total: int, pace_s: Sequence[float]) -> list[int]:
    """Micro-batches for each pipeline, at least one, so that the slowest ends soonest.

    Each in turn goes where it would end first, which is optimal for max of count · pace.
    """
    pace = np.asarray(pace_s)
    counts = np.maximum(1, np.floor((total - len(pace)) * (1 / pace) / (1 / pace).sum()).astype(int))
    while counts.sum() > total:
        counts[int(np.argmax(np.where(counts > 1, counts * pace, -np.inf)))] -= 1
    while counts.sum() < total:
        counts[int(np.argmin((counts + 1) * pace))] += 1
    return [int(count) for count in counts]
