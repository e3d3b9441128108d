"""The training loop of one rank."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.errors import HetschedError
from hetsched.executor.communication import all_gather, present
from hetsched.executor.data import ByteText
from hetsched.executor.gradients import AdamW, Bucket, make_buckets
from hetsched.executor.groups import make_groups, seats, sharings
from hetsched.executor.model import Transformer
from hetsched.executor.reduction import ROW, CompressedReduction, PlainReduction
from hetsched.executor.settings import RunSettings, StepReport
from hetsched.executor.stage import StageWorker
from hetsched.executor.tensor_parallel import Team
from hetsched.plan import FULL_BITS, Plan

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a rank computes and in what precision."""

    device: torch.device
    dtype_name: str

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return DTYPES[self.dtype_name]

    @property
    def backend(self) -> str:
        """The back end that moves its messages."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def synchronise(self) -> None:
        """Wait for the device, where it runs behind the host."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_target(plan: Plan, settings: RunSettings, local_rank: int, local_world_size: int) -> Target:
    """The device of this rank, one of `local_world_size` on its machine, and the dtype; or HetschedError."""
    gpus = torch.cuda.device_count()
    if settings.device == "cuda" and gpus < local_world_size:
        raise HetschedError(
            f"run: {local_world_size} processes on this machine and {gpus} CUDA devices",
            hint="run with device cpu, or where each process has a GPU",
        )
    cuda = settings.device == "cuda" or (settings.device == "auto" and gpus >= local_world_size)
    dtype = settings.dtype or (plan.workload.dtype if cuda else "fp32")
    if dtype not in DTYPES:
        raise HetschedError(
            f"run: training in {dtype} needs loss scaling, which this version does not do",
            hint="use dtype bf16 or fp32",
        )
    return Target(torch.device("cuda", local_rank) if cuda else torch.device("cpu"), dtype)


def train(
    plan: Plan,
    settings: RunSettings,
    target: Target,
    report: Callable[[StepReport], None],
    gradients_to: Path | None = None,
) -> None:
    """Train this rank's part of the plan; the default process group is there, with a rank for each device.

    report: is given every step when its loss is known, while the next one goes on. gradients_to: a folder for this
    rank's gradients of the first and the last step, as `rank-R-step-S.pt`, for `check`.
    """
    rank = dist.get_rank()
    seat = seats(plan)[rank]
    groups = make_groups(plan, rank, target.device)
    team = Team(seat.degree, seat.place, groups.team)
    model = Transformer(plan.model, seat.layers, recompute=plan.options.recompute, team=team)
    model.initialise(settings.seed)
    if settings.weights is not None:
        from hetsched.executor.weights import read_weights  # loads much of torch

        read_weights(settings.weights, model)
    model.to(target.device)
    parameters = model.global_parameters()
    grad_bits = plan.options.compression.grad_bits
    plain = grad_bits == FULL_BITS
    buckets = make_buckets(
        parameters,
        plan.model,
        seat,
        sharings(plan),
        groups.sharing,
        dtype=target.dtype,
        zero=plan.options.zero > 0,
        granule=1 if plain else ROW,
    )
    reduce = PlainReduction(buckets) if plain else CompressedReduction(buckets, grad_bits, settings.seed + rank)
    optimizer = AdamW(buckets, parameters, settings.learning_rate)
    done = 0
    if settings.resume_from is not None:
        from hetsched.executor.checkpoint import load_checkpoint

        done = load_checkpoint(settings.resume_from, plan, buckets, optimizer)
    worker = StageWorker(plan, seat, model, ByteText(settings.text), groups, settings)
    last = done + settings.steps - 1
    worker.expect_early(done)
    dist.all_reduce(torch.zeros((), device=target.device))  # a barrier before the first step
    clock, losses = _Clock(target), _Losses(report)
    for step in range(done, last + 1):
        waited_s, sent_bytes = worker.waited_s, worker.sent_bytes
        reduce.expect()
        loss = worker.run_step(step)
        schedule_s = clock.lap()
        if step < last:
            worker.expect_early(step + 1)
        worker.finish_sends()  # first: others wait for what the gradients would slow down
        grad_bytes = reduce()
        all_reduce_s = clock.lap()
        if gradients_to is not None and step in (done, last):
            save_gradients(buckets, gradients_to / f"rank-{rank}-step-{step}.pt")
        optimizer.step()
        optimizer_s = clock.lap()
        losses.add(
            loss,
            StepReport(
                step=step,
                loss=0.0,
                iteration_s=clock.iteration(),
                schedule_s=schedule_s,
                wait_s=worker.waited_s - waited_s,
                all_reduce_s=all_reduce_s,
                optimizer_s=optimizer_s,
                activation_bytes=worker.sent_bytes[0] - sent_bytes[0],
                activation_grad_bytes=worker.sent_bytes[1] - sent_bytes[1],
                grad_bytes=grad_bytes,
            ),
        )
        if settings.checkpoint_to is not None and (
            step == last or (step + 1) % (settings.checkpoint_every or step + 2) == 0
        ):
            from hetsched.executor.checkpoint import save_checkpoint

            save_checkpoint(settings.checkpoint_to, plan, buckets, optimizer, step + 1)
            clock.iteration()
    losses.finish()
    if settings.checkpoint_to is not None and settings.save_weights is not None and rank == 0:
        from hetsched.executor.weights import write_weights

        write_weights(settings.checkpoint_to, plan.model, settings.save_weights)


def save_gradients(buckets: tuple[Bucket, ...], path: Path) -> None:
    """Write a rank's gradients as {parameter: [(dim, start, stop, gradient)]}; whole or not at all."""
    gradients: dict[str, list[tuple[int, int, int, Tensor]]] = {}
    for bucket in buckets:
        if bucket.sharded:
            all_gather(bucket.gradients, bucket.own_part(bucket.gradients).clone(), present(bucket.group))
        for home in bucket.homes:
            part = home.slice
            gradient = home.within(bucket.gradients).cpu().clone()
            gradients.setdefault(part.name, []).append((part.dim, part.start, part.stop, gradient))
    half = path.with_suffix(".tmp")
    torch.save(gradients, half)
    os.replace(half, path)


class _Losses:
    """Adds up each step's loss over all ranks while the next step goes on, and then reports it.

    A sum that everyone waits for would cost every step some round trips between the farthest ranks.
    """

    def __init__(self, report: Callable[[StepReport], None]) -> None:
        self._report = report
        self._under_way: tuple[Tensor, dist.Work, StepReport] | None = None

    def add(self, share: Tensor, step: StepReport) -> None:
        """Start to add up this rank's share of a step's loss; the step before is reported."""
        self.finish()
        self._under_way = share, present(dist.all_reduce(share, async_op=True)), step

    def finish(self) -> None:
        """Report what is under way."""
        if self._under_way is not None:
            total, work, step = self._under_way
            work.wait()
            self._under_way = None
            self._report(replace(step, loss=float(total.item())))


class _Clock:
    """Times the parts of a step, and steps from one's end to the next's."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._step_began = self._lap_began = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap or step began."""
        self._target.synchronise()
        now = time.perf_counter()
        lap_s, self._lap_began = now - self._lap_began, now
        return lap_s

    def iteration(self) -> float:
        """Seconds since the step began; the next one begins."""
        now = time.perf_counter()
        iteration_s = now - self._step_began
        self._step_began = self._lap_began = now
        return iteration_s
