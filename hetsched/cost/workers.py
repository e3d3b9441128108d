"""How fast a team of GPUs is taken to be: as it was measured, as nearest to that as can be, or as its data sheet says.

A profile at the team's own degree wins; beyond its micro-batch sizes it goes on as `TrainingProfile.at` says. A degree
that was not measured runs by the roofline, at the efficiency that blocks reached at the nearest degree that was. And
where no profile is of the model's shape the roofline runs at the efficiency stated for the GPU, or a default.
"""

from collections.abc import Iterable
from dataclasses import asdict, replace

from hetsched.cluster import Cluster, Gpu
from hetsched.cost.compute import Worker
from hetsched.model import ModelSpec
from hetsched.profiles import Measurements, ModelShape
from hetsched.workload import TrainingJob


def worker_at(
    measured: Measurements, gpu: Gpu, degree: int, all_reduce_s: float, model: ModelSpec, job: TrainingJob
) -> Worker:
    """The worker that `degree` GPUs of a kind make; all_reduce_s: see `Worker`, for where talking was not measured."""
    parts = measured.part_times(model, job, gpu.kind, degree)
    if parts is not None:
        return Worker(gpu, degree, 0.0, parts)
    reached = reached_efficiency(measured, gpu, degree, model, job)
    return Worker(gpu if reached is None else replace(gpu, efficiency=reached), degree, all_reduce_s)


def reached_efficiency(
    measured: Measurements, gpu: Gpu, degree: int, model: ModelSpec, job: TrainingJob
) -> float | None:
    """The share of its peak that the GPU reached in blocks of this shape, where another degree was measured."""
    profiles = measured.profiles(model, job, gpu.kind)
    if not profiles:
        return None
    nearest = min(profiles, key=lambda other: (abs(other - degree), other))
    block = profiles[nearest].at(job.micro_batch).block
    passes_s = block.forward_s + block.backward_s
    flops = 3 * model.block_forward_flops(job.micro_batch, job.seq_len) / nearest
    return min(1.0, flops / (gpu.flops_per_s(job.dtype) * passes_s)) if passes_s else 1.0


def speed_notes(cluster: Cluster, model: ModelSpec, job: TrainingJob, workers: Iterable[Worker]) -> tuple[str, ...]:
    """What a reader should know of where the workers' speeds come from; none where all were measured or stated."""
    measured = cluster.measured
    beyond: dict[str, set[int]] = {}
    other_degrees: dict[str, set[int]] = {}
    data_sheet: set[str] = set()
    for worker in workers:
        kind = worker.gpu.kind
        profile = measured.profile(model, job, kind, worker.degree)
        if profile is not None:
            if not profile.covers(job.micro_batch):
                beyond.setdefault(kind, set()).add(worker.degree)
        elif measured.profiles(model, job, kind):
            other_degrees.setdefault(kind, set()).add(worker.degree)
        elif worker.gpu.efficiency is None:
            data_sheet.add(kind)
    notes = [
        f"{kind} at TP {_listed(degrees)}: micro-batches of {job.micro_batch} were not measured, times go on from the "
        "nearest that were"
        for kind, degrees in sorted(beyond.items())
    ]
    notes += [
        f"{kind} at TP {_listed(degrees)} was not measured: the efficiency is that of the nearest degree that was"
        for kind, degrees in sorted(other_degrees.items())
    ]
    if data_sheet:
        notes.append(
            f"speed of {', '.join(sorted(data_sheet))} is from the data sheet at a default efficiency, not measured"
        )
        notes += [note for kind in sorted(data_sheet) if (note := _shape_note(measured, kind, model, job))]
    return tuple(notes)


def _shape_note(measured: Measurements, kind: str, model: ModelSpec, job: TrainingJob) -> str | None:
    """Why the profiles of a kind do not hold: what the nearest of their shapes differs in."""
    wanted = asdict(ModelShape.of(model, job))
    differences: list[list[str]] = [
        [f"{key} {value} (here {wanted[key]})" for key, value in asdict(shape).items() if value != wanted[key]]
        for shape in dict.fromkeys(shape for shape, other, _ in measured.training if other == kind)
    ]
    if not differences:
        return None
    nearest = min(differences, key=len)
    return f"the profiles of {kind} are of another shape: {', '.join(nearest)}"


def _listed(degrees: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(degrees)))
