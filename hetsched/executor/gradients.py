"""Gradients and weights of one rank: a bucket for each sharing, and AdamW.

A bucket holds the slices that exactly the same ranks hold, flat, in one order on all of them: their gradients in fp32,
their weights in the compute dtype, and the fp32 weights that AdamW updates. Parameters whose whole is one slice are
views of it.

ZeRO 1 (Rajbhandari et al. 2020, arXiv 1910.02054): each rank of a bucket keeps optimiser states and fp32 weights of an
equal part of it. The all-reduce is then in two: gradients are reduced to each part's owner, updated weights gathered.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from hetsched.executor.collectives import Collectives, make_collectives
from hetsched.executor.communication import present
from hetsched.executor.groups import Seat
from hetsched.executor.shards import Range, Ranks, Sharing, Slice, piece_of
from hetsched.model import ModelSpec

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Home:
    """Where a slice stands: `flat` in its bucket's tensors; from `start` on in this rank's parameter.

    whole: whether the slice is all that this rank has of the parameter; whole_shape: of the parameter in the model.
    """

    slice: Slice
    flat: Range
    shape: tuple[int, ...]
    start: int
    whole: bool
    whole_shape: tuple[int, ...]

    def of(self, parameter: Tensor) -> Tensor:
        """The slice as a view of the parameter, or of its gradient."""
        if self.whole:
            return parameter
        return parameter.narrow(self.slice.dim, self.start, self.shape[self.slice.dim])

    def within(self, bucket: Tensor) -> Tensor:
        """The slice as a view of one of its bucket's flat tensors."""
        return bucket[self.flat[0] : self.flat[1]].view(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """See the module. gradients, weights: (elements,), padded to equal parts; master: (of `own`,), what AdamW updates.

    number: in `sharings`; what its ranks say to one another is tagged with `tags`, the first for `collectives`.
    counted: whether this rank's gradients add to the sum, or are copies of another's; first: whether no lower rank
    holds these slices; collectives: of the group, for tensors like `weights`.
    """

    number: int
    group: dist.ProcessGroup | None
    collectives: Collectives | None
    counted: bool
    first: bool
    homes: tuple[Home, ...]
    gradients: Tensor
    weights: Tensor
    master: Tensor
    own: Range

    @property
    def tags(self) -> tuple[int, int, int]:
        """Of messages: no other bucket's."""
        return tags(self.number)

    @property
    def sharded(self) -> bool:
        """Whether this rank updates a part alone."""
        return self.own != (0, len(self.weights))

    def own_part(self, flat: Tensor) -> Tensor:
        """This rank's part of one of the flat tensors."""
        return flat[self.own[0] : self.own[1]]


def tags(number: int) -> tuple[int, int, int]:
    """See `Bucket`."""
    return 3 * number, 3 * number + 1, 3 * number + 2


def make_buckets(
    parameters: Mapping[str, nn.Parameter],
    spec: ModelSpec,
    seat: Seat,
    sharings: Sequence[Sharing],
    groups: Mapping[Ranks, dist.ProcessGroup],
    *,
    dtype: torch.dtype,
    zero: bool,
    granule: int = 1,
) -> tuple[Bucket, ...]:
    """Buckets of these parameters, in the order of `sharings`; gradients of backward passes add up in them.

    The parameters, in fp32 so far, are in `dtype` afterwards. granule: an equal part of a bucket has a multiple of it.
    """
    buckets = tuple(
        _bucket(parameters, spec, seat, sharing, number, groups, dtype, zero, granule)
        for number, sharing in enumerate(sharings)
        if seat.rank in sharing.ranks
    )
    into: dict[str, list[tuple[Home, Tensor]]] = {}
    for bucket in buckets:
        for home in bucket.homes:
            parameter = parameters[home.slice.name]
            parameter.data = home.within(bucket.weights) if home.whole else parameter.data.to(dtype)
            into.setdefault(home.slice.name, []).append((home, home.within(bucket.gradients)))
    for name, places in into.items():
        _accumulate(parameters[name], places)
    return buckets


def _bucket(
    parameters: Mapping[str, nn.Parameter],
    spec: ModelSpec,
    seat: Seat,
    sharing: Sharing,
    number: int,
    groups: Mapping[Ranks, dist.ProcessGroup],
    dtype: torch.dtype,
    zero: bool,
    granule: int,
) -> Bucket:
    wide = torch.promote_types(dtype, torch.float32)
    homes, held, end = [], [], 0
    for part in sharing.slices:
        parameter = parameters[part.name].detach()
        home = _home(part, parameter, spec, seat, end)
        homes.append(home)
        held.append(home.of(parameter).flatten())
        end = home.flat[1]
    group = groups[sharing.ranks] if sharing.reduced else None
    parts = len(sharing.ranks) if group is not None and (zero or granule > 1) else 1
    each = -(-end // (parts * granule)) * granule
    place = sharing.ranks.index(seat.rank)
    start, stop = (place * each, (place + 1) * each) if zero and parts > 1 else (0, parts * each)
    flat = torch.cat([*held, held[0].new_zeros(parts * each - end)]).to(wide)
    weights = flat.to(dtype)
    master = weights[start:stop] if dtype == wide else flat[start:stop].clone()
    counted = seat.rank in sharing.counted
    first = seat.rank == sharing.ranks[0]
    collectives = None if group is None else make_collectives(group, weights, tags(number)[0])
    gradients = torch.zeros_like(flat)
    return Bucket(number, group, collectives, counted, first, tuple(homes), gradients, weights, master, (start, stop))


def _home(part: Slice, parameter: Tensor, spec: ModelSpec, seat: Seat, first: int) -> Home:
    piece = piece_of(spec, part.name, seat.degree, seat.place)
    shape, model_shape, start = list(parameter.shape), list(parameter.shape), 0
    if piece is not None:
        shape[part.dim], start = part.stop - part.start, part.start - piece.start
        model_shape[part.dim] = piece.whole
    size = math.prod(shape)
    whole = size == parameter.numel()
    return Home(part, (first, first + size), tuple(shape), start, whole, tuple(model_shape))


def _accumulate(parameter: nn.Parameter, places: Sequence[tuple[Home, Tensor]]) -> None:
    def add(ready: Tensor) -> None:
        gradient = present(ready.grad)
        for home, into in places:
            into.add_(home.of(gradient))
        ready.grad = None

    parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]


class AdamW:
    """AdamW (arXiv 1711.05101) on the buckets' fp32 weights. means, squares: of the gradients, one a bucket.

    By torch's function, not its class, which takes a process 2.5 s to make.
    """

    def __init__(self, buckets: Sequence[Bucket], parameters: Mapping[str, nn.Parameter], learning_rate: float) -> None:
        self._buckets, self._parameters, self._learning_rate = buckets, parameters, learning_rate
        self.means = [torch.zeros_like(bucket.master) for bucket in buckets]
        self.squares = [torch.zeros_like(bucket.master) for bucket in buckets]
        self._steps = [torch.zeros((), device=bucket.master.device) for bucket in buckets]

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights by the gradients in the buckets, and set those to zero."""
        adamw(
            [bucket.master for bucket in self._buckets],
            [bucket.own_part(bucket.gradients) for bucket in self._buckets],
            self.means,
            self.squares,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=self._learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY,
            eps=EPSILON,
        )
        gathered = []
        for bucket in self._buckets:
            bucket.gradients.zero_()
            own = bucket.own_part(bucket.weights)
            if own.dtype != bucket.master.dtype:
                own.copy_(bucket.master)
            if bucket.sharded:
                gathered.append(present(bucket.collectives).all_gather(bucket.weights))
        for work in gathered:
            work.wait()
        self._spread()

    @torch.no_grad()
    def resume(self, steps: int) -> None:
        """Go on after so many steps, from the weights and moments that the buckets have been given."""
        for count in self._steps:
            count.fill_(steps)
        self._spread()

    def _spread(self) -> None:
        """Copy the buckets' weights to the parameters that are no views of them."""
        for bucket in self._buckets:
            for home in bucket.homes:
                if not home.whole:
                    home.of(self._parameters[home.slice.name]).copy_(home.within(bucket.weights))
