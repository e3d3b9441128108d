"""Starts whose pipelines go through the same nodes in the same order: each band of nodes holds a part of the blocks.

A line of nodes is cut into bands. In each the pipelines get runs of teams one after another, of about one speed; so a
pipeline goes through one or two nodes of every band, the messages between two bands are all that leave it, and what
all pipelines hold of a band's blocks is reduced inside it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np

from hetsched.cost.chains import Group
from hetsched.solvers.arena import Arenas, Hand, Place
from hetsched.solvers.megatron import WIDTHS
from hetsched.solvers.tilings import lines, spread

MOST_BANDS = 4
MOST_NODES = 9  # that a line may be cut between anywhere; of more only where region or kind change
MOST_CUTS = 7


def banded(arenas: Arenas, rng: np.random.Generator) -> Iterator[Iterator[Place]]:
    """Starts by the number of bands, from two on."""
    ordered = {tuple(line[0]) for line in lines(arenas, rng)[0] if len(line) == 1}
    for bands in range(2, MOST_BANDS + 1):
        yield _of_bands(arenas, sorted(ordered), bands)


def _of_bands(arenas: Arenas, ordered: Sequence[tuple[int, ...]], bands: int) -> Iterator[Place]:
    seen = set()
    for line in ordered:
        for cuts in combinations(_cuts(arenas, line), bands - 1):
            parts = [line[begin:end] for begin, end in zip((0, *cuts), (*cuts, len(line)), strict=True)]
            for hand in _hands(arenas, parts):
                if hand not in seen:
                    seen.add(hand)
                    place = arenas.settle(hand, quick=True)
                    if place is not None:
                        yield place


def _cuts(arenas: Arenas, line: Sequence[int]) -> list[int]:
    """Where a line may be cut."""
    inventory, nodes = arenas.inventory, arenas.problem.cluster.nodes
    kinds = [(inventory.kinds[member], nodes[inventory.nodes[member]].region) for member in line]
    found = [at for at in range(1, len(line)) if len(line) <= MOST_NODES or kinds[at] != kinds[at - 1]]
    if len(found) > MOST_CUTS:
        found = [found[round(at)] for at in np.linspace(0, len(found) - 1, MOST_CUTS)]
    return found


def _hands(arenas: Arenas, parts: Sequence[Sequence[int]]) -> Iterator[tuple[tuple[Group, ...], ...]]:
    choices, job = arenas.problem.choices, arenas.problem.job
    most, block_s = choices.stages or arenas.problem.model.num_layers, arenas.usual.pricer.block_s
    for width in WIDTHS:
        bands = [_Band(arenas, part, width) for part in parts]
        pipelines = min([job.global_batch, *(len(band.teams) for band in bands)])
        for replicas in [choices.replicas] if choices.replicas else spread(pipelines):
            if replicas > pipelines:
                break
            runs = [band.dealt(replicas) for band in bands]
            hand = tuple(_fastest([team for run in runs for team in run[k]], most, block_s) for k in range(replicas))
            if all(all(run) for run in runs) and (not choices.stages or all(len(groups) == most for groups in hand)):
                yield hand


def _fastest(groups: Sequence[Group], most: int, block_s: Callable[[Group], float]) -> tuple[Group, ...]:
    """So many of a pipeline's groups at most, in their order."""
    kept = sorted(range(len(groups)), key=lambda s: block_s(groups[s]))[:most]
    return tuple(groups[s] for s in sorted(kept))


class _Band:
    """The teams of some nodes, and how fast all up to each are together."""

    def __init__(self, arenas: Arenas, members: Sequence[int], width: int) -> None:
        counts, block_s = arenas.inventory.counts, arenas.usual.pricer.block_s
        self.teams: list[Group] = [(member,) * width for member in members for _ in range(counts[member] // width)]
        self._speeds = np.cumsum([0.0, *(1 / block_s(team) for team in self.teams)])

    def dealt(self, replicas: int) -> Hand:
        """Runs of about one speed."""
        aims = self._speeds[-1] * np.arange(replicas + 1) / replicas
        cuts = np.abs(self._speeds[:, None] - aims).argmin(axis=0).tolist()
        return [self.teams[begin:end] for begin, end in pairwise(cuts)]
