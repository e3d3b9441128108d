"""What the devices of a tensor-parallel stage say to one another inside a pass (arXiv 1909.08053, section 3).

A `Team` of one device says nothing. All devices of a team hold the same activations between blocks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from hetsched.executor.shards import Range


@dataclass(frozen=True, slots=True)
class Team:
    """The place of this device among the `degree` of its stage; group: None where it is alone."""

    degree: int = 1
    place: int = 0
    group: dist.ProcessGroup | None = None


ALONE = Team()


class _Enter(torch.autograd.Function):
    """Megatron's f."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Leave(torch.autograd.Function):
    """Megatron's g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def enter(x: Tensor, team: Team) -> Tensor:
    """Into the part that each device does alone: the same x forwards, the sum of all gradients backwards."""
    if team.group is None:
        return x
    y: Tensor = _Enter.apply(x, team.group)  # type: ignore[no-untyped-call]
    return y


def leave(x: Tensor, team: Team) -> Tensor:
    """Out of it: the sum of all devices' x forwards, the same gradient backwards."""
    if team.group is None:
        return x
    y: Tensor = _Leave.apply(x, team.group)  # type: ignore[no-untyped-call]
    return y


def embed(tokens: Tensor, weight: Tensor, rows: Range, team: Team) -> Tensor:
    """Embeddings of token ids (micro-batch, sequence) by a table of which this device has `rows`."""
    if team.group is None:
        return functional.embedding(tokens, weight)
    elsewhere = (tokens < rows[0]) | (tokens >= rows[1])
    found = functional.embedding((tokens - rows[0]).masked_fill(elsewhere, 0), weight)
    return leave(found.masked_fill(elsewhere[..., None], 0.0), team)


def cross_entropy(logits: Tensor, targets: Tensor, columns: Range, team: Team) -> Tensor:
    """Loss of each token (tokens,), in fp32 or more; logits: (tokens, this device's `columns` of the vocabulary).

    log Σ exp(logit) - logit of the target, both added up over the devices; the logits never meet in one place.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if team.group is None:
        return functional.cross_entropy(logits, targets, reduction="none")
    largest = logits.detach().amax(dim=-1)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=team.group)
    shifted = logits - largest[:, None]
    elsewhere = (targets < columns[0]) | (targets >= columns[1])
    place = (targets - columns[0]).masked_fill(elsewhere, 0)
    right = shifted.gather(1, place[:, None])[:, 0].masked_fill(elsewhere, 0.0)
    total, right = leave(torch.stack((shifted.exp().sum(dim=-1), right)), team).unbind()
    return total.log() - right
