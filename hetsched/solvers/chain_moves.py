"""Moves of a local search on asymmetric plans: each changes one pipeline or two, or how many there are.

A move gives the new chains in place of some of the old ones, by position (None: the pipeline is dropped; a position
past the end: a new one), or None where it is not possible here. Devices of all machines are known by class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from hetsched.cost.chains import Chain, ChainPricer, Group

Changes = dict[int, Chain | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user has fixed: how many pipelines, how many stages in each; None where it is open."""

    replicas: int | None = None
    stages: int | None = None
    most_replicas: int = 1_000_000

    def allow(self, chain: Chain) -> bool:
        """Whether a pipeline has as many stages as asked for."""
        return self.stages in (None, len(chain))


@dataclass(slots=True)
class Draft:
    """A plan under search: its chains, the idle devices of each class, and what moves need to know."""

    pricer: ChainPricer
    chains: list[Chain]
    idle: list[int]
    kinds: list[int]
    limits: Limits
    random: Random

    def pick(self) -> int:
        """A pipeline."""
        return int(self.random.random() * len(self.chains))

    def below(self, size: int) -> int:
        """A number from 0 to size - 1."""
        return int(self.random.random() * size)

    def split(self, groups: list[Group], more: int = 0) -> Chain | None:
        """A chain of these groups; `more`: how many pipelines more than now there will be."""
        if not groups:
            return None
        if self.limits.stages is not None and len(groups) != self.limits.stages:
            return None
        return self.pricer.split(tuple(groups), len(self.chains) + more)

    def idle_classes(self) -> list[int]:
        """The classes with idle devices."""
        return [member for member, count in enumerate(self.idle) if count]


def _groups(chain: Chain) -> list[Group]:
    return [group for group, _ in chain]


def _layers(chain: Chain) -> list[int]:
    return [layers for _, layers in chain]


def shift_layers(draft: Draft) -> Changes | None:
    """A layer from one stage to another of its pipeline."""
    p = draft.pick()
    chain = draft.chains[p]
    if len(chain) < 2:
        return None
    i, j = draft.below(len(chain)), draft.below(len(chain) - 1)
    j += j >= i
    if chain[i][1] < 2:
        return None
    stages = list(chain)
    stages[i] = (chain[i][0], chain[i][1] - 1)
    stages[j] = (chain[j][0], chain[j][1] + 1)
    return {p: tuple(stages)}


def swap_groups(draft: Draft) -> Changes | None:
    """Two stages change places, in one pipeline or two; with their layers, or split anew."""
    p, q = draft.pick(), draft.pick()
    a, b = draft.chains[p], draft.chains[q]
    i, j = draft.below(len(a)), draft.below(len(b))
    if a[i][0] == b[j][0]:
        return None
    anew = draft.random.random() < 0.5
    if p == q:
        stages = list(a)
        stages[i], stages[j] = a[j], a[i]
        return _settled(draft, {p: stages}, anew)
    first, second = list(a), list(b)
    first[i], second[j] = (b[j][0], a[i][1]), (a[i][0], b[j][1])
    return _settled(draft, {p: first, q: second}, anew)


def _settled(draft: Draft, drafts: dict[int, list[tuple[Group, int]]], anew: bool) -> Changes | None:
    changes: Changes = {}
    for position, stages in drafts.items():
        chain = draft.split([group for group, _ in stages]) if anew else tuple(stages)
        if chain is None:
            return None
        changes[position] = chain
    return changes


def move_stage(draft: Draft) -> Changes | None:
    """A stage to another place in its pipeline, with its layers or split anew; or into another pipeline."""
    p, q = draft.pick(), draft.pick()
    a, b = draft.chains[p], draft.chains[q]
    i = draft.below(len(a))
    if draft.random.random() < 0.5:
        q = p
    if p == q:
        stages = [*a[:i], *a[i + 1 :]]
        stages.insert(draft.below(len(a)), a[i])
        return _settled(draft, {p: stages}, draft.random.random() < 0.5)
    if len(a) == 1:
        return None
    if draft.random.random() < 0.5:
        rest, chain = _without(draft, a, i), _divided(draft, b, draft.below(len(b)), a[i][0])
        return {p: rest, q: chain} if rest and chain else None
    groups = _groups(b)
    groups.insert(draft.below(len(b) + 1), a[i][0])
    rest = draft.split(_groups(a[:i] + a[i + 1 :]))
    chain = draft.split(groups)
    return {p: rest, q: chain} if rest and chain else None


def _divided(draft: Draft, chain: Chain, place: int, group: Group) -> Chain | None:
    """With one stage's layers divided between it and a new one beside it: all else is cut as before."""
    own, layers = chain[place]
    if layers < 2 or draft.limits.stages is not None:
        return None
    first = 1 + draft.below(layers - 1)
    pair = (own, group) if draft.random.random() < 0.5 else (group, own)
    return (*chain[:place], (pair[0], first), (pair[1], layers - first), *chain[place + 1 :])


def _without(draft: Draft, chain: Chain, place: int) -> Chain | None:
    """With one stage's layers in a neighbour: all else is cut as before."""
    if len(chain) < 2 or draft.limits.stages is not None:
        return None
    to = place - 1 if place and (place == len(chain) - 1 or draft.random.random() < 0.5) else place + 1
    stages = list(chain)
    stages[to] = (stages[to][0], stages[to][1] + stages[place][1])
    del stages[place]
    return tuple(stages)


def regroup(draft: Draft) -> Changes | None:
    """Two stages of one kind become one wider group, or a wide group two stages."""
    p = draft.pick()
    groups = _groups(draft.chains[p])
    i = draft.below(len(groups))
    if draft.random.random() < 0.5:
        group = groups[i]
        if len(group) < 2:
            return None
        half = len(group) // 2 if draft.random.random() < 0.7 else 1 + draft.below(len(group) - 1)
        groups[i : i + 1] = [group[:half], group[half:]]
    else:
        j = draft.below(len(groups))
        if i == j or draft.kinds[groups[i][0]] != draft.kinds[groups[j][0]]:
            return None
        groups[i] = tuple(sorted(groups[i] + groups[j]))
        del groups[j]
    chain = draft.split(groups)
    return {p: chain} if chain else None


def use_idle(draft: Draft) -> Changes | None:
    """Idle devices as a new stage, in the place of a group, or beside it as a wider one."""
    classes = draft.idle_classes()
    if not classes:
        return None
    member = classes[draft.below(len(classes))]
    p = draft.pick()
    groups = _groups(draft.chains[p])
    way = draft.random.random()
    i = draft.below(len(groups))
    if way < 0.4:
        size = 1 if draft.random.random() < 0.6 else 1 + draft.below(4)
        if size > draft.idle[member]:
            return None
        if draft.random.random() < 0.5:
            chain = _divided(draft, draft.chains[p], i, (member,) * size)
            return {p: chain} if chain else None
        groups.insert(draft.below(len(groups) + 1), (member,) * size)
    elif way < 0.8:
        size = len(groups[i]) if draft.random.random() < 0.6 else 1 + draft.below(4)
        if size > draft.idle[member]:
            return None
        groups[i] = (member,) * size
    else:
        size = len(groups[i])
        if size > draft.idle[member] or draft.kinds[groups[i][0]] != draft.kinds[member]:
            return None
        groups[i] = tuple(sorted(groups[i] + (member,) * size))
    chain = draft.split(groups)
    return {p: chain} if chain else None


def leave_idle(draft: Draft) -> Changes | None:
    """A stage's devices are left idle, or half of them."""
    p = draft.pick()
    groups = _groups(draft.chains[p])
    i = draft.below(len(groups))
    if draft.random.random() < 0.5 and len(groups[i]) > 1:
        groups[i] = groups[i][: len(groups[i]) // 2]
    elif draft.random.random() < 0.5:
        chain = _without(draft, draft.chains[p], i)
        return {p: chain} if chain else None
    else:
        del groups[i]
    chain = draft.split(groups)
    return {p: chain} if chain else None


def cross(draft: Draft) -> Changes | None:
    """Two pipelines exchange what comes after a place in each."""
    p, q = draft.pick(), draft.pick()
    if p == q:
        return None
    a, b = _groups(draft.chains[p]), _groups(draft.chains[q])
    i, j = draft.below(len(a) + 1), draft.below(len(b) + 1)
    if draft.random.random() < 0.5:
        return _crossed_at_a_cut(draft, p, q, i)
    first, second = draft.split(a[:i] + b[j:]), draft.split(b[:j] + a[i:])
    return {p: first, q: second} if first and second else None


def _crossed_at_a_cut(draft: Draft, p: int, q: int, place: int) -> Changes | None:
    """With their layers, where both are cut at the same block."""
    a, b = draft.chains[p], draft.chains[q]
    cut = sum(_layers(a[:place]))
    if not 0 < place < len(a):
        return None
    other = _holder(b, cut)
    if sum(_layers(b[:other])) != cut or (draft.limits.stages is not None and other != place):
        return None
    return {p: a[:place] + b[other:], q: b[:other] + a[place:]}


def imitate(draft: Draft) -> Changes | None:
    """A pipeline takes the order and layers of another one of the same groups."""
    p, q = draft.pick(), draft.pick()
    a, b = draft.chains[p], draft.chains[q]
    if a == b or len(a) != len(b) or sorted(_groups(a)) != sorted(_groups(b)):
        return None
    return {p: b}


def shift_cuts(draft: Draft) -> Changes | None:
    """A layer from whatever holds one block to whatever holds another, in all pipelines: the cuts between are shifted
    alike, so who reduces with whom stays as it is."""
    blocks = sum(_layers(draft.chains[0]))
    x, y = draft.below(blocks), draft.below(blocks)
    changes: Changes = {}
    for position, chain in enumerate(draft.chains):
        i, j = _holder(chain, x), _holder(chain, y)
        if i == j:
            continue
        if chain[i][1] < 2:
            return None
        stages = list(chain)
        stages[i], stages[j] = (stages[i][0], stages[i][1] - 1), (stages[j][0], stages[j][1] + 1)
        changes[position] = tuple(stages)
    return changes or None


def _holder(chain: Chain, block: int) -> int:
    """The stage that holds a block."""
    for stage, (_, layers) in enumerate(chain):
        block -= layers
        if block < 0:
            return stage
    raise AssertionError("a pipeline has all blocks")


def in_step(draft: Draft) -> Changes | None:
    """Two stages changed about, or all from one to the other turned round, at the same places of all pipelines that
    have the layers of this one; stages with their layers or without them. Or split anew, in all pipelines of its depth.
    """
    chain = draft.chains[draft.pick()]
    if len(chain) < 2:
        return None
    i, j = draft.below(len(chain)), draft.below(len(chain) - 1)
    j += j >= i
    way = 1 + draft.below(5)
    like, anew = _layers(chain), way in (3, 5)
    changes: Changes = {}
    for position, other in enumerate(draft.chains):
        if len(other) != len(like) or (not anew and _layers(other) != like):
            continue
        stages = list(other)
        if way == 1:
            stages[i], stages[j] = (stages[j][0], stages[i][1]), (stages[i][0], stages[j][1])
        elif way < 4:
            stages[i], stages[j] = stages[j], stages[i]
        else:
            first, last = min(i, j), max(i, j) + 1
            stages[first:last] = stages[first:last][::-1]
        found = draft.split([group for group, _ in stages]) if anew else tuple(stages)
        if found is None:
            return None
        changes[position] = found
    return changes


def imitate_layers(draft: Draft) -> Changes | None:
    """All pipelines of one depth take the layers of one of them."""
    like = _layers(draft.chains[draft.pick()])
    return {
        position: tuple(zip(_groups(other), like, strict=True))
        for position, other in enumerate(draft.chains)
        if len(other) == len(like) and _layers(other) != like
    }


def reordered(chains: list[Chain], pair: tuple[int, int]) -> list[Chain]:
    """Pipelines in another order, in which rings go through them: those from the first of the pair to the second turned
    round (2-opt: Croes 1958, doi:10.1287/opre.6.6.791); or, where it comes after the second, that one put before it.
    """
    i, j = pair
    if i < j:
        return [*chains[:i], *chains[i : j + 1][::-1], *chains[j + 1 :]]
    return [*chains[:j], chains[i], *chains[j:i], *chains[i + 1 :]]


def reorder(draft: Draft) -> Changes | None:
    """The pipelines in another order."""
    pair = draft.pick(), draft.pick()
    if len(draft.chains) < 3 or pair[0] == pair[1]:
        return None
    after = reordered(draft.chains, pair)
    return {p: chain for p, chain in enumerate(after) if chain != draft.chains[p]} or None


def found(draft: Draft) -> Changes | None:
    """One pipeline more: of idle devices, or of a part of another pipeline."""
    new = len(draft.chains)
    if draft.limits.replicas is not None or new >= draft.limits.most_replicas:
        return None
    if draft.random.random() < 0.5:
        groups: list[Group] = [(member,) for member in draft.idle_classes() for _ in range(draft.idle[member])]
        draft.random.shuffle(groups)
        chain = draft.split(groups[: 1 + draft.below(len(groups))], 1) if groups else None
        return {new: chain} if chain else None
    p = draft.pick()
    groups = _groups(draft.chains[p])
    i = draft.below(len(groups) + 1)
    first, second = draft.split(groups[:i], 1), draft.split(groups[i:], 1)
    return {p: first, new: second} if first and second else None


def dissolve(draft: Draft) -> Changes | None:
    """One pipeline less: its stages stay idle, or go into another."""
    if draft.limits.replicas is not None or len(draft.chains) < 2:
        return None
    p, q = draft.pick(), draft.pick()
    if p == q:
        return {p: None}
    chain = draft.split(_groups(draft.chains[q] + draft.chains[p]), -1)
    return {p: None, q: chain} if chain else None


Move = Callable[[Draft], Changes | None]
MOVES: tuple[tuple[Move, float], ...] = (
    (shift_layers, 0.20),
    (swap_groups, 0.24),
    (move_stage, 0.12),
    (regroup, 0.07),
    (use_idle, 0.10),
    (leave_idle, 0.03),
    (cross, 0.06),
    (imitate, 0.04),
    (in_step, 0.11),
    (shift_cuts, 0.09),
    (imitate_layers, 0.02),
    (reorder, 0.04),
    (found, 0.01),
    (dissolve, 0.01),
)
CHANGE_DEVICES = frozenset((use_idle, leave_idle, found, dissolve))  # the others only move them about
