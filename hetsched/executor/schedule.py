"""The order of forward and backward passes on one stage, as plain data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hetsched.errors import HetschedError


@dataclass(frozen=True, slots=True)
class Action:
    """One pass of one micro-batch through a stage."""

    kind: Literal["forward", "backward"]
    micro_batch: int


def in_flight(schedule: str, stage: int, depth: int, micro_batches: int) -> int:
    """The most micro-batches whose forward pass is done and whose backward pass is not."""
    return min(depth - stage, micro_batches) if schedule == "1f1b" else micro_batches


def actions(schedule: str, stage: int, depth: int, micro_batches: int) -> tuple[Action, ...]:
    """What stage `stage` of `depth` does in an iteration, in order. `schedule` is `1f1b` or `gpipe`."""
    match schedule:
        case "1f1b":
            return tuple(one_forward_one_backward(stage, depth, micro_batches))
        case "gpipe":
            return tuple(gpipe(micro_batches))
    raise HetschedError(f"run: the schedule is {schedule!r}", hint="use 1f1b or gpipe")


def one_forward_one_backward(stage: int, depth: int, micro_batches: int) -> Iterator[Action]:
    """1F1B (PipeDream-Flush, arXiv 2006.09503): backward passes start as soon as they can, and free their memory."""
    warm_up = in_flight("1f1b", stage, depth, micro_batches) - 1
    steady = micro_batches - warm_up
    for number in range(warm_up):
        yield Action("forward", number)
    for number in range(steady):
        yield Action("forward", warm_up + number)
        yield Action("backward", number)
    for number in range(steady, micro_batches):  # cool-down
        yield Action("backward", number)


def gpipe(micro_batches: int) -> Iterator[Action]:
    """GPipe (arXiv 1811.06965): all forward passes, then all backward passes, first micro-batch first."""
    for number in range(micro_batches):
        yield Action("forward", number)
    for number in range(micro_batches):
        yield Action("backward", number)
