"""Messages between neighbouring stages: plain isend and irecv, one direction a process group.

What overlaps with what, exactly (the cost model imitates this):

- A message is one whole tensor (micro-batch, sequence, hidden) in the compute dtype: an activation forwards, its
  gradient backwards. The two directions of a boundary, and different boundaries, never wait for one another.
- A send starts when the pass that made the tensor ends, and never holds up the sender's next action.
- A receive is posted ahead of its use: while micro-batch m of one direction is worked on, the receives of m + 1 and
  m + 2 (`RECEIVES_AHEAD`) of that direction stand posted; those of 0 and 1 are posted when the step starts. So a
  message travels as soon as it is sent and its receiver has taken the one `RECEIVES_AHEAD` before it.
- A stage waits only when its next action needs a tensor that has not come: before a forward pass for the activation,
  before a backward pass for the gradient.
- Messages of one direction of one boundary arrive in micro-batch order.
"""

import time
from collections import deque
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

RECEIVES_AHEAD = 2
T = TypeVar("T")


def present(value: T | None) -> T:
    """What torch returns, except to ranks outside the group or for tensors without gradients."""
    if value is None:
        raise AssertionError("torch returned nothing where it must return something")
    return value


class Inbox:
    """Tensors from one neighbour, in micro-batch order. `waited_s` adds up the host time spent waiting for them."""

    def __init__(
        self, source: int, group: dist.ProcessGroup, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._source, self._group = source, group
        self._shape, self._dtype, self._device = shape, dtype, device
        self._posted: deque[tuple[Tensor, dist.Work]] = deque()
        self._to_post = 0
        self.waited_s = 0.0

    def expect(self, messages: int) -> None:
        """Start a step of so many messages: post the first receives."""
        self._to_post = messages
        for _ in range(RECEIVES_AHEAD):
            self._post()

    def take(self) -> Tensor:
        """The next message; waits for it, and posts a receive in its stead."""
        tensor, work = self._posted.popleft()
        start = time.perf_counter()
        work.wait()
        self.waited_s += time.perf_counter() - start
        self._post()
        return tensor

    def _post(self) -> None:
        if self._to_post:
            self._to_post -= 1
            tensor = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            work = present(dist.irecv(tensor, self._source, group=self._group))
            self._posted.append((tensor, work))


class Outbox:
    """Tensors to one neighbour. Each is kept alive until it is sent.

    bound: the most that are kept. Callers choose it so large (what a stage may have in flight) that the oldest has
    certainly arrived when it is reached, or that its receiver needs nothing else to take it: so a send can't deadlock.
    """

    def __init__(self, target: int, group: dist.ProcessGroup, bound: int) -> None:
        self._target, self._group, self._bound = target, group, bound
        self._sending: deque[tuple[Tensor, dist.Work]] = deque()

    def send(self, tensor: Tensor) -> None:
        """Start sending; returns at once."""
        if len(self._sending) >= self._bound:
            self._finish_oldest()
        message = tensor.detach().contiguous()
        work = present(dist.isend(message, self._target, group=self._group))
        self._sending.append((message, work))

    def drain(self) -> None:
        """Wait until all is sent."""
        while self._sending:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        tensor, work = self._sending.popleft()
        work.wait()
        del tensor  # alive until here
