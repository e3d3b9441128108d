"""Walking a plan down by steps that its pipelines take together."""

from collections.abc import Callable
from itertools import permutations
from random import Random

from hetsched.cost.chains import Chain
from hetsched.solvers.arena import Place
from hetsched.solvers.chain_moves import reordered
from hetsched.solvers.draft import layers_of


def in_step(place: Place, random: Random, seconds: float) -> Place:
    """A plan walked down by the order of its pipelines, in which rings go round; then, where all have the same layers,
    by single ones that all of them shift alike, and by two stages that change about in all of them, or turn round with
    all between them. Each of the three takes about so many seconds at most.
    """
    chains = place.standing.chains
    place = _descent(place, list(permutations(range(len(chains)), 2)), reordered, random, seconds)
    if any(layers_of(chain) != layers_of(chains[0]) for chain in chains):
        return place
    stages = list(permutations(range(len(chains[0])), 2))
    return _descent(_descent(place, stages, _shifted, random, seconds), stages, _turned, random, seconds)


def _shifted(chains: list[Chain], pair: tuple[int, int]) -> list[Chain] | None:
    """A layer less in one stage of each pipeline, and one more in another."""
    i, j = pair
    if chains[0][i][1] < 2:
        return None
    return [tuple((group, count + (s == j) - (s == i)) for s, (group, count) in enumerate(chain)) for chain in chains]


def _turned(chains: list[Chain], pair: tuple[int, int]) -> list[Chain]:
    """Two stages of each pipeline have changed about; or, the other way about, all from one to the other are turned
    round.
    """
    first, last = min(pair), max(pair)
    if pair[0] < pair[1]:
        order = [last if s == first else first if s == last else s for s in range(len(chains[0]))]
    else:
        order = [*range(first), *range(last, first - 1, -1), *range(last + 1, len(chains[0]))]
    return [tuple(chain[s] for s in order) for chain in chains]


def _descent(
    place: Place,
    pairs: list[tuple[int, int]],
    changed: Callable[[list[Chain], tuple[int, int]], list[Chain] | None],
    random: Random,
    seconds: float,
) -> Place:
    """Each pair is tried once in a round, in a random order, for about so many seconds at most."""
    pricer, standing = place.arena.pricer, place.standing
    left = max(10, int(seconds / pricer.move_s(standing.chains)))
    gained = True
    while gained and left > 0:
        gained = False
        random.shuffle(pairs)
        for pair in pairs[:left]:
            chains = changed(standing.chains, pair)
            if chains is None:
                continue
            left -= 1
            trial = pricer.stand(chains, standing.guide_s, standing)
            if trial.guide_s < standing.guide_s:
                standing, gained = trial, True
    return Place(place.arena, standing)
