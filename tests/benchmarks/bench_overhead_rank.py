"""A rank of a pipeline by torch alone: `torch.distributed.pipelining`, autograd's own gradients, torch's AdamW.

Takes the words of `python -m hetsched.executor`, and says what that says, for the words that the bench gives. With
--ours first it is that program, in the same conditions.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional

from hetsched.executor.__main__ import main, read_plan
from hetsched.executor.data import ByteText
from hetsched.executor.gradients import BETAS, EPSILON, WEIGHT_DECAY
from hetsched.executor.model import Transformer
from hetsched.executor.settings import RunSettings, StepReport

OURS = "--ours"


def train(words: list[str]) -> None:
    """Train as the executor does: the same model, samples, loss and optimiser."""
    given = dict(zip(words[::2], words[1::2], strict=False))  # the last word has no value
    rank, steps = int(os.environ["RANK"]), int(given["--steps"])
    plan = read_plan(Path(given["--plan"]))
    (pipeline,), job, settings = plan.pipelines, plan.workload, RunSettings()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=given["--init-method"], rank=rank, world_size=len(pipeline.stages))
    model = Transformer(plan.model, pipeline.stages[rank].layers)
    model.initialise(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, BETAS, EPSILON, WEIGHT_DECAY, fused=True)
    stage = PipelineStage(model, rank, len(pipeline.stages), torch.device("cpu"))

    def loss_of(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    schedule, text = Schedule1F1B(stage, pipeline.micro_batches, loss_fn=loss_of), ByteText()
    with open(Path(given["--output"]) / f"rank-{rank}.jsonl", "w", encoding="utf-8") as stream:
        stream.write(json.dumps({"device": "cpu", "dtype": "fp32"}) + "\n")
        dist.all_reduce(torch.zeros(()))
        began = time.perf_counter()
        for step in range(steps):
            losses: list[Tensor] = []
            inputs, targets = text.samples(step * job.global_batch, range(job.global_batch), job.seq_len)
            if rank == 0:
                schedule.step(inputs)
            else:
                schedule.step(target=targets, losses=losses)
            schedule_s = time.perf_counter() - began
            optimizer.step()
            optimizer.zero_grad()
            loss = float(torch.stack(losses).mean()) if losses else 0.0
            began, ended = time.perf_counter(), time.perf_counter() - began
            report = StepReport(step, loss, ended, schedule_s, 0.0, 0.0, ended - schedule_s)
            stream.write(json.dumps(asdict(report)) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):  # where it may, little else comes between
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    if sys.argv[1] == OURS:
        sys.exit(main(sys.argv[2:]))
    train(sys.argv[1:])
