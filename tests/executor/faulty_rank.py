"""A rank with a fault, named by the first argument: what `check` and the launcher must notice."""

import os
import signal
import sys
from dataclasses import replace
from typing import Any

from torch import Tensor

from hetsched.executor import checkpoint, shards, train
from hetsched.executor.__main__ import main
from hetsched.executor.groups import TIED
from hetsched.executor.reduction import PlainReduction
from hetsched.executor.stage import StageWorker


def average_pipelines_as_if_equal() -> None:
    """Each pipeline takes the mean of its own samples, and all means count alike."""
    right = StageWorker._loss

    def loss(self: Any, logits: Tensor, targets: Tensor, numbers: range) -> Tensor:
        job, pipelines = self._plan.workload, self._plan.pipelines
        own = self._seat.micro_batches * job.micro_batch
        share: float = job.global_batch / (own * len(pipelines))
        return right(self, logits, targets, numbers) * share

    StageWorker._loss = loss  # type: ignore[method-assign]


def forget_the_tied_embedding() -> None:
    """Its gradient is not added up."""

    def without_tied(buckets: Any) -> PlainReduction:
        names = [{home.slice.name for home in bucket.homes} for bucket in buckets]
        return PlainReduction([bucket for bucket, held in zip(buckets, names, strict=True) if TIED not in held])

    train.PlainReduction = without_tied  # type: ignore[assignment,attr-defined]


def die_in_the_third_step() -> None:
    """Rank 2 is killed as the system out of memory would."""
    right = StageWorker.run_step

    def run_step(self: Any, step: int) -> Tensor:
        if step == 2 and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return right(self, step)

    StageWorker.run_step = run_step  # type: ignore[method-assign]


def reduce_the_first_rows_with_whoever_has_them() -> None:
    """Stages of unequal degrees reduce their parts as if they were equal, as released runtimes do."""
    right = shards.piece_of

    def piece_of(spec: Any, name: str, degree: int, place: int) -> Any:
        piece = right(spec, name, degree, place)
        if piece is None or degree == 1:
            return piece
        size = piece.stop - piece.start  # the last device's rows are taken for the first's
        start = (piece.start + size) % piece.whole
        return replace(piece, start=start, stop=start + size)

    shards.piece_of = piece_of


def die_in_the_second_checkpoint() -> None:
    """Rank 1 is killed while it writes."""
    right, begun = checkpoint._state, list[int]()

    def state(*given: Any, first: bool) -> Any:
        begun.append(1)
        if len(begun) == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return right(*given, first=first)

    checkpoint._state = state  # type: ignore[assignment]


FAULTS = {
    "average": average_pipelines_as_if_equal,
    "tied": forget_the_tied_embedding,
    "rows": reduce_the_first_rows_with_whoever_has_them,
    "die_saving": die_in_the_second_checkpoint,
    "die": die_in_the_third_step,
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
