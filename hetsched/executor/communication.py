"""Messages between neighbouring stages: plain isend and irecv, one direction a process group.

What overlaps with what, exactly (the cost model imitates this):

- A message is a tensor (micro-batch, sequence, hidden) in the compute dtype: an activation forwards, its gradient
  backwards. Each device of the receiving stage gets its part, a range of tokens, from one device of the sending stage,
  and the receiving devices gather the parts among themselves before the pass that needs them (Narayanan et al. 2021,
  arXiv 2104.04473, section 4.1). So each token crosses a boundary once, whatever the tensor-parallel degrees. The two
  directions of a boundary, and different boundaries, never wait for one another.
- A send starts when the pass that made the tensor ends, and never holds up the sender's next action.
- A receive is posted ahead of its use. gloo's sender waits for word of that, a trip across the network: there as many
  stand posted as can be on their way, from the end of the step before on. So a message travels as soon as it is sent.
  NCCL's does not: while micro-batch m of one direction is worked on, the receives of m + 1 and m + 2 are posted.
- A stage waits only when its next action needs a tensor that has not come: before a forward pass for the activation,
  before a backward pass for the gradient.
- Messages of one direction of one boundary arrive in micro-batch order.
- What is compressed (`compression`) is so before it is sent, and again whole before the parts are gathered.

In a plan without `overlap` each receiving device gets the whole tensor, and a stage does nothing until what it sends
has left, as the pipeline engines of Megatron-LM and DeepSpeed do.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.executor.compression import Codec, Rows
from hetsched.executor.groups import Channel
from hetsched.executor.shards import Range, cut
from hetsched.executor.tensor_parallel import Team

RECEIVES_AHEAD = 2  # where the sender needs no word of them
T = TypeVar("T")
MakeCodec = Callable[[Rows], Codec]


def present(value: T | None) -> T:
    """What torch returns, except to ranks outside the group or for tensors without gradients."""
    if value is None:
        raise AssertionError("torch returned nothing where it must return something")
    return value


def all_gather(parts: Tensor, own: Tensor, group: dist.ProcessGroup) -> None:
    """Fill `parts`, one equal part a rank of the group, with every rank's `own`."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    gather(parts, own, group=group)


def reduce_scatter(own: Tensor, parts: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Start to fill every rank's `own` with the sum of all ranks' tensors for it; `parts` has one a rank."""
    reduce = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its name before torch 2.13
    work: dist.Work = reduce(own, parts, group=group, async_op=True)
    return work


def asks_first(group: dist.ProcessGroup | None) -> bool:
    """Whether a message waits at its sender until word has come that its receive is posted, as gloo's do."""
    return dist.get_backend(group) == "gloo"


def part_of(tokens: int, team_size: int, part: int, overlap: bool) -> Range:
    """Which tokens of a tensor the receiving device `part` gets from the stage before."""
    return cut(tokens, team_size, part) if overlap else (0, tokens)


class Inbox:
    """Tensors (tokens, hidden) from a neighbouring stage, in micro-batch order, whole on each device of the team.

    bound: the most that can be on their way; `waited_s` adds up the host time spent waiting for them.
    """

    def __init__(
        self, channel: Channel, team: Team, shape: Rows, make: MakeCodec, bound: int, overlap: bool = True
    ) -> None:
        first, last = part_of(shape[0], team.degree, channel.part, overlap)
        self._channel, self._team, self._shape, self._overlap = channel, team, shape, overlap
        self._codec = make((last - first, shape[1]))
        self._ahead = bound if asks_first(channel.group) else RECEIVES_AHEAD
        self._posted: deque[tuple[int, Tensor, dist.Work]] = deque()
        self._to_post: Iterator[int] = iter(())
        self.waited_s = 0.0

    def expect(self, keys: Iterable[int]) -> None:
        """Start a step of messages for the samples `keys`: post the first receives."""
        self._to_post = iter(keys)
        for _ in range(self._ahead):
            self._post()

    def take(self) -> Tensor:
        """The next tensor; waits for it, and posts a receive in its stead."""
        key, message, work = self._posted.popleft()
        start = time.perf_counter()
        work.wait()
        self.waited_s += time.perf_counter() - start
        self._post()
        own = self._codec.decode(message, key)
        return self._gathered(own) if self._overlap and self._team.group is not None else own

    def _post(self) -> None:
        key = next(self._to_post, None)
        if key is not None:
            message = self._codec.blank(key)
            work = present(dist.irecv(message, self._channel.source, group=self._channel.group))
            self._posted.append((key, message, work))

    def _gathered(self, own: Tensor) -> Tensor:
        """The whole tensor of which each device of the team has its own part; parts travel as long as the longest."""
        tokens, hidden = self._shape
        degree = self._team.degree
        longest = -(-tokens // degree)
        if len(own) < longest:
            own = torch.cat((own, own.new_zeros(longest - len(own), hidden)))
        parts = own.new_empty(degree, longest, hidden)
        all_gather(parts.view(-1, hidden), own, present(self._team.group))
        if tokens == degree * longest:
            return parts.view(tokens, hidden)
        sizes = [last - first for first, last in (cut(tokens, degree, place) for place in range(degree))]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class Outbox:
    """Tensors (tokens, hidden) to a neighbouring stage. Each is kept alive until it is sent.

    channels: to those of its devices that get their part from this one, maybe none. bound: the most messages that are
    kept for each. Callers choose it so large (what a stage may have in flight) that the oldest has certainly arrived
    when it is reached, or that its receiver needs nothing else to take it: so a send can't deadlock.
    """

    def __init__(
        self,
        channels: tuple[Channel, ...],
        team_size: int,
        shape: Rows,
        make: MakeCodec,
        bound: int,
        overlap: bool = True,
    ) -> None:
        ranges = [part_of(shape[0], team_size, channel.part, overlap) for channel in channels]
        self._ways = [
            (channel, first, last, make((last - first, shape[1])))
            for channel, (first, last) in zip(channels, ranges, strict=True)
        ]
        self._bound = bound * len(channels) if overlap else 0
        self._sending: deque[tuple[Tensor, dist.Work]] = deque()
        self.sent_bytes = 0

    def send(self, tensor: Tensor, key: int) -> None:
        """Start sending the tensor of the samples `key`; returns at once, but waits without overlap."""
        for channel, first, last, codec in self._ways:
            message = codec.encode(tensor.detach()[first:last], key)
            work = present(dist.isend(message, channel.target, group=channel.group))
            self._sending.append((message, work))
            self.sent_bytes += message.nbytes
        while len(self._sending) > self._bound:
            self._finish_oldest()

    def drain(self) -> None:
        """Wait until all is sent."""
        while self._sending:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        tensor, work = self._sending.popleft()
        work.wait()
        del tensor  # alive until here
