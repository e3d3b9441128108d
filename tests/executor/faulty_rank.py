"""A rank with a fault, named by the first argument: what `check` and the launcher must notice."""

import os
import signal
import sys
from typing import Any

from torch import Tensor

from hetsched.executor import train
from hetsched.executor.__main__ import main
from hetsched.executor.gradients import all_reduce
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

    def without_tied(buckets: Any, dtype: Any) -> None:
        all_reduce([bucket for bucket in buckets if "embedding.tokens.weight" not in bucket.views], dtype)

    train.all_reduce = without_tied  # type: ignore[attr-defined]


def die_in_the_second_step() -> None:
    """Rank 2 is killed as the system out of memory would."""
    right = StageWorker.run_step

    def run_step(self: Any, step: int) -> Tensor:
        if step == 1 and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return right(self, step)

    StageWorker.run_step = run_step  # type: ignore[method-assign]


FAULTS = {
    "average": average_pipelines_as_if_equal,
    "tied": forget_the_tied_embedding,
    "die": die_in_the_second_step,
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
