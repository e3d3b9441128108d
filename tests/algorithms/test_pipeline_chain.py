"""Chains of stages: equal to trying every chain, on random small pools."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf

import numpy as np
import pytest

from hetsched.algorithms.pipeline_chain import ChainStage, Option, best_chain

Chosen = tuple[tuple[int, int], ...]  # (pool, option) of each stage


def every_choice(machines: Sequence[Sequence[int]], options: Sequence[Sequence[Option]]) -> Iterator[Chosen]:
    """All ordered choices of stages that the machines hold, none empty."""

    def grow(left: tuple[tuple[int, ...], ...], chosen: Chosen) -> Iterator[Chosen]:
        if chosen:
            yield chosen
        for pool, counts in enumerate(left):
            for number, option in enumerate(options[pool]):
                for machine in {counts.index(c) for c in counts if c >= option.degree}:
                    rest = [list(c) for c in left]
                    rest[pool][machine] -= option.degree
                    yield from grow(tuple(map(tuple, rest)), (*chosen, (pool, number)))

    yield from set(grow(tuple(map(tuple, machines)), ()))


def best_split(chosen: Chosen, options: Sequence[Sequence[Option]], hop_s: np.ndarray, layers: int) -> float:
    """The least time over all ways to share out the layers, each stage at least one."""
    depth = len(chosen)
    total = sum(hop_s[a[0], b[0]] for a, b in pairwise(chosen))
    spare = []
    for place, (pool, number) in enumerate(chosen):
        option = options[pool][number]
        role = 3 if depth == 1 else 1 if place == 0 else 2 if place == depth - 1 else 0
        total += option.layer_s
        total += option.first_s if place == 0 else 0.0
        total += option.last_s if place == depth - 1 else 0.0
        if option.most[role] < 1:
            return inf
        spare.append((option.layer_s, option.most[role] - 1))
    left = layers - depth
    if left < 0:
        return inf
    for layer_s, room in sorted(spare):  # linear costs: the fastest first
        taken = min(room, left)
        total += taken * layer_s
        left -= taken
    return inf if left else float(total)


def seconds_of(stages: Sequence[ChainStage], options: Sequence[Sequence[Option]], hop_s: np.ndarray) -> float:
    chosen = [options[stage.pool][stage.option] for stage in stages]
    hops = sum(hop_s[a.pool, b.pool] for a, b in pairwise(stages))
    held = sum(stage.layers * option.layer_s for stage, option in zip(stages, chosen, strict=True))
    return float(held + hops + chosen[0].first_s + chosen[-1].last_s)


def random_pools(rng: np.random.Generator) -> tuple[list[list[int]], list[list[Option]], np.ndarray, int]:
    pools = int(rng.integers(1, 4))
    layers = int(rng.integers(2, 9))
    machines = [[int(n) for n in rng.integers(1, 4 if pools < 3 else 3, rng.integers(1, 3))] for _ in range(pools)]
    while sum(map(sum, machines)) > 6:
        machines.pop()
    options = []
    for _ in machines:
        degrees = [k for k in (1, 2, 3) if rng.random() < 0.8] or [1]
        rows = []
        for k in degrees:
            a, b, c, d = (int(x) for x in rng.integers(0, 6, 4))
            rows.append(Option(k, float(rng.uniform(1, 5) / k**0.7), (a, b, c, d), *map(float, rng.uniform(0, 2, 2))))
        options.append(rows)
    hop_s = rng.uniform(0.1, 3.0, (len(machines), len(machines)))
    hop_s[rng.random(hop_s.shape) < 0.1] = inf
    return machines, options, hop_s, layers


def test_equal_to_trying_every_chain() -> None:
    """100 random groups of at most 6 GPUs; some have no chain at all."""
    feasible = 0
    for seed in range(100):
        machines, options, hop_s, layers = random_pools(np.random.default_rng(seed))
        chain = best_chain(machines, options, hop_s, layers)
        least = min(
            (best_split(chosen, options, hop_s, layers) for chosen in every_choice(machines, options)), default=inf
        )
        if chain is None:
            assert least == inf
            continue
        feasible += 1
        assert chain.seconds == pytest.approx(least, rel=1e-12)
        assert seconds_of(chain.stages, options, hop_s) == pytest.approx(chain.seconds, rel=1e-12)
        assert sum(stage.layers for stage in chain.stages) == layers
        assert tuple((s.pool, s.option) for s in chain.stages) in set(every_choice(machines, options))
    assert 30 <= feasible < 100


def test_thirty_mixed_gpus() -> None:
    """Machines of 8, 8, 6, 4, 2, 2 GPUs, 80 layers; no chain by hand is better, nor are the costs other than said."""
    options = [
        [Option(k, c / k**0.8, (4 * k, 4 * k, 4 * k - 1, 0), 0.1, 0.2) for k in (1, 2, 4, 8)]
        for c in (1.0, 1.3, 2.1, 3.0)
    ]
    hop_s = np.full((4, 4), 0.5)
    chain = best_chain([[8, 8], [6], [4], [2, 2]], options, hop_s, 80)
    assert chain is not None
    assert sum(stage.layers for stage in chain.stages) == 80
    assert seconds_of(chain.stages, options, hop_s) == pytest.approx(chain.seconds, rel=1e-12)
    by_hand = [ChainStage(1, 2, 16, 6), ChainStage(0, 3, 32, 8), ChainStage(0, 3, 31, 8), ChainStage(2, 2, 1, 4)]
    assert chain.seconds <= seconds_of(by_hand, options, hop_s)
