"""Stages at work: each does its passes in its schedule's order, reduces its gradients and takes its optimiser step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from hetsched.cost.compute import StageWork, optimizer_s
from hetsched.cost.placement import Placement, Seat
from hetsched.simulate.network import Clock
from hetsched.simulate.wiring import Wire, Wiring


class Event(NamedTuple):
    """Something that took time. what: forward, backward, gather, send, receive, all_reduce or optimizer.

    number: the micro-batch, or the gradient group of an all-reduce or a gather; to: the stage a message is for.
    """

    what: str
    pipeline: int
    stage: int
    number: int
    start_s: float
    end_s: float
    to: int | None = None


@dataclass(slots=True)
class StageTimes:
    """What one stage did, in seconds, and when its last message had left, its last all-reduce and its step ended.

    compute_s: passes, without what their tensor-parallel devices talk (tensor_parallel_s); gather_s: ZeRO 3's weights;
    transfer_s: sending and receiving that held the stage up; reduce_s: the all-reduces it took part in.
    """

    compute_s: float = 0.0
    tensor_parallel_s: float = 0.0
    gather_s: float = 0.0
    transfer_s: float = 0.0
    reduce_s: float = 0.0
    optimizer_s: float = 0.0
    backward_end_s: float = 0.0
    reduced_s: float = 0.0
    finished_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """Computing: passes and the optimiser step."""
        return self.compute_s + self.optimizer_s

    @property
    def communicating_s(self) -> float:
        """What kept the stage from computing and was no waiting."""
        return self.tensor_parallel_s + self.gather_s + self.transfer_s + self.reduce_s


def one_forward_one_backward(depth: int, stage: int, micro_batches: int) -> Iterator[tuple[bool, int]]:
    """(whether forward, micro-batch) of 1F1B: as many forwards ahead as there are stages behind, then in turn."""
    ahead = min(depth - 1 - stage, micro_batches)
    for number in range(ahead):
        yield True, number
    for number in range(micro_batches):
        if ahead + number < micro_batches:
            yield True, ahead + number
        yield False, number


def all_forward_all_backward(micro_batches: int) -> Iterator[tuple[bool, int]]:
    """(whether forward, micro-batch) of GPipe."""
    for forward in (True, False):
        for number in range(micro_batches):
            yield forward, number


class Run:
    """One iteration under way: the clock, the wiring, and what has happened."""

    def __init__(self, placement: Placement, kinds_apart: bool, record: bool) -> None:
        self.placement, self.clock = placement, Clock()
        self.wiring = Wiring(placement, self.clock, kinds_apart)
        self.events: list[Event] | None = [] if record else None
        self.passes = 0
        count = len(placement.groups)
        self.reductions = [(0.0, 0.0)] * count
        self._ready = [0] * count
        plan = placement.plan
        groups_of: dict[Seat, list[int]] = {}
        for number, group in enumerate(placement.groups):
            for seat in group.members:
                groups_of.setdefault(seat, []).append(number)
        self.stages = [
            [StageRun(self, (p, s), work, groups_of.get((p, s), [])) for s, work in enumerate(line)]
            for p, line in enumerate(placement.works)
        ]
        for p, line in enumerate(self.stages):
            micro_batches, depth = plan.pipelines[p].micro_batches, len(line)
            for s, stage in enumerate(line):
                if s + 1 < depth:
                    after = line[s + 1]
                    stage.ahead = after.from_before = Outlet(stage, after, self.wiring.forward[p][s], True)
                    after.behind = stage.from_after = Outlet(after, stage, self.wiring.backward[p][s], False)
                stage.order = (
                    all_forward_all_backward(micro_batches)
                    if plan.options.schedule == "gpipe"
                    else one_forward_one_backward(depth, s, micro_batches)
                )
                self.clock.at(0.0, stage.go_on)

    def join(self, number: int) -> None:
        """One more member of a gradient group has nothing else to do; the last one starts the all-reduce."""
        self._ready[number] += 1
        if self._ready[number] == len(self.placement.groups[number].members):
            self.wiring.reducing[number].send(self.wiring.rings[number], self._reduced, (number, self.clock.now))

    def _reduced(self, reduction: tuple[int, float]) -> None:
        (number, start), now = reduction, self.clock.now
        self.reductions[number] = start, now
        for p, s in self.placement.groups[number].members:
            self.note("all_reduce", (p, s), number, start)
            stage = self.stages[p][s]
            stage.times.reduce_s += now - start
            stage.reduce_next()

    def optimizer_s(self, seat: Seat) -> float:
        """Seconds of a stage's optimiser step."""
        (p, s), plan = seat, self.placement.plan
        shards = len(plan.pipelines) if plan.options.zero else 1
        return optimizer_s(self.placement.workers[p][s], plan.model, plan.pipelines[p].stages[s].layers, shards)

    def note(self, what: str, seat: Seat, number: int, start_s: float, to: int | None = None) -> None:
        """Keep an event that ends now, where events are kept."""
        if self.events is not None:
            self.events.append(Event(what, *seat, number, start_s, self.clock.now, to))


class Outlet:
    """A stage's messages to one neighbour: activations to the next stage, their gradients to the one before."""

    def __init__(self, source: "StageRun", target: "StageRun", wire: Wire, forward: bool) -> None:
        self.source, self.target, self.wire, self.forward = source, target, wire, forward
        self._run = source.run
        self._handed_over = self._sent = 0
        self._since, self.busy = 0.0, False

    def queue(self) -> None:
        """Hand over the next message; it leaves when those before it have."""
        self._handed_over += 1
        if not self.busy:
            self._send()

    def _send(self) -> None:
        self.busy = True
        self._since = self._run.clock.now
        self.wire.network.send(self.wire.channel, self._left)

    def _left(self, _: None) -> None:
        run = self._run
        run.note("send", self.source.seat, self._sent, self._since, self.target.seat[1])
        self._sent += 1
        self.busy = False
        run.clock.at(run.clock.now + self.wire.latency_s, self._arrive)
        if self._sent < self._handed_over:
            self._send()
        else:
            self.source.messages_left()

    def _arrive(self, _: None) -> None:
        self.target.receive(self.forward)


class StageRun:
    """One stage: what it does now, what has come for it, and what it did."""

    order: Iterator[tuple[bool, int]]

    def __init__(self, run: Run, seat: Seat, work: StageWork, groups: list[int]) -> None:
        self.run, self.seat, self.work = run, seat, work
        self.times = StageTimes()
        self.ahead: Outlet | None = None  # to the next stage, and to the one before
        self.behind: Outlet | None = None
        self.from_before: Outlet | None = None  # theirs to here
        self.from_after: Outlet | None = None
        self._overlap = run.placement.plan.options.overlap
        self._groups = iter(groups)
        self._gathers = run.wiring.gathers.get(seat, [])
        self._came = {True: 0, False: 0}
        self._waits = self._passed = False
        self._forward, self._number, self._gathered = True, 0, 0
        self._since = 0.0  # when what it does now began

    def go_on(self, _: None = None) -> None:
        """Start the next pass, or wait for what it needs, or reduce gradients when there is none."""
        following = next(self.order, None)
        if following is None:
            self._passed = True
            self.messages_left()
            return
        self._forward, self._number = following
        self._start()

    def messages_left(self) -> None:
        """Reduce gradients, once all passes are done and their messages have left."""
        if self._passed and not (self.behind is not None and self.behind.busy):
            self.times.backward_end_s = self.run.clock.now
            self.reduce_next()

    def receive(self, forward: bool) -> None:
        """A message has come, or with blocking sends: its sender has begun to send."""
        self._came[forward] += 1
        if self._waits:
            self._waits = False
            self._start()

    def _start(self) -> None:
        source = self._inlet()
        if source is not None and self._came[self._forward] <= self._number:
            self._waits = True
            return
        self._since, self._gathered = self.run.clock.now, 0
        if source is None or self._overlap:
            self._gather()
        else:
            source.wire.network.send(source.wire.channel, self._taken, source.wire.latency_s)

    def _inlet(self) -> Outlet | None:
        """Where the message of this pass comes from."""
        return self.from_before if self._forward else self.from_after

    def _taken(self, latency_s: float) -> None:
        self.run.clock.at(self.run.clock.now + latency_s, self._received)

    def _received(self, _: None) -> None:
        self._spend("transfer_s", "receive", self._number)
        self._gather()

    def _gather(self, _: None = None) -> None:
        if self._gathered < len(self._gathers):
            self.run.wiring.gradients.send(self._gathers[self._gathered][1], self._gather_ended)
        else:
            self._compute()

    def _gather_ended(self, _: None) -> None:
        self._spend("gather_s", "gather", self._gathers[self._gathered][0])
        self._gathered += 1
        self._gather()

    def _compute(self) -> None:
        self._since = self.run.clock.now
        seconds = self.work.forward_s if self._forward else self.work.backward_s
        self.run.clock.at(self._since + seconds, self._computed)

    def _computed(self, _: None) -> None:
        self.run.passes += 1
        self._spend("compute_s", "forward" if self._forward else "backward", self._number)
        outlet = self.ahead if self._forward else self.behind
        if outlet is None:
            self.go_on()
        elif self._overlap:
            outlet.queue()
            self.go_on()
        else:
            outlet.target.receive(self._forward)
            outlet.wire.network.send(outlet.wire.channel, self._sent, outlet.target.seat[1])

    def _sent(self, to: int) -> None:
        self._spend("transfer_s", "send", self._number, to)
        self.go_on()

    def reduce_next(self) -> None:
        """Join the next gradient group; after the last, take the optimiser step."""
        number = next(self._groups, None)
        if number is not None:
            self.run.join(number)
            return
        now, times = self.run.clock.now, self.times
        times.reduced_s = now
        times.optimizer_s = self.run.optimizer_s(self.seat)
        self._since = now
        self.run.clock.at(now + times.optimizer_s, self._finished)

    def _finished(self, _: None) -> None:
        times = self.times
        times.finished_s = self.run.clock.now
        self.run.note("optimizer", self.seat, 0, self._since)
        times.tensor_parallel_s = (
            self.work.tensor_parallel_s * self.run.placement.plan.pipelines[self.seat[0]].micro_batches
        )
        times.compute_s -= times.tensor_parallel_s

    def _spend(self, cause: str, what: str, number: int, to: int | None = None) -> None:
        """Count what has just ended."""
        now = self.run.clock.now
        setattr(self.times, cause, getattr(self.times, cause) + now - self._since)
        if self.run.events is not None:
            self.run.note(what, self.seat, number, self._since, to)
        self._since = now
