"""Moves of a local search on asymmetric plans (`draft`): each changes one pipeline or two, or how many there are."""

from collections.abc import Callable

from hetsched.cost.chains import Chain, Group
from hetsched.solvers.cut_moves import crossed_at_a_cut, divided, shift_cuts, without
from hetsched.solvers.draft import Changes, Draft, groups_of, layers_of


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
        rest, chain = without(draft, a, i), divided(draft, b, draft.below(len(b)), a[i][0])
        return {p: rest, q: chain} if rest and chain else None
    groups = groups_of(b)
    groups.insert(draft.below(len(b) + 1), a[i][0])
    rest = draft.split(groups_of(a[:i] + a[i + 1 :]))
    chain = draft.split(groups)
    return {p: rest, q: chain} if rest and chain else None


def regroup(draft: Draft) -> Changes | None:
    """Two stages of one kind become one wider group, or a wide group two stages."""
    p = draft.pick()
    groups = groups_of(draft.chains[p])
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
    groups = groups_of(draft.chains[p])
    way = draft.random.random()
    i = draft.below(len(groups))
    if way < 0.4:
        size = 1 if draft.random.random() < 0.6 else 1 + draft.below(4)
        if size > draft.idle[member]:
            return None
        if draft.random.random() < 0.5:
            chain = divided(draft, draft.chains[p], i, (member,) * size)
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
    groups = groups_of(draft.chains[p])
    i = draft.below(len(groups))
    if draft.random.random() < 0.5 and len(groups[i]) > 1:
        groups[i] = groups[i][: len(groups[i]) // 2]
    elif draft.random.random() < 0.5:
        chain = without(draft, draft.chains[p], i)
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
    a, b = groups_of(draft.chains[p]), groups_of(draft.chains[q])
    i, j = draft.below(len(a) + 1), draft.below(len(b) + 1)
    if draft.random.random() < 0.5:
        return crossed_at_a_cut(draft, p, q, i)
    first, second = draft.split(a[:i] + b[j:]), draft.split(b[:j] + a[i:])
    return {p: first, q: second} if first and second else None


def imitate(draft: Draft) -> Changes | None:
    """A pipeline takes the order and layers of another one of the same groups."""
    p, q = draft.pick(), draft.pick()
    a, b = draft.chains[p], draft.chains[q]
    if a == b or len(a) != len(b) or sorted(groups_of(a)) != sorted(groups_of(b)):
        return None
    return {p: b}


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
    like, anew = layers_of(chain), way in (3, 5)
    changes: Changes = {}
    for position, other in enumerate(draft.chains):
        if len(other) != len(like) or (not anew and layers_of(other) != like):
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
    like = layers_of(draft.chains[draft.pick()])
    return {
        position: tuple(zip(groups_of(other), like, strict=True))
        for position, other in enumerate(draft.chains)
        if len(other) == len(like) and layers_of(other) != like
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
    groups = groups_of(draft.chains[p])
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
    chain = draft.split(groups_of(draft.chains[q] + draft.chains[p]), -1)
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
