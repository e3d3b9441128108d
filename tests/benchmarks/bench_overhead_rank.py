"""A rank that trains a pipeline twice at once: a step by torch alone, a step by the executor, and so on.

Torch alone is `torch.distributed.pipelining`, autograd's own gradients and torch's AdamW, on the same model, samples
and loss. Takes the words of `python -m hetsched.executor`; leaves both programs' times and losses in TIMES_TO.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional

from hetsched.executor import train
from hetsched.executor.__main__ import main
from hetsched.executor.data import ByteText
from hetsched.executor.gradients import BETAS, EPSILON, WEIGHT_DECAY
from hetsched.executor.model import Transformer
from hetsched.executor.settings import RunSettings
from hetsched.executor.stage import StageWorker
from hetsched.plan import Plan

TIMES_TO = "OVERHEAD_TIMES_TO"


class TorchAlone:
    """The other program."""

    def __init__(self, plan: Plan, rank: int) -> None:
        (pipeline,), self._job, settings = plan.pipelines, plan.workload, RunSettings()
        self._model, self._text, self._first = (
            Transformer(plan.model, pipeline.stages[rank].layers),
            ByteText(),
            not rank,
        )
        self._model.initialise(settings.seed)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), settings.learning_rate, BETAS, EPSILON, WEIGHT_DECAY, fused=True
        )
        stage = PipelineStage(self._model, rank, len(pipeline.stages), torch.device("cpu"))
        self._schedule = Schedule1F1B(stage, pipeline.micro_batches, loss_fn=self._loss)

    def step(self, step: int) -> float:
        """Train a step; returns the loss, on the last stage."""
        job, losses = self._job, list[Tensor]()
        inputs, targets = self._text.samples(step * job.global_batch, range(job.global_batch), job.seq_len)
        if self._first:
            self._schedule.step(inputs)
        else:
            self._schedule.step(target=targets, losses=losses)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(torch.stack(losses).mean()) if losses else 0.0

    @staticmethod
    def _loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


class InTurn(StageWorker):
    """The executor's, which lets torch alone do each step first."""

    def __init__(self, plan: Plan, *given: Any) -> None:
        super().__init__(plan, *given)
        self._rank = dist.get_rank()
        self._other, self._began = TorchAlone(plan, self._rank), 0.0
        self._told: dict[str, list[float]] = {"ours_s": [], "torch_s": [], "losses": []}

    def run_step(self, step: int) -> Tensor:
        """See the module. What the executor takes is from here to here."""
        if step:
            self._told["ours_s"].append(time.perf_counter() - self._began)
        dist.barrier()
        began = time.perf_counter()
        self._told["losses"].append(self._other.step(step))
        self._told["torch_s"].append(time.perf_counter() - began)
        path = Path(os.environ[TIMES_TO]) / f"rank-{self._rank}.json"
        path.write_text(json.dumps(self._told), encoding="utf-8")
        dist.barrier()
        self._began = time.perf_counter()
        return super().run_step(step)


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):  # where it may, little else comes between
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    train.StageWorker = InTurn  # type: ignore[assignment,attr-defined]
    sys.exit(main(sys.argv[1:]))
