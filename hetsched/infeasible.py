"""Why nothing fits, and what would help: each lever is tried on the nearest plan, not guessed."""

from collections.abc import Iterator
from dataclasses import replace

from hetsched.catalog import find_gpu, gpu_kinds
from hetsched.cost.base import Cost, CostModel
from hetsched.cost.memory import usable_bytes
from hetsched.errors import InfeasibleError
from hetsched.plan import Plan
from hetsched.problem import Problem
from hetsched.units import BYTES_PER_GIB

MOST_ZERO = 3
SHOWN = 3  # levers of each sort
WORTH_SAYING = 0.8  # how far limits are still broken, of what they were, with a lever that is named


def infeasible(problem: Problem, model: CostModel, plan: Plan, cost: Cost) -> InfeasibleError:
    """The error for a search whose nearest plan breaks a limit: which, where, by how much, and what would help.

    Levers the user has in hand come first: those that let this very plan fit, then those that bring it nearer; then
    the smallest GPU of the catalogue that could stand where the worst does.
    """
    worst = max(cost.violations, key=lambda violation: violation.needed - violation.available)
    others = f"; {len(cost.violations)} devices lack memory in all" if len(cost.violations) > 1 else ""
    fits: list[tuple[float, str]] = []
    found: list[tuple[float, str]] = []
    for words, changed in levers(problem, plan):
        if fits and " --" in words:  # one lever alone is enough
            continue
        priced = model.price(problem.cluster, changed)
        if priced.feasible:
            fits.append((priced.iteration_s, words))
        elif priced.rank()[0] < cost.rank()[0] * WORTH_SAYING:
            found.append((priced.rank()[0], words))
    nearer = [words for _, words in sorted(found)[:SHOWN]]
    choices = problem.choices
    if choices.replicas not in (None, 1) or choices.stages is not None:
        nearer.append("fewer --replicas with more --stages")
    hints = [f"with {' or '.join(words for _, words in sorted(fits)[:SHOWN])} that plan fits"] if fits else []
    more = [*nearer, _larger_gpu(worst.device, worst.needed, model.memory_fraction, problem)]
    hints.append(f"{'what helps, though maybe not alone' if fits else 'what would help'}: {', '.join(more)}")
    return InfeasibleError(
        f"no plan of {problem.model.name} fits {problem.cluster.name}: in the nearest, {worst.message}{others}",
        hint="; ".join(hints),
    )


def levers(problem: Problem, plan: Plan) -> Iterator[tuple[str, Plan]]:
    """What the user could allow or change, in words, and the plan with it: one thing at a time, then the most of all.

    A lever that the search was free to pull is there too: the nearest plan may not have pulled it.
    """
    options, job = plan.options, plan.workload
    if not options.recompute:
        yield "--recompute", replace(plan, options=replace(options, recompute=True))
    zeros = range(options.zero + 1, MOST_ZERO + 1) if len(plan.pipelines) > 1 else range(0)
    for zero in zeros:
        yield f"--zero {zero}", replace(plan, options=replace(options, zero=zero))
    if options.schedule == "gpipe":
        yield "--schedule 1f1b", replace(plan, options=replace(options, schedule="1f1b"))
    if job.micro_batch > 1:
        yield "--micro-batch 1", _in_ones(plan)
    least = replace(options, recompute=True, zero=MOST_ZERO if zeros else options.zero, schedule="1f1b")
    if least != options or job.micro_batch > 1:
        words = ["--recompute", *([f"--zero {MOST_ZERO}"] if zeros else []), "--micro-batch 1"]
        yield " ".join(words), replace(_in_ones(plan), options=least)
    if job.seq_len > 1:
        half = job.seq_len // 2
        yield f"--seq-len {half}", replace(plan, workload=replace(job, seq_len=half))


def _in_ones(plan: Plan) -> Plan:
    """The same sequences one at a time; a pipeline's overshoot goes."""
    left, pipelines = plan.workload.global_batch, []
    for position, pipeline in enumerate(plan.pipelines):
        others = len(plan.pipelines) - position - 1
        share = max(1, min(pipeline.micro_batches * plan.workload.micro_batch, left - others))
        pipelines.append(replace(pipeline, micro_batches=share))
        left -= share
    return replace(plan, workload=replace(plan.workload, micro_batch=1), pipelines=tuple(pipelines))


def _larger_gpu(device: str, needed: float, memory_fraction: float, problem: Problem) -> str:
    """The smallest GPU of the catalogue that has room for what the worst device needs."""
    mine = problem.cluster.device(device).gpu
    gpus = sorted((find_gpu(kind, "catalogue") for kind in gpu_kinds()), key=lambda gpu: gpu.memory_bytes)
    base = needed - (mine.memory_bytes * memory_fraction - usable_bytes(mine.memory_bytes, memory_fraction))
    room = next((gpu for gpu in gpus if usable_bytes(gpu.memory_bytes, memory_fraction) >= base), None)
    if room is None:
        return "more GPUs"
    gib = room.memory_bytes / BYTES_PER_GIB
    return f"more GPUs, or GPUs of {gib:.0f} GiB, such as {room.kind}, in place of {mine.kind}"
