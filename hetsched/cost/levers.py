"""What an iteration would take if one of its causes cost nothing: each is played anew with the cost model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hetsched.cost.compute import StageWork, stage_work
from hetsched.cost.placement import Placement
from hetsched.cost.schedule import Hop
from hetsched.cost.training import Iteration, gathers_s, play_iteration, play_parts, play_worked, with_gathers
from hetsched.plan import Compression

LEAST_GAIN = 5e-3  # of the iteration: what gains less is no lever
FEW_BITS = 8  # what compression is tried with


@dataclass(frozen=True, slots=True)
class Lever:
    """A change and the iteration that it leads to."""

    name: str
    what: str
    iteration_s: float


def levers(iteration: Iteration) -> list[Lever]:
    """What would help, the most first. None of them counts what it costs: they say where the time is."""
    least = iteration.seconds * (1 - LEAST_GAIN)
    found = [Lever(name, what, changed.seconds) for name, what, changed in _changes(iteration)]
    step_free = max(map(max, iteration.reduced_s))
    found.append(Lever("free_optimizer", "an optimiser step that takes no time", step_free))
    return sorted((lever for lever in found if lever.iteration_s < least), key=lambda lever: lever.iteration_s)


def slowest_pipeline(iteration: Iteration) -> int:
    """The pipeline that ends its backwards last."""
    ends = [max(times) for times in iteration.backward_s]
    return ends.index(max(ends))


def busiest_stage(works: list[StageWork]) -> int:
    """The stage of a pipeline that works the longest on a micro-batch."""
    seconds = [work.forward_s + work.backward_s for work in works]
    return seconds.index(max(seconds))


def _changes(iteration: Iteration) -> Iterator[tuple[str, str, Iteration]]:
    placement, works, hops, reductions = iteration.placement, iteration.works, iteration.hops, iteration.reductions_s
    plan = placement.plan
    free_hops = [[Hop()] * len(links) for links in hops]
    if any(hops):
        yield (
            "free_links",
            "links between stages that take no time",
            play_parts(placement, works, free_hops, reductions),
        )
        ends = [
            [pipeline.micro_batches * (line[most].forward_s + line[most].backward_s)] * len(line)
            for pipeline, line in zip(plan.pipelines, works, strict=True)
            for most in [busiest_stage(line)]
        ]
        yield (
            "no_waiting",
            "free links and no bubble: each pipeline's busiest stage never waits",
            play_parts(placement, works, free_hops, reductions, ends),
        )
    if reductions:
        nothing = [0.0] * len(reductions)
        yield (
            "free_all_reduce",
            "an all-reduce of gradients that takes no time",
            play_parts(placement, works, hops, nothing),
        )
    if (any(hops) or reductions) and plan.options.compression == Compression():
        options = replace(plan.options, compression=Compression(FEW_BITS, FEW_BITS, FEW_BITS))
        yield (
            "compression",
            f"all messages and gradients in {FEW_BITS} bits (--compression {FEW_BITS}), were that no work",
            play_iteration(placement.cluster, replace(plan, options=options)),
        )
    if any(map(any, gathers_s(placement))):
        yield (
            "free_gathers",
            "ZeRO 3's gathers of weights in no time",
            play_worked(placement, placement.works, reductions),
        )
    if any(work.tensor_parallel_s for line in works for work in line):
        quiet = _works(placement, plan.options.recompute, talks=False)
        yield "free_tensor_parallel", "tensor-parallel GPUs that talk in no time", _replayed(iteration, quiet)
    if plan.options.recompute:
        yield (
            "no_recompute",
            "activations kept instead of recomputed, if memory allowed it",
            _replayed(iteration, _works(placement, False, talks=True)),
        )
    p = slowest_pipeline(iteration)
    s = busiest_stage(works[p])
    halved = [list(line) for line in placement.works]
    work, alone = halved[p][s], _works(placement, plan.options.recompute, talks=False)[p][s]
    halved[p][s] = StageWork(
        work.forward_s - alone.forward_s / 2, work.backward_s - alone.backward_s / 2, work.tensor_parallel_s
    )
    what = f"stage {s} of {plan.pipelines[p].name}, its busiest, computing twice as fast"
    yield "fast_stage", what, _replayed(iteration, halved)


def _replayed(iteration: Iteration, works: list[list[StageWork]]) -> Iteration:
    placement = iteration.placement
    return play_worked(placement, with_gathers(placement, works), iteration.reductions_s)


def _works(placement: Placement, recompute: bool, talks: bool) -> list[list[StageWork]]:
    plan = placement.plan
    return [
        [
            stage_work(
                worker if talks else replace(worker, all_reduce_s=0.0),
                plan.model,
                plan.workload,
                stage.layers,
                recompute,
            )
            for worker, stage in zip(workers, pipeline.stages, strict=True)
        ]
        for workers, pipeline in zip(placement.workers, plan.pipelines, strict=True)
    ]
