"""Gradients and weights of one rank: fp32 sums by sharing group, the all-reduce over it, and AdamW.

What travels when, exactly (the cost model imitates this): when a rank has ended its last backward pass of the step it
starts one sum all-reduce for each of its sharings (`groups.sharings`: last blocks first, then the embedding, a tied
embedding last), one message of all their gradients in the compute dtype, without waiting for the one before. It updates
its weights when all have ended. So all-reduces overlap with the passes of stages that end later and with one another,
and not with this rank's own passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetsched.executor.communication import present
from hetsched.executor.groups import Ranks, Sharing, unit_of

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1


@dataclass(frozen=True, slots=True)
class Bucket:
    """The gradients that one group shares: `flat` (elements,) in fp32, `views` into it by parameter name."""

    group: dist.ProcessGroup | None
    flat: Tensor
    views: dict[str, Tensor]


def make_buckets(
    parameters: Mapping[str, nn.Parameter],
    tied: bool,
    sharings: Sequence[Sharing],
    groups: Mapping[Ranks, dist.ProcessGroup],
) -> tuple[Bucket, ...]:
    """Buckets for these parameters, in the order of `sharings`; gradients of backward passes add up in them."""
    buckets = []
    for sharing in sharings:
        names = [name for name in sorted(parameters) if unit_of(name, tied) in sharing.units]
        if not names:
            continue
        sizes = [parameters[name].numel() for name in names]
        flat = torch.zeros(sum(sizes), dtype=torch.float32, device=parameters[names[0]].device)
        pieces = zip(names, torch.split(flat, sizes), strict=True)
        views = {name: piece.view(parameters[name].shape) for name, piece in pieces}
        for name, view in views.items():
            _accumulate(parameters[name], view)
        buckets.append(Bucket(groups.get(sharing.ranks), flat, views))
    return tuple(buckets)


def _accumulate(parameter: nn.Parameter, view: Tensor) -> None:
    def add(ready: Tensor) -> None:
        view.add_(present(ready.grad))
        ready.grad = None

    parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]


def all_reduce(buckets: Sequence[Bucket], dtype: torch.dtype) -> None:
    """Add every bucket up over its group, all at once; `dtype` is what travels."""
    started: list[tuple[Bucket, Tensor, dist.Work]] = []
    for bucket in buckets:
        if bucket.group is not None:
            message = bucket.flat.to(dtype)  # the bucket itself in fp32
            work = present(dist.all_reduce(message, group=bucket.group, async_op=True))
            started.append((bucket, message, work))
    for bucket, message, work in started:
        work.wait()
        if message is not bucket.flat:
            bucket.flat.copy_(message)


class AdamW:
    """AdamW (arXiv 1711.05101) on fp32 weights; where the model computes in `dtype` of less, they are kept beside it.

    Made while `parameters` are still in fp32.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype, learning_rate: float) -> None:
        self._parameters = dict(parameters)
        self._masters: dict[str, Tensor] = {
            name: parameter if dtype == torch.float32 else parameter.detach().clone()
            for name, parameter in parameters.items()
        }
        self._optimizer = torch.optim.AdamW(
            list(self._masters.values()), lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )

    @torch.no_grad()
    def step(self, buckets: Sequence[Bucket]) -> None:
        """Update the weights by the gradients in `buckets`, and set those to zero."""
        for bucket in buckets:
            for name, view in bucket.views.items():
                self._masters[name].grad = view
        self._optimizer.step()
        for name, master in self._masters.items():
            master.grad = None
            if master is not self._parameters[name]:
                self._parameters[name].copy_(master)
        for bucket in buckets:
            bucket.flat.zero_()
