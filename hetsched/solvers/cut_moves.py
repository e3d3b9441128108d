"""Moves that leave pipelines cut at the same blocks as before, or shift the cuts of all alike.

Who reduces with whom stays nearly as it is: where gradients of several stages share a network, that is what is fast.
"""

from hetsched.cost.chains import Chain, Group
from hetsched.solvers.draft import Changes, Draft, layers_of


def shift_cuts(draft: Draft) -> Changes | None:
    """A layer from the stage that holds one block to the one that holds another, in all pipelines: cuts between them
    are shifted alike.
    """
    blocks = sum(layers_of(draft.chains[0]))
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


def divided(draft: Draft, chain: Chain, place: int, group: Group) -> Chain | None:
    """With one stage's layers divided between it and a new one beside it: all else is cut as before."""
    own, layers = chain[place]
    if layers < 2 or draft.limits.stages is not None:
        return None
    first = 1 + draft.below(layers - 1)
    pair = (own, group) if draft.random.random() < 0.5 else (group, own)
    return (*chain[:place], (pair[0], first), (pair[1], layers - first), *chain[place + 1 :])


def without(draft: Draft, chain: Chain, place: int) -> Chain | None:
    """With one stage's layers in a neighbour: all else is cut as before."""
    if len(chain) < 2 or draft.limits.stages is not None:
        return None
    to = place - 1 if place and (place == len(chain) - 1 or draft.random.random() < 0.5) else place + 1
    stages = list(chain)
    stages[to] = (stages[to][0], stages[to][1] + stages[place][1])
    del stages[place]
    return tuple(stages)


def crossed_at_a_cut(draft: Draft, p: int, q: int, place: int) -> Changes | None:
    """Two pipelines exchange what comes after a place in the first, with its layers, where both are cut there."""
    a, b = draft.chains[p], draft.chains[q]
    cut = sum(layers_of(a[:place]))
    if not 0 < place < len(a):
        return None
    other = _holder(b, cut)
    if sum(layers_of(b[:other])) != cut or (draft.limits.stages is not None and other != place):
        return None
    return {p: a[:place] + b[other:], q: b[:other] + a[place:]}
