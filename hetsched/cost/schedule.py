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

from hetsched.cost.compute import StageWork


@dataclass(frozen=True, slots=True)
class Hop:
    """A link between two stages: for one message each way, how long it is busy, and how long after that it arrives."""

    forward_occupied_s: float = 0.0
    forward_latency_s: float = 0.0
    backward_occupied_s: float = 0.0
    backward_latency_s: float = 0.0


NO_HOP = Hop()
SAME_S = 1e-12  # relative: states that differ by less repeat


def play(
    schedule: str, work: Sequence[StageWork], hops: Sequence[Hop], micro_batches: int, overlap: bool = True
) -> list[float]:
    """When each stage ends its last backward, in seconds.

    work: one a stage; hops: one fewer, hops[s] between stages s and s + 1.
    """
    return list(_play(schedule, tuple(work), tuple(hops), micro_batches, overlap))


@lru_cache(maxsize=4096)
def _play(
    schedule: str, work: tuple[StageWork, ...], hops: tuple[Hop, ...], micro_batches: int, overlap: bool
) -> tuple[float, ...]:
    rounds = _Rounds(work, hops, overlap)
    depth = len(work)
    lag = [micro_batches] * depth if schedule == "gpipe" else list(range(depth - 1, -1, -1))
    return tuple(rounds.run(micro_batches, lag))


class _Rounds:
    """Plays in rounds: in round k a stage does forward k, then backward k - lag of it.

    Between rounds the future depends on the clocks alone. Where a round, or as many as there are stages, only shift all
    of them by one time, the next do too, until the forwards end; those rounds are skipped in one step. (Such systems
    end up periodic: Baccelli et al. 1992, Synchronization and Linearity. A stage that sets the pace repeats each
    round; a wait for a message there and back repeats as often as there are micro-batches under way.)
    """

    def __init__(self, work: tuple[StageWork, ...], hops: tuple[Hop, ...], overlap: bool) -> None:
        self.depth = size = len(work)
        ahead, behind = (*hops, NO_HOP), (NO_HOP, *hops)
        # per stage, in playing order: seconds of a pass, what its message takes on the link after it, and how long the
        # stage itself is held up by that
        self.forwards = [
            (w.forward_s, hop.forward_occupied_s, hop.forward_latency_s, 0.0)
            for w, hop in zip(work, ahead, strict=True)
        ]
        self.backwards = [
            (s, work[s].backward_s, behind[s].backward_occupied_s, behind[s].backward_latency_s, 0.0)
            for s in reversed(range(size))
        ]
        if not overlap:
            self.forwards = [
                (w.forward_s + before.forward_occupied_s + before.forward_latency_s, 0.0, 0.0, after.forward_occupied_s)
                for w, before, after in zip(work, behind, ahead, strict=True)
            ]
            self.backwards = [
                (
                    s,
                    work[s].backward_s + ahead[s].backward_occupied_s + ahead[s].backward_latency_s,
                    0.0,
                    0.0,
                    behind[s].backward_occupied_s,
                )
                for s in reversed(range(size))
            ]
        self.clock = [0.0] * size  # when each stage is free
        self.forward_link, self.backward_link = [0.0] * size, [0.0] * size  # when each link is free
        self.gradients: list[list[float]] = [[] for _ in range(size)]  # arrivals at each stage that wait for it
        self.taken = [0] * size

    def run(self, micro_batches: int, lag: list[int]) -> list[float]:
        earlier: deque[list[float]] = deque(maxlen=self.depth)
        step, last = 0, micro_batches + max(lag)
        while step < last:
            self._round(step, micro_batches, lag)
            step += 1
            if not max(lag) < step < micro_batches:
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
        return self.clock

    def _round(self, step: int, micro_batches: int, lag: list[int]) -> None:
        clock, last = self.clock, self.depth - 1
        if step < micro_batches:
            arrival, links = 0.0, self.forward_link
            for s, (seconds, occupied, latency, held) in enumerate(self.forwards):
                now = clock[s]
                now = (now if now > arrival else arrival) + seconds
                clock[s] = now + held
                if s < last:
                    free = links[s]
                    links[s] = free = (free if free > now else now) + occupied
                    arrival = free + latency
        links, gradients, taken = self.backward_link, self.gradients, self.taken
        for s, seconds, occupied, latency, held in self.backwards:
            if 0 <= step - lag[s] < micro_batches:
                now = clock[s]
                if s < last:
                    ready = gradients[s][taken[s]]
                    taken[s] += 1
                    now = now if now > ready else ready
                now += seconds
                clock[s] = now + held
                if s > 0:
                    free = links[s]
                    links[s] = free = (free if free > now else now) + occupied
                    gradients[s - 1].append(free + latency)

    def _state(self) -> list[float]:
        waiting = [time for s in range(self.depth) for time in self.gradients[s][self.taken[s] :]]
        return [*self.clock, *self.forward_link[:-1], *self.backward_link[1:], *waiting]

    def _shift(self, seconds: float) -> None:
        self.clock = [time + seconds for time in self.clock]
        self.forward_link = [time + seconds for time in self.forward_link]
        self.backward_link = [time + seconds for time in self.backward_link]
        self.gradients = [[time + seconds for time in times] for times in self.gradients]
