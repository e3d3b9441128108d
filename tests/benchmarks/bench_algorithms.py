"""How long the algorithms take on fixed work: `python tests/benchmarks/bench_algorithms.py`."""

import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np

from hetsched.algorithms.assignment import bottleneck_assignment, bottleneck_values, sum_assignment
from hetsched.algorithms.chain_split import chain_split
from hetsched.algorithms.graph_partition import Objective, improve, partition
from hetsched.algorithms.open_tsp import held_karp, local_search

SHORT_S = 0.2


def milliseconds(work: Callable[[], object]) -> float:
    """The best of three rounds, each of as many calls as make a short while."""
    work()  # tables that are made once
    begun = perf_counter()
    work()
    calls = max(1, int(SHORT_S / (perf_counter() - begun)))
    rounds = []
    for _ in range(3):
        begun = perf_counter()
        for _ in range(calls):
            work()
        rounds.append((perf_counter() - begun) / calls)
    return min(rounds) * 1e3


def seeded(algorithm: Callable[..., object], *given: object, **named: object) -> object:
    """The same work each time, whatever the algorithm draws."""
    return algorithm(*given, rng=np.random.default_rng(1), **named)


def table() -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    rng = np.random.default_rng(0)
    work: dict[str, Callable[[], object]] = {}
    for n in (8, 12, 13, 16):
        work[f"held_karp, {n} nodes"] = partial(held_karp, rng.random((n, n)))
    for n in (16, 24, 40):
        work[f"local_search, {n} nodes"] = partial(seeded, local_search, rng.random((n, n)))
    for n in (8, 16, 64, 128):
        work[f"bottleneck_assignment, {n} x {n}"] = partial(bottleneck_assignment, rng.random((n, n)))
    square = rng.random((64, 64))
    work["bottleneck_assignment then_sum, 64 x 64"] = partial(bottleneck_assignment, square, then_sum=True)
    work["sum_assignment, 64 x 64"] = partial(sum_assignment, square)
    for k, n in ((28, 8), (2000, 4), (2000, 8), (2000, 10)):
        work[f"bottleneck_values, {k} of {n} x {n}"] = partial(bottleneck_values, rng.random((k, n, n)))
    for k, n in ((4, 32), (8, 80), (64, 128)):
        work[f"chain_split with memory, {n} over {k}"] = partial(
            chain_split, rng.random((k, n)), item_memory=np.ones((k, n)), capacity=np.full(k, 2.0 * n / k)
        )
    objectives: tuple[Objective, ...] = ("bottleneck", "sum")
    for n, groups in ((16, 4), (64, 8), (128, 16)):
        weight, labels = rng.random((n, n)), rng.permutation(np.arange(n) % groups)
        sizes = np.bincount(labels).tolist()
        for objective in objectives:
            name = f"{objective}, {n} nodes in {groups}"
            work[f"improve, {name}"] = partial(improve, weight, labels, objective)
            work[f"partition, {name}"] = partial(seeded, partition, weight, sizes, objective=objective)
    return work


if __name__ == "__main__":
    for name, work in table().items():
        sys.stdout.write(f"{name:<48} {milliseconds(work):10.3f} ms\n")
