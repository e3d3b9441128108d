"""One rank of torch's own pipelining on a stage of a plan: a second opinion on loss and gradients."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional

from hetsched.executor.__main__ import read_plan
from hetsched.executor.data import ByteText
from hetsched.executor.model import Transformer


def main(folder: Path) -> None:
    rank, device = int(os.environ["RANK"]), torch.device("cpu")
    plan = read_plan(folder / "plan.json")
    (pipeline,) = plan.pipelines
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=len(pipeline.stages)
    )
    model = Transformer(plan.model, pipeline.stages[rank].layers)
    model.initialise(seed=0)
    job = plan.workload
    inputs, targets = ByteText().samples(0, range(job.global_batch), job.seq_len)

    def loss_of(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    stage = PipelineStage(model, rank, len(pipeline.stages), device)
    schedule = Schedule1F1B(stage, pipeline.micro_batches, loss_fn=loss_of)
    losses: list[Tensor] = []
    if rank == 0:
        schedule.step(inputs)
    else:
        schedule.step(target=targets, losses=losses)
    gradients = {name: p.grad for name, p in model.global_parameters().items()}
    mean = torch.stack(losses).mean().detach() if losses else None
    torch.save({"loss": mean, "gradients": gradients}, folder / f"opinion-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
