"""A plan of chains walked down by small changes of one pipeline, each tried in turn until none of them is better."""

from collections import Counter
from collections.abc import Iterator, Sequence

from hetsched.cost.chains import Chain
from hetsched.solvers.arena import Arena, Place

Mix = tuple[tuple[int, int], ...]  # how many devices of each class, by class


def polished(place: Place, mixes: Sequence[Mix], trials: int) -> Place:
    """The plan walked down by changes of one pipeline, in all that are like it, priced as a whole: what the programme
    does not see, messages that cross and links that a pipeline shares with itself above all.

    mixes: what each may be made of; trials: how many changes are tried at most.
    """
    arena, standing = place.arena, place.standing
    gained = True
    while gained:
        gained = False
        alike: dict[tuple[Chain, Mix], None] = dict.fromkeys(zip(standing.chains, mixes, strict=True))
        for chain, mix in alike:
            here = [like == (chain, mix) for like in zip(standing.chains, mixes, strict=True)]
            for other in _near(arena, chain, mix, len(mixes)):
                if not trials:
                    return Place(arena, standing)
                trials -= 1
                chains = [other if own else kept for own, kept in zip(here, standing.chains, strict=True)]
                trial = arena.pricer.stand(chains, standing.guide_s, standing)
                if trial.guide_s < standing.guide_s:
                    standing, gained = trial, True
                    break
    return Place(arena, standing)


def _near(arena: Arena, chain: Chain, mix: Mix, pipelines: int) -> Iterator[Chain]:
    """A stage less; a device more, as a stage at each place; a layer elsewhere; two stages changed about."""
    groups = [group for group, _ in chain]
    used = Counter(member for group in groups for member in group)
    hands = [groups[:s] + groups[s + 1 :] for s in range(len(groups)) if len(groups) > 1]
    idle = [member for member, count in mix if used[member] < count]
    hands += [[*groups[:s], (member,), *groups[s:]] for member in idle for s in range(len(groups) + 1)]
    for hand in hands:
        found = arena.pricer.split(tuple(hand), pipelines)
        if found is not None and arena.limits.allow(found):
            yield found
    pairs = [(i, j) for i in range(len(chain)) for j in range(len(chain)) if i != j]
    for i, j in sorted(pairs, key=lambda pair: abs(pair[0] - pair[1])):
        stages = list(chain)
        if chain[i][1] > 1:
            stages[i], stages[j] = (groups[i], chain[i][1] - 1), (groups[j], chain[j][1] + 1)
            yield tuple(stages)
        if i < j and groups[i] != groups[j]:
            stages = list(chain)
            stages[i], stages[j] = chain[j], chain[i]
            yield tuple(stages)
