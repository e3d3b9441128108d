"""Baseline `distserve`: the best pair of one layout for all prefill replicas and one for all decode replicas.

After DistServe (Zhong et al. 2024, OSDI, arXiv 2401.09670): each phase has its own tensor-parallel degree and depth,
the same for all of its replicas, and as many replicas as match the other phase; made for equal GPUs. On a mixed cluster
GPUs are taken in inventory order, layers are even, and requests are shared by the flow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from hetsched.cost.serving.placed import even_layers
from hetsched.plan import Stage
from hetsched.solvers.serving.phases import Flowing, Phases
from hetsched.solvers.serving.uniform import shapes, teams
from hetsched.solvers.serving.workshop import Draft, Replica, Workshop

FINALISTS = 8
FEW_SHAPES, MOST_SHAPES = 24, 12  # of all degrees and depths; of a role
MOST_COUNTS = 8  # numbers of prefill replicas that are tried, evenly spaced where there are more

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class DistServe:
    """Every pair of degrees and depths, and numbers of prefill replicas; the others decode."""

    name: str = "distserve"
    apart: bool = True

    def steps(self, workshop: Workshop) -> int:
        """As many as there are pairs and numbers of prefill replicas, at most, and the drafts."""
        return min(len(_few(shapes(workshop))), MOST_SHAPES) ** 2 * MOST_COUNTS + FINALISTS

    def search(self, workshop: Workshop, rng: np.random.Generator) -> Iterator[Draft | None]:
        """None for each pair and number of prefill replicas; then drafts of those with most flow, the best first."""
        phases, known = Phases(workshop), dict[tuple[tuple[Stage, ...], str], Replica]()
        pairs: list[list[Replica]] = []

        def made(stages: tuple[Stage, ...], role: str) -> Replica:
            if (stages, role) not in known:
                known[stages, role] = workshop.made(stages, role)
            return known[stages, role]

        def best(role: str) -> list[Shape]:
            """The shapes of most requests a second for a GPU: all of them where they are few."""
            worth = {shape: _worth([made(s, role) for s in _replicas(workshop, shape, frozenset())]) for shape in tried}
            return sorted(tried, key=lambda shape: -worth[shape])[:MOST_SHAPES]

        tried = _few(shapes(workshop))
        for prefill, decode in product(best("prefill"), best("decode")):
            for first, second in _divisions(workshop, prefill, decode):
                replicas = [made(stages, "prefill") for stages in first] + [made(s, "decode") for s in second]
                replicas = [made(stages, "prefill") for stages in first] + [made(s, "decode") for s in second]
                pairs.append([replica for replica in replicas if replica.rate_per_s > 0.0])
                yield None
        for flowing in _most(phases, pairs):
            yield phases.draft(flowing)


def _most(phases: Phases, pairs: list[list[Replica]]) -> list[Flowing]:
    """The `FINALISTS` of most flow, the best first; none flows more than the weaker side does."""
    bounds = [
        min(sum(r.rate_per_s for r in pair if r.role == role) for role in ("prefill", "decode")) for pair in pairs
    ]
    found: list[Flowing] = []
    for number in sorted(range(len(pairs)), key=lambda number: -bounds[number]):
        if len(found) == FINALISTS and bounds[number] <= found[-1].value_per_s:
            break
        found.append(phases.flowing(pairs[number]))
        found.sort(key=lambda flowing: -flowing.value_per_s)
        del found[FINALISTS:]
    return found


def _worth(replicas: list[Replica]) -> float:
    """Requests a second for each GPU."""
    gpus = sum(len(stage.devices) for replica in replicas for stage in replica.stages)
    return sum(replica.rate_per_s for replica in replicas) / max(1, gpus)


def _few(found: list[Shape]) -> list[Shape]:
    """All shapes where they are few; else for each degree the least depth, and twice, four, ... times that."""
    if len(found) <= FEW_SHAPES:
        return found
    least = {degree: min(depth for other, depth in found if other == degree) for degree, _ in found}
    return [(d, depth) for d, depth in found if depth % least[d] == 0 and (depth // least[d]).bit_count() == 1]


def _divisions(
    workshop: Workshop, prefill: Shape, decode: Shape
) -> Iterator[tuple[list[tuple[Stage, ...]], list[tuple[Stage, ...]]]]:
    """Stages of prefill replicas on the first GPUs, and of decode replicas on what is left."""
    whole = _replicas(workshop, prefill, frozenset())
    counts: Sequence[int] = range(1, len(whole) + 1)
    if len(counts) > MOST_COUNTS:
        counts = sorted({int(k) for k in np.linspace(1, len(whole), MOST_COUNTS)})
    for count in counts:
        first = whole[:count]
        used = frozenset(name for stages in first for stage in stages for name in stage.devices)
        second = _replicas(workshop, decode, used)
        if second:
            yield first, second


def _replicas(workshop: Workshop, shape: Shape, used: frozenset[str]) -> list[tuple[Stage, ...]]:
    """All replicas of a shape on GPUs that are not in use, in inventory order."""
    degree, depth = shape
    groups = teams(workshop, degree, used)
    layers = even_layers(workshop.problem.model.num_layers, depth)
    return [
        tuple(Stage(held, names) for held, names in zip(layers, groups[at : at + depth], strict=True))
        for at in range(0, len(groups) - depth + 1, depth)
    ]
