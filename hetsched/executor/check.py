"""The proof that a run computes what one process would: every loss, and every rank's copy of every gradient.

The reference is deliberately plain: the whole model, the whole batch, torch's own loss and optimiser; no schedule, no
messages, no buckets.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hetsched.executor.data import ByteText, Epochs
from hetsched.executor.gradients import BETAS, WEIGHT_DECAY
from hetsched.executor.groups import seats
from hetsched.executor.model import Transformer
from hetsched.executor.settings import CheckReport, RunReport, RunSettings
from hetsched.plan import Plan

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5
TENSOR_TOLERANCE = 1e-4
PRECISE = 1e-6  # times these tolerances in fp64
LEAST_SHARE = 1e-4  # of the total norm: a smaller tensor is judged by the absolute difference alone
SEQUENCES_AT_ONCE = 16

Gradients = dict[str, Tensor]
Held = Mapping[str, list[tuple[int, int, int, Tensor]]]  # slices: dim, start, stop (0: all), gradient


def reference(plan: Plan, settings: RunSettings) -> Iterator[tuple[float, Gradients]]:
    """Loss and gradients by name of each step of one process, on the CPU in fp32, or fp64 where asked for."""
    job = plan.workload
    text, epochs = ByteText(settings.text), Epochs(settings.epoch_steps, settings.seed)
    model = Transformer(plan.model, (0, plan.model.num_layers))
    model.initialise(settings.seed)
    if settings.dtype == "fp64":
        model.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    for step in range(settings.steps):
        optimizer.zero_grad()
        total = 0.0
        for first in range(0, job.global_batch, SEQUENCES_AT_ONCE):
            numbers = range(first, min(first + SEQUENCES_AT_ONCE, job.global_batch))
            inputs, targets = text.samples(epochs.batch(step) * job.global_batch, numbers, job.seq_len)
            logits = model(inputs).flatten(0, 1)
            loss = functional.cross_entropy(logits, targets.flatten()) * (len(numbers) / job.global_batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        yield total, gradients
        optimizer.step()


@dataclass(frozen=True, slots=True)
class Difference:
    """One rank's copy of one gradient against the reference; see CheckReport for the two measures."""

    what: str
    absolute: float
    relative: float


def differences(found: Held, expected: Gradients, whose: str) -> Iterator[Difference]:
    """How far each slice of a rank's gradients is from the reference's."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    total_norm = sum(float(gradient.norm()) ** 2 for gradient in expected.values()) ** 0.5
    for name, slices in found.items():
        for dim, start, stop, gradient in slices:
            right = expected[name].narrow(dim, start, stop - start) if stop else expected[name]
            apart = gradient - right
            norm = float(right.norm())
            counts = norm > LEAST_SHARE * total_norm
            yield Difference(
                f"{name}{f'[{start}:{stop}]' if stop else ''} on {whose}",
                absolute=_number(apart.abs().max()) / largest,
                relative=_number(apart.norm()) / norm if counts else 0.0,
            )


def missing(held: Iterable[Held], expected: Gradients) -> Iterator[str]:
    """Parameters of which no rank holds some element."""
    seen = {name: torch.zeros(gradient.shape, dtype=torch.bool) for name, gradient in expected.items()}
    for slices in held:
        for name, parts in slices.items():
            for dim, start, stop, _ in parts:
                (seen[name].narrow(dim, start, stop - start) if stop else seen[name]).fill_(True)
    yield from sorted(name for name, all_seen in seen.items() if not all_seen.all())


def compare(plan: Plan, settings: RunSettings, run: RunReport, gradients_from: Path) -> CheckReport:
    """Judge a run by the reference. `gradients_from`: where its ranks left the first and the last step's gradients."""
    losses: list[float] = []
    found: list[Difference] = []
    failures: list[str] = []
    scale = PRECISE if settings.dtype == "fp64" else 1.0
    for step, (loss, expected) in enumerate(reference(plan, settings)):
        losses.append(loss)
        if step not in (0, settings.steps - 1):
            continue
        held = [
            torch.load(gradients_from / f"rank-{seat.rank}-step-{step}.pt", weights_only=True) for seat in seats(plan)
        ]
        for seat, slices in zip(seats(plan), held, strict=True):
            found += differences(slices, expected, f"{seat.device}, step {step}")
        failures += [f"step {step}: no rank holds all of {name}" for name in missing(held, expected)]
    apart = [_apart(a, b) for a, b in zip(run.losses, losses, strict=True)]
    for step, relative in enumerate(apart):
        if not relative <= LOSS_TOLERANCE * scale:
            failures.append(f"step {step}: the loss is {run.losses[step]:.7g}, one process has {losses[step]:.7g}")
    for difference in found:
        if not difference.absolute <= GRADIENT_TOLERANCE * scale:
            failures.append(f"gradient of {difference.what}: off by {difference.absolute:.2g} of the largest gradient")
        elif not difference.relative <= TENSOR_TOLERANCE * scale:
            failures.append(f"gradient of {difference.what}: off by {difference.relative:.2g} of its norm")
    worst = max(found, key=lambda difference: difference.relative)
    return CheckReport(
        run=run,
        reference_losses=tuple(losses),
        loss_difference=max(apart),
        gradient_difference=max(difference.absolute for difference in found),
        tensor_difference=worst.relative,
        worst_tensor=worst.what,
        copies=len(found),
        failures=tuple(failures),
    )


def _number(value: Tensor) -> float:
    number = float(value)
    return float("inf") if math.isnan(number) else number  # as far off as can be


def _apart(value: float, expected: float) -> float:
    apart = abs(value - expected) / abs(expected)
    return float("inf") if math.isnan(apart) else apart
