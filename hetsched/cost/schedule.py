"""The pipeline's schedule, played exactly: unequal stages, links that carry one message a direction at a time.

A stage does its forwards and backwards in the order of 1F1B (Narayanan et al. 2021, arXiv 2104.04473) or GPipe (Huang
et al. 2019, arXiv 1811.06965). A message leaves when it is computed and the link is free, occupies the link for
`occupied` seconds and arrives `latency` after that. With overlap, sending and receiving go on while stages compute, as
the executor's isend and irecv do. Without, a stage does nothing else while it sends or receives, as the pipeline
engines of Megatron-LM and DeepSpeed do.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf

from hetsched.cost.compute import StageWork


@dataclass(frozen=True, slots=True)
class Hop:
    """A link between two stages: for one message each way, how long it is kept, and how long after that it arrives.

    A latency below 0 is that of a message which is there before another can follow it.
    """

    forward_occupied_s: float = 0.0
    forward_latency_s: float = 0.0
    backward_occupied_s: float = 0.0
    backward_latency_s: float = 0.0


NO_HOP = Hop()
SAME_S = 1e-12  # relative: times that differ by less are the same


def pace_of(work: Sequence[StageWork], hops: Sequence[Hop]) -> float:
    """Seconds from a micro-batch to the next where nothing but the slowest stage or link holds them up."""
    busy_s = [max(hop.forward_occupied_s, hop.backward_occupied_s) for hop in hops]
    return max([w.forward_s + w.backward_s for w in work] + busy_s)


def round_trip_s(work: Sequence[StageWork], hops: Sequence[Hop]) -> float:
    """Seconds from a micro-batch to the next in 1F1B where nothing but round trips hold them up.

    A stage that k others follow has at most k + 1 micro-batches under way more than the last of these: so from any
    stage to any later one, the way there and back takes k + 1 such times or less (see `algorithms.pipeline_dp`).
    """
    begins, ends, at_s = [], [], 0.0  # of the stages, on a way there and back from the first
    for w, hop in zip(work, [*hops, NO_HOP], strict=True):
        begins.append(at_s)
        at_s += w.forward_s + w.backward_s
        ends.append(at_s)
        at_s += hop.forward_occupied_s + hop.forward_latency_s + hop.backward_occupied_s + hop.backward_latency_s
    longest = 0.0
    while True:  # of all trips the one that most exceeds the longest so far, till none does (Dinkelbach 1967)
        most, least, first, found = SAME_S * at_s, inf, 0, longest
        for s, begin in enumerate(begins):
            if begin - longest * s < least:
                least, first = begin - longest * s, s
            if ends[s] - longest * (s + 1) - least > most:
                most = ends[s] - longest * (s + 1) - least
                found = (ends[s] - begins[first]) / (s + 1 - first)
        if found <= longest:
            return longest
        longest = found


# Of the stages in turn: seconds of a pass; how long its message occupies the link after it, and takes to arrive after
# that; and how long the stage itself is held up by it.
_Passes = list[tuple[float, float, float, float]]


def play(
    schedule: str, work: Sequence[StageWork], hops: Sequence[Hop], micro_batches: int, overlap: bool = True
) -> list[float]:
    """When each stage has ended its last backward and its message has left, in seconds.

    work: one a stage; hops: one fewer, hops[s] between stages s and s + 1.
    """
    return list(_play(schedule, tuple(work), tuple(hops), micro_batches, overlap))


@lru_cache(maxsize=4096)
def _play(
    schedule: str, work: tuple[StageWork, ...], hops: tuple[Hop, ...], micro_batches: int, overlap: bool
) -> tuple[float, ...]:
    lines = _passes(work, hops, overlap)
    return tuple(_gpipe(*lines, micro_batches) if schedule == "gpipe" else _Rounds(*lines).run(micro_batches))


def _passes(work: tuple[StageWork, ...], hops: tuple[Hop, ...], overlap: bool) -> tuple[_Passes, _Passes]:
    """The forwards from the first stage on, and the backwards from the last stage on."""
    stages = list(zip(work, (NO_HOP, *hops), (*hops, NO_HOP), strict=True))
    if overlap:
        forwards = [(w.forward_s, to.forward_occupied_s, to.forward_latency_s, 0.0) for w, _, to in stages]
        backwards = [(w.backward_s, to.backward_occupied_s, to.backward_latency_s, 0.0) for w, to, _ in stages]
    else:
        forwards = [
            (w.forward_s + of.forward_occupied_s + of.forward_latency_s, 0.0, 0.0, to.forward_occupied_s)
            for w, of, to in stages
        ]
        backwards = [
            (w.backward_s + of.backward_occupied_s + of.backward_latency_s, 0.0, 0.0, to.backward_occupied_s)
            for w, to, of in stages
        ]
    return forwards, backwards[::-1]


def _gpipe(forwards: _Passes, backwards: _Passes, micro_batches: int) -> list[float]:
    """All forwards, then all backwards. Each is a line of servers, stages and links by turns, through which like jobs
    go: the last reaches a server after the first one's way there, and once for each job before it the slowest server's
    time up to there. No stage waits for its own forwards: the last stage ends them last."""
    begun, ends = 0.0, [0.0]
    for line in (forwards, backwards):
        begun, way, slowest, ends = ends[-1], 0.0, 0.0, []
        for seconds, occupied, latency, held in line:
            slowest = max(slowest, seconds + held)
            slowest = max(slowest, occupied)
            ends.append(begun + way + seconds + held + occupied + min(0.0, latency) + (micro_batches - 1) * slowest)
            way += seconds + occupied + latency
    return ends[::-1]


class _Rounds:
    """Plays 1F1B in rounds: in round k a stage does forward k, then backward k less the number of stages after it.

    Between rounds the future depends on the clocks alone. Where a round, or as many as there are stages, only shift all
    of them by one time, the next do too, until the forwards end; those rounds are skipped in one step. (Such systems
    end up periodic: Baccelli et al. 1992, Synchronization and Linearity. A stage that sets the pace repeats each
    round; a wait for a message there and back repeats as often as there are micro-batches under way.)
    """

    def __init__(self, forwards: _Passes, backwards: _Passes) -> None:
        size = len(forwards)
        self.forwards = list(enumerate(forwards))
        self.backwards = list(zip(reversed(range(size)), range(size), backwards, strict=True))
        self.clock = [0.0] * size  # when each stage is free
        self.forward_link, self.backward_link = [0.0] * size, [0.0] * size  # when the link after each pass is free
        self.gradients: list[deque[float]] = [deque() for _ in range(size)]  # arrivals at each stage that wait for it

    def run(self, micro_batches: int) -> list[float]:
        depth = len(self.forwards)
        earlier: deque[list[float]] = deque(maxlen=depth)
        step, last = 0, micro_batches + depth - 1
        while step < last:
            if step < micro_batches:
                self._forward()
            self._backward(step, micro_batches)
            step += 1
            if not depth <= step < micro_batches:
                continue
            state = self._state()
            for period, before in enumerate(reversed(earlier), start=1):
                shift, tolerance = state[0] - before[0], SAME_S * state[0]
                if abs(state[-1] - before[-1] - shift) > tolerance:
                    continue  # most differ here
                if all(abs(now - then - shift) <= tolerance for now, then in zip(state, before, strict=True)):
                    times = (micro_batches - step) // period
                    self._shift(times * shift)
                    step += times * period
                    earlier.clear()
                    break
            else:
                earlier.append(state)
        ends = list(self.clock)
        for s, _, (_, _, latency, _) in self.backwards:
            ends[s] = max(ends[s], self.backward_link[s] + min(0.0, latency))  # what is there has left
        return ends

    def _forward(self) -> None:
        clock, links, arrival = self.clock, self.forward_link, 0.0
        for s, (seconds, occupied, latency, held) in self.forwards:
            now = clock[s]
            now = (now if now > arrival else arrival) + seconds
            clock[s] = now + held
            free = links[s]
            links[s] = free = (free if free > now else now) + occupied
            arrival = free + latency

    def _backward(self, step: int, micro_batches: int) -> None:
        clock, links, gradients = self.clock, self.backward_link, self.gradients
        ended = step - micro_batches
        for s, after, (seconds, occupied, latency, held) in self.backwards:
            if after > step:
                break  # its first is not yet due, nor those before it
            if after <= ended:
                continue
            now = clock[s]
            if after:
                ready = gradients[s].popleft()
                now = now if now > ready else ready
            now += seconds
            clock[s] = now + held
            if s:
                free = links[s]
                links[s] = free = (free if free > now else now) + occupied
                gradients[s - 1].append(free + latency)

    def _state(self) -> list[float]:
        waiting = [time for times in self.gradients for time in times]
        return [*self.clock, *self.forward_link[:-1], *self.backward_link[1:], *waiting]

    def _shift(self, seconds: float) -> None:
        self.clock = [time + seconds for time in self.clock]
        self.forward_link = [time + seconds for time in self.forward_link]
        self.backward_link = [time + seconds for time in self.backward_link]
        self.gradients = [deque(time + seconds for time in times) for times in self.gradients]
