"""How long the algorithms take on fixed work: `python tests/benchmarks/bench_algorithms.py`."""

import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np

from hetsched.algorithms.assignment import bottleneck_assignment, bottleneck_values, sum_assignment
from hetsched.algorithms.chain_split import chain_split
from hetsched.algorithms.graph_partition import improve, partition
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


def table() -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    rng = np.random.default_rng(0)
    work: dict[str, Callable[[], object]] = {}
    for n in (8, 12, 13, 16):
        work[f"held_karp, {n} nodes"] = lambda c=rng.random((n, n)): held_karp(c)
    for n in (16, 24, 40):
        work[f"local_search, {n} nodes"] = lambda c=rng.random((n, n)): local_search(c, np.random.default_rng(1))
    for n in (8, 16, 64, 128):
        work[f"bottleneck_assignment, {n} x {n}"] = lambda c=rng.random((n, n)): bottleneck_assignment(c)
    work["bottleneck_assignment then_sum, 64 x 64"] = lambda c=rng.random((64, 64)): bottleneck_assignment(
        c, then_sum=True
    )
    work["sum_assignment, 64 x 64"] = lambda c=rng.random((64, 64)): sum_assignment(c)
    for k, n in ((28, 8), (2000, 4), (2000, 8), (2000, 10)):
        work[f"bottleneck_values, {k} of {n} x {n}"] = lambda c=rng.random((k, n, n)): bottleneck_values(c)
    for k, n in ((4, 32), (8, 80), (64, 128)):
        work[f"chain_split with memory, {n} over {k}"] = lambda c=rng.random((k, n)): chain_split(
            c, item_memory=np.ones(c.shape), capacity=np.full(len(c), 2.0 * c.shape[1] / len(c))
        )
    for n, groups in ((16, 4), (64, 8), (128, 16)):
        weight, labels = rng.random((n, n)), rng.permutation(np.arange(n) % groups)
        sizes = np.bincount(labels).tolist()
        for objective in ("bottleneck", "sum"):
            name = f"{objective}, {n} nodes in {groups}"
            work[f"improve, {name}"] = lambda w=weight, a=labels, o=objective: improve(w, a, o)
            work[f"partition, {name}"] = lambda w=weight, s=sizes, o=objective: partition(
                w, s, np.random.default_rng(1), o
            )
    return work


if __name__ == "__main__":
    for name, work in table().items():
        sys.stdout.write(f"{name:<48} {milliseconds(work):10.3f} ms\n")
