"""How a bucket's ranks add up and share out: collectives of the back end, or a ring whose receives stand posted.

gloo's collectives send a piece when its receiver has asked for it, and it asks when it is at it: a trip across the
network for each piece, beside the messages themselves. (Two ranks 20 ms apart: 43 to 47 ms more than an all-reduce of
0.2 to 3 MB has to take, of 119 ms to 1.3 s.) So with gloo the receives of a whole step are posted before it starts, and
the ring's messages go out as soon as they are there: 2 (n - 1) steps of 1/n of the bytes (Patarasuk and Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002). NCCL asks for nothing, and a posted receive would hold the GPU.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.executor.communication import all_gather, asks_first, present, reduce_scatter


class Waits(Protocol):
    """Something under way."""

    def wait(self) -> object:
        """Until it has ended."""


class Collectives(Protocol):
    """Sums of the ranks' tensors (elements,), of one part a rank: one a step, which is then gathered or is not."""

    def expect(self, sum_too: bool = True) -> None:
        """A step begins in which parts are gathered, after they have been summed up or else without."""

    def all_reduce(self, whole: Tensor) -> Waits:
        """Start to make `whole` the sum of all ranks' tensors."""

    def reduce_scatter(self, own: Tensor, whole: Tensor) -> Waits:
        """Start to make `own` this rank's part of the sum; `whole` may be overwritten."""

    def all_gather(self, whole: Tensor) -> Waits:
        """Start to fill `whole` with every rank's own part of it."""


def make_collectives(group: dist.ProcessGroup, like: Tensor, tag: int) -> Collectives:
    """Collectives of tensors `like` that one; tag: of their messages, where a group has several."""
    return Ring(group, like, tag) if asks_first(group) else BackEnd(group)


class BackEnd:
    """What the back end offers."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def expect(self, sum_too: bool = True) -> None:
        """See `Collectives`."""

    def all_reduce(self, whole: Tensor) -> Waits:
        """See `Collectives`."""
        work: Waits = present(dist.all_reduce(whole, group=self._group, async_op=True))
        return work

    def reduce_scatter(self, own: Tensor, whole: Tensor) -> Waits:
        """See `Collectives`."""
        return reduce_scatter(own, whole, self._group)

    def all_gather(self, whole: Tensor) -> Waits:
        """See `Collectives`."""
        place = dist.get_rank(self._group)
        all_gather(whole, whole.view(self._group.size(), -1)[place].clone(), self._group)
        return Done()


class Ring:
    """Rank r sends to r + 1. In n - 1 steps its own part's sum comes together, in as many all sums go round."""

    def __init__(self, group: dist.ProcessGroup, like: Tensor, tag: int) -> None:
        ranks, self._place = dist.get_process_group_ranks(group), dist.get_rank(group)
        self._size, self._group, self._tag = len(ranks), group, tag
        self._before, self._after = ranks[self._place - 1], ranks[(self._place + 1) % self._size]
        parts = self._parts(like)
        self._coming = [
            [torch.empty_like(parts[self._place - step - ahead]) for step in range(self._size - 1)] for ahead in (2, 1)
        ]
        self._works: list[list[dist.Work]] = [[], []]

    def expect(self, sum_too: bool = True) -> None:
        """See `Collectives`: post all receives of a step."""
        summed, gathered = self._coming
        self._works = [
            [present(dist.irecv(part, self._before, group=self._group, tag=self._tag)) for part in parts]
            for parts in (summed if sum_too else [], gathered)
        ]

    def all_reduce(self, whole: Tensor) -> Waits:
        """See `Collectives`."""

        def run() -> None:
            self._reduce(whole)
            self._gather(whole)

        return Thread(run)

    def reduce_scatter(self, own: Tensor, whole: Tensor) -> Waits:
        """See `Collectives`."""

        def run() -> None:
            self._reduce(whole)
            own.copy_(self._parts(whole)[self._place])

        return Thread(run)

    def all_gather(self, whole: Tensor) -> Waits:
        """See `Collectives`."""
        return Thread(lambda: self._gather(whole))

    def _reduce(self, whole: Tensor) -> None:
        parts, sent = self._parts(whole), list[dist.Work]()
        for step, (coming, work) in enumerate(zip(self._coming[0], self._works[0], strict=True)):
            sent.append(self._send(parts[self._place - step - 1]))
            work.wait()
            parts[self._place - step - 2].add_(coming)
        _wait(sent)

    def _gather(self, whole: Tensor) -> None:
        parts, sent = self._parts(whole), list[dist.Work]()
        for step, (coming, work) in enumerate(zip(self._coming[1], self._works[1], strict=True)):
            sent.append(self._send(parts[self._place - step]))
            work.wait()
            parts[self._place - step - 1].copy_(coming)
        _wait(sent)

    def _parts(self, whole: Tensor) -> tuple[Tensor, ...]:
        return whole.tensor_split(self._size)

    def _send(self, part: Tensor) -> dist.Work:
        return present(dist.isend(part, self._after, group=self._group, tag=self._tag))


class Exchange:
    """One message of equal size from every rank of a group to every other."""

    def __init__(self, group: dist.ProcessGroup, message_bytes: int, device: torch.device, tag: int) -> None:
        self._group, self._tag, self._place = group, tag, dist.get_rank(group)
        self._peers = {i: rank for i, rank in enumerate(dist.get_process_group_ranks(group)) if i != self._place}
        self._coming = torch.empty(group.size(), message_bytes, dtype=torch.uint8, device=device)
        self._works: list[dist.Work] = []

    def expect(self) -> None:
        """A step begins: post its receives, where that is of use."""
        if asks_first(self._group):
            self._works = [present(dist.irecv(*given, tag=self._tag)) for given in self._receives()]

    def start(self, messages: Sequence[Tensor]) -> Callable[[], Tensor]:
        """Send messages[i] to rank i of the group. What is returned waits; it gives what came, (ranks, bytes)."""
        self._coming[self._place] = messages[self._place]
        sends = [(messages[i].contiguous(), rank, self._group) for i, rank in self._peers.items()]
        if asks_first(self._group):
            works = self._works + [present(dist.isend(*given, tag=self._tag)) for given in sends]
        else:
            operations = [dist.P2POp(dist.irecv, *given) for given in self._receives()]
            works = dist.batch_isend_irecv([*operations, *(dist.P2POp(dist.isend, *given) for given in sends)])

        def finish() -> Tensor:
            _wait(works)
            return self._coming

        return finish

    def _receives(self) -> list[tuple[Tensor, int, dist.ProcessGroup]]:
        return [(self._coming[i], rank, self._group) for i, rank in self._peers.items()]


class Thread:
    """What goes on beside; an exception in it comes out where it is waited for."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run, self._error = run, list[BaseException]()
        self._thread = threading.Thread(target=self._start, daemon=True)  # a lost peer must not keep a rank from ending
        self._thread.start()

    def _start(self) -> None:
        try:
            with torch.no_grad():
                self._run()
        except BaseException as error:
            self._error.append(error)

    def wait(self) -> None:
        """See `Waits`."""
        self._thread.join()
        if self._error:
            raise self._error[0]


class Done:
    """What has ended."""

    def wait(self) -> None:
        """See `Waits`."""


def _wait(works: Sequence[Waits]) -> None:
    for work in works:
        work.wait()
