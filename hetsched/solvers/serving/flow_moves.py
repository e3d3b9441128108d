"""How groups of GPUs and their roles may change: what a flow leaves idle goes to what it fills (HexGen-2, phase 3).

The moves are HexGen-2's (arXiv 2502.07903, section 3.3): swap GPUs between groups, move some, change a group's phase,
split a group, merge two. They come in an order: those first that take from idle replicas and give to full ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hetsched.solvers.serving.workshop import Group, Workshop

State = tuple[tuple[Group, str], ...]  # groups and their roles
SPARE, WHOLE = 0.97, 0.999  # of its capacity: below the one a replica has something to give, above the other it is full


def canonical(groups: Sequence[tuple[Group, str]]) -> State:
    """Without empty groups, in an order that does not depend on how it came about."""
    return tuple(sorted(((group, role) for group, role in groups if group), key=lambda item: min(item[0])))


class Part(NamedTuple):
    """A group after a move: the one that was at a position, without some GPUs, and with others."""

    at: int
    less: Group
    more: Group
    role: str


Move = tuple[Part, ...]  # of all groups that it changes, `at` the positions of these
NONE: Group = frozenset()


@dataclass(frozen=True, eq=False)
class Moves:
    """The neighbours of a state. roles: those that a group may have.

    Of moves that differ by nothing but which of several groups that are alike they take, one is made.
    """

    workshop: Workshop
    roles: tuple[str, ...]
    _kinds: dict[Group, int] = field(default_factory=dict)  # equal numbers for groups that are alike
    _keys: dict[tuple[object, ...], int] = field(default_factory=dict)
    _machines_of: dict[Group, list[list[int]]] = field(default_factory=dict)
    _chunks_of: dict[Group, list[Group]] = field(default_factory=dict)

    def of(self, state: State, loads: Sequence[float], rng: np.random.Generator) -> Iterator[State]:
        """Neighbours, the most promising first, like ones in random order.

        loads: of each group's capacity the share that the flow uses; 0 for one that has no replica.
        """
        order = [int(k) for k in rng.permutation(len(state))]
        idle = [k for k in order if loads[k] < SPARE]
        full = [k for k in order if loads[k] >= WHOLE]
        for moves in (
            self._other_phase(state, idle),
            self._handed(state, idle, full),
            self._swapped(state, idle, full),
            self._split(state, idle),
            self._other_phase(state, full),
            self._phases_exchanged(state, order),
            self._split(state, full),
            self._merged(state, order),
            self._handed(state, order, order),
            self._swapped(state, order, order),
        ):
            found = list(moves)
            for k in rng.permutation(len(found)):
                yield _made(state, found[int(k)])

    def shaken(self, state: State, times: int, rng: np.random.Generator) -> State:
        """After so many moves at random."""
        for _ in range(times):
            order = [int(k) for k in rng.permutation(len(state))]
            kinds = (
                self._other_phase(state, order),
                self._handed(state, order, order),
                self._swapped(state, order, order),
                self._split(state, order),
                self._merged(state, order),
            )
            found = list(kinds[int(rng.integers(len(kinds)))])
            if found:
                state = _made(state, found[int(rng.integers(len(found)))])
        return state

    def _other_phase(self, state: State, which: Sequence[int]) -> Iterator[Move]:
        for k in self._unlike(state, which):
            for other in self.roles:
                if other != state[k][1]:
                    yield (Part(k, NONE, NONE, other),)

    def _phases_exchanged(self, state: State, order: Sequence[int]) -> Iterator[Move]:
        for a, b in self._pairs(state, order, order):
            if state[a][1] != state[b][1] and a < b:
                yield Part(a, NONE, NONE, state[b][1]), Part(b, NONE, NONE, state[a][1])

    def _handed(self, state: State, givers: Sequence[int], takers: Sequence[int]) -> Iterator[Move]:
        for a, b in self._pairs(state, givers, takers):
            for chunk in self._chunks(state[a][0]):
                yield Part(a, chunk, NONE, state[a][1]), Part(b, NONE, chunk, state[b][1])

    def _swapped(self, state: State, ones: Sequence[int], others: Sequence[int]) -> Iterator[Move]:
        both = set(ones) & set(others)
        for a, b in self._pairs(state, ones, others):
            if a in both and b in both and a > b:
                continue
            for given in self._chunks(state[a][0]):
                for taken in self._chunks(state[b][0]):
                    if not self._alike(given, taken):
                        yield Part(a, given, taken, state[a][1]), Part(b, taken, given, state[b][1])

    def _split(self, state: State, which: Sequence[int]) -> Iterator[Move]:
        for k in self._unlike(state, which):
            group, role = state[k]
            parts = [*self._chunks(group), *self._halves(group)]
            for part in dict.fromkeys(parts):
                rest = group - part
                if rest and self.workshop.could_hold(part) and self.workshop.could_hold(rest):
                    for one in self.roles:
                        for other in (role, one) if one != role else (role,):
                            yield Part(k, rest, NONE, one), Part(k, part, NONE, other)

    def _merged(self, state: State, order: Sequence[int]) -> Iterator[Move]:
        for a, b in self._pairs(state, order, order):
            if a < b:
                for role in dict.fromkeys((state[a][1], state[b][1])):
                    yield Part(a, NONE, state[b][0], role), Part(b, state[b][0], NONE, role)

    # ---- what is alike

    def _unlike(self, state: State, which: Sequence[int]) -> list[int]:
        """Positions of groups no two of which are alike and have the same role, the first of each in `which`."""
        first: dict[tuple[int, str], int] = {}
        for k in which:
            first.setdefault((self._kind(state[k][0]), state[k][1]), k)
        return list(first.values())

    def _pairs(self, state: State, ones: Sequence[int], others: Sequence[int]) -> list[tuple[int, int]]:
        """Pairs of different positions, in either order, no two alike: by groups, roles, and machines in common."""
        kinds = [(self._kind(group), role) for group, role in state]
        nodes = self.workshop.problem.cluster.node_numbers
        on = [frozenset(nodes[device] for device in group) for group, _ in state]
        first: dict[tuple[object, ...], tuple[int, int]] = {}
        for a in ones:
            for b in others:
                if a != b:
                    key = kinds[a], kinds[b], a < b, on[a].isdisjoint(on[b])
                    first.setdefault(key, (a, b))
        return list(first.values())

    def _kind(self, group: Group) -> int:
        known = self._kinds.get(group)
        if known is None:
            key = self.workshop.inventory.key(sorted(group))
            known = self._kinds[group] = self._keys.setdefault(key, len(self._keys))
        return known

    def _alike(self, given: Group, taken: Group) -> bool:
        """Whether a swap would change nothing but names, or nodes of a class."""
        nodes = self.workshop.problem.cluster.node_numbers
        return (
            len(given) == len(taken)
            and {nodes[device] for device in given} == {nodes[device] for device in taken}
            and self._kind(given) == self._kind(taken)
        )

    # ---- parts of groups

    def _chunks(self, group: Group) -> list[Group]:
        """1, 2, 4, ... GPUs of one of the group's machines, or all it has there."""
        if group not in self._chunks_of:
            found = []
            for machine in self._machines(group):
                sizes = {2**k for k in range(len(machine).bit_length()) if 2**k <= len(machine)} | {len(machine)}
                found += [frozenset(machine[:size]) for size in sorted(sizes)]
            self._chunks_of[group] = found
        return self._chunks_of[group]

    def _halves(self, group: Group) -> list[Group]:
        """Half of each machine; and the first half of the machines."""
        machines = self._machines(group)
        even = frozenset(device for machine in machines for device in machine[: len(machine) // 2])
        some = frozenset(device for machine in machines[: len(machines) // 2] for device in machine)
        return [half for half in (even, some) if half]

    def _machines(self, group: Group) -> list[list[int]]:
        if group not in self._machines_of:
            cluster = self.workshop.problem.cluster
            found: dict[tuple[int, str], list[int]] = {}
            for device in sorted(group):
                found.setdefault((cluster.node_numbers[device], cluster.devices[device].gpu.kind), []).append(device)
            self._machines_of[group] = list(found.values())
        return self._machines_of[group]


def _made(state: State, move: Move) -> State:
    """The state after a move."""
    changed = {part.at for part in move}
    kept = [item for k, item in enumerate(state) if k not in changed]
    return canonical([*kept, *(((state[p.at][0] - p.less) | p.more, p.role) for p in move)])
