"""How groups of GPUs and their roles may change: what a flow leaves idle goes to what it fills (HexGen-2, phase 3).

The moves are HexGen-2's (arXiv 2502.07903, section 3.3): swap GPUs between groups, move some, change a group's phase,
split a group, merge two. They come in an order: those first that take from idle replicas and give to full ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hetsched.solvers.serving.workshop import Group, Workshop

State = tuple[tuple[Group, str], ...]  # groups and their roles
SPARE, WHOLE = 0.97, 0.999  # of its capacity: below the one a replica has something to give, above the other it is full


def canonical(groups: Sequence[tuple[Group, str]]) -> State:
    """Without empty groups, in an order that does not depend on how it came about."""
    return tuple(sorted(((group, role) for group, role in groups if group), key=lambda item: sorted(item[0])))


@dataclass(frozen=True, eq=False)
class Moves:
    """The neighbours of a state. roles: those that a group may have."""

    workshop: Workshop
    roles: tuple[str, ...]

    def of(self, state: State, loads: Sequence[float], rng: np.random.Generator) -> Iterator[State]:
        """Neighbours, the most promising first, like ones in random order.

        loads: of each group's capacity the share that the flow uses; 0 for one that has no replica.
        """
        idle = [k for k, load in enumerate(loads) if load < SPARE]
        full = [k for k, load in enumerate(loads) if load >= WHOLE]
        everywhere = range(len(state))
        yield from _mixed(self._other_phase(state, idle), rng)
        yield from _mixed(self._handed(state, idle, full), rng)
        yield from _mixed(self._swapped(state, idle, full), rng)
        yield from _mixed(self._split(state, idle), rng)
        yield from _mixed(self._other_phase(state, full), rng)
        yield from _mixed(self._phases_exchanged(state), rng)
        yield from _mixed(self._split(state, full), rng)
        yield from _mixed(self._merged(state), rng)
        yield from _mixed(self._handed(state, everywhere, everywhere), rng)
        yield from _mixed(self._swapped(state, everywhere, everywhere), rng)

    def shaken(self, state: State, times: int, rng: np.random.Generator) -> State:
        """After so many moves at random."""
        everywhere = range(len(state))
        for _ in range(times):
            kinds = (
                self._other_phase(state, everywhere),
                self._handed(state, everywhere, everywhere),
                self._swapped(state, everywhere, everywhere),
                self._split(state, everywhere),
                self._merged(state),
            )
            found = list(kinds[int(rng.integers(len(kinds)))])
            if found:
                state = canonical(found[int(rng.integers(len(found)))])
                everywhere = range(len(state))
        return state

    def _other_phase(self, state: State, which: Sequence[int]) -> Iterator[list[tuple[Group, str]]]:
        for k in which:
            group, role = state[k]
            for other in self.roles:
                if other != role:
                    yield [*_without(state, k), (group, other)]

    def _phases_exchanged(self, state: State) -> Iterator[list[tuple[Group, str]]]:
        for a, b in _pairs(state):
            if state[a][1] != state[b][1]:
                yield [*_without(state, a, b), (state[a][0], state[b][1]), (state[b][0], state[a][1])]

    def _handed(self, state: State, givers: Sequence[int], takers: Sequence[int]) -> Iterator[list[tuple[Group, str]]]:
        for a in givers:
            for chunk in self._chunks(state[a][0]):
                for b in takers:
                    if a != b:
                        rest = state[a][0] - chunk, state[a][1]
                        yield [*_without(state, a, b), rest, (state[b][0] | chunk, state[b][1])]

    def _swapped(self, state: State, ones: Sequence[int], others: Sequence[int]) -> Iterator[list[tuple[Group, str]]]:
        for a in ones:
            for b in others:
                if a == b or (b in ones and a in others and a > b):
                    continue
                for given in self._chunks(state[a][0]):
                    for taken in self._chunks(state[b][0]):
                        if not self._alike(given, taken):
                            yield [
                                *_without(state, a, b),
                                ((state[a][0] - given) | taken, state[a][1]),
                                ((state[b][0] - taken) | given, state[b][1]),
                            ]

    def _split(self, state: State, which: Sequence[int]) -> Iterator[list[tuple[Group, str]]]:
        for k in which:
            group, role = state[k]
            parts = [*self._chunks(group), *self._halves(group)]
            for part in dict.fromkeys(parts):
                rest = group - part
                if rest and self.workshop.could_hold(part) and self.workshop.could_hold(rest):
                    for one in self.roles:
                        for other in (role, one) if one != role else (role,):
                            yield [*_without(state, k), (part, one), (rest, other)]

    def _merged(self, state: State) -> Iterator[list[tuple[Group, str]]]:
        for a, b in _pairs(state):
            for role in dict.fromkeys((state[a][1], state[b][1])):
                yield [*_without(state, a, b), (state[a][0] | state[b][0], role)]

    def _chunks(self, group: Group) -> list[Group]:
        """1, 2, 4, ... GPUs of one of the group's machines, or all it has there."""
        found = []
        for machine in self._machines(group):
            sizes = {2**k for k in range(len(machine).bit_length()) if 2**k <= len(machine)} | {len(machine)}
            found += [frozenset(machine[:size]) for size in sorted(sizes)]
        return found

    def _halves(self, group: Group) -> list[Group]:
        """Half of each machine; and the first half of the machines."""
        machines = self._machines(group)
        even = frozenset(device for machine in machines for device in machine[: len(machine) // 2])
        some = frozenset(device for machine in machines[: len(machines) // 2] for device in machine)
        return [half for half in (even, some) if half]

    def _machines(self, group: Group) -> list[list[int]]:
        cluster = self.workshop.problem.cluster
        found: dict[tuple[int, str], list[int]] = {}
        for device in sorted(group):
            found.setdefault((cluster.node_numbers[device], cluster.devices[device].gpu.kind), []).append(device)
        return list(found.values())

    def _alike(self, given: Group, taken: Group) -> bool:
        """Whether a swap would change nothing but names, or nodes of a class."""
        key = self.workshop.inventory.key
        return (
            len(given) == len(taken)
            and self._machines_of(given) == self._machines_of(taken)
            and key(sorted(given)) == key(sorted(taken))
        )

    def _machines_of(self, group: Group) -> set[int]:
        return {self.workshop.problem.cluster.node_numbers[device] for device in group}


def _without(state: State, *numbers: int) -> list[tuple[Group, str]]:
    return [item for k, item in enumerate(state) if k not in numbers]


def _pairs(state: State) -> Iterator[tuple[int, int]]:
    for a in range(len(state)):
        for b in range(a + 1, len(state)):
            yield a, b


def _mixed(states: Iterator[list[tuple[Group, str]]], rng: np.random.Generator) -> Iterator[State]:
    found = list(states)
    for k in rng.permutation(len(found)):
        yield canonical(found[int(k)])
