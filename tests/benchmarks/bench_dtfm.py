"""How good and how fast the solvers are under DT-FM's formula: `python tests/benchmarks/bench_dtfm.py --help`.

The five published scenarios (Yuan et al. 2022, arXiv 2206.01288) with a fixed number of steps, and harder instances
with a time budget. All with GPT3-XL and the paper's messages. Nodes stand in an order shuffled by the seed, since
inventory order is itself a good plan for some scenarios.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.published.dtfm import DtFm
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster
from hetsched.search import AnyOf, MaxSeconds, MaxSteps, Progress, Result, StopRule, solve
from hetsched.solvers import SOLVERS
from hetsched.units import BYTES_PER_S_PER_GBPS
from hetsched.workload import TrainingJob

SPECS = Path(__file__).parents[2] / "cluster_specs"
TOLERANCE = 1.0005
REFERENCE_S = {  # the best known; none is proven optimal
    "dtfm-datacenter": 3.4398,
    "dtfm-spot": 49.5039,
    "dtfm-universities": 16.0868,
    "dtfm-regional": 34.802,
    "dtfm-worldwide": 49.2184,
}
UNEVEN = (11, 3, 9, 6, 2, 7, 5, 10, 4, 7)  # GPUs in each of the ten cities, in the file's order


@dataclass(frozen=True, slots=True)
class Hard:
    """A harder instance."""

    name: str
    cluster: Callable[[], Cluster]
    replicas: int
    stages: int


def ten_cities(counts: tuple[int, ...] | None = None) -> Cluster:
    """The measured cities with eight GPUs each, or with these counts."""
    cluster = read_cluster(SPECS / "ten-cities.yaml")
    if counts is None:
        return cluster
    first = {
        region: next(n for n, node in enumerate(cluster.nodes) if node.region == region) for region in cluster.regions
    }
    chosen = [first[region] for region, count in zip(cluster.regions, counts, strict=True) for _ in range(count)]
    numbers = [k for count in counts for k in range(count)]
    nodes = tuple(
        replace(cluster.nodes[n], name=f"{cluster.nodes[n].region}-{k}") for n, k in zip(chosen, numbers, strict=True)
    )
    two = cluster.links([first[cluster.regions[0]]], [first[cluster.regions[0]] + 1])  # two machines of one city
    at = np.ix_(chosen, chosen)
    bandwidth, latency = cluster.network.bandwidth_bytes_per_s[at], cluster.network.latency_s[at]
    same = np.equal.outer(chosen, chosen)
    latency[same], bandwidth[same] = float(two[0][0, 0]), float(two[1][0, 0])
    return Cluster("ten-cities-uneven", nodes, Network(bandwidth, latency))


def random_sites(sites: int = 32, gpus: int = 256, seed: int = 0) -> Cluster:
    """GPUs at uniform sites in the unit square: a synthetic network, symmetric, slower the farther.

    Between sites 5 ms + 200 ms × distance, and 1.2 - 0.7 × distance Gbit/s with noise N(0, 0.05), kept in 0.2 to 2;
    inside one 5 ms and 2 Gbit/s. Each GPU's site is uniform.
    """
    rng = np.random.default_rng(seed)
    place = rng.random((sites, 2))
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    noise = np.triu(rng.normal(0, 0.05, (sites, sites)), 1)
    gbps = np.clip(1.2 - 0.7 * distance + noise + noise.T, 0.2, 2.0)
    latency_s = 0.005 + 0.2 * distance
    np.fill_diagonal(gbps, 2.0)
    site = rng.integers(sites, size=gpus)
    gpu = find_gpu("V100-SXM2-16GB", "the benchmark")
    nodes = tuple(Node(f"gpu-{k}", f"site-{s}", (gpu,)) for k, s in enumerate(site))
    at = np.ix_(site, site)
    return Cluster("random-sites", nodes, Network(gbps[at] * BYTES_PER_S_PER_GBPS, latency_s[at]))


HARD = (
    Hard("ten cities, 10 x 8", ten_cities, 10, 8),
    Hard("ten cities, 8 x 10", ten_cities, 8, 10),
    Hard("uneven cities, 8 x 8", lambda: ten_cities(UNEVEN), 8, 8),
    Hard("256 GPUs, 16 x 16", random_sites, 16, 16),
)


def shuffled(cluster: Cluster, seed: int) -> Cluster:
    """The same nodes in another order."""
    order = np.random.default_rng(seed).permutation(len(cluster.nodes))
    at = np.ix_(order, order)
    network = Network(cluster.network.bandwidth_bytes_per_s[at], cluster.network.latency_s[at])
    return replace(cluster, nodes=tuple(cluster.nodes[n] for n in order), network=network)


def problem_of(cluster: Cluster, replicas: int, stages: int, order: str, seed: int) -> Problem:
    model = find_model("gpt3-xl")
    if model is None:
        raise AssertionError("the catalogue has gpt3-xl")
    if order == "shuffled":
        cluster = shuffled(cluster, seed)
    return Problem(cluster, model, TrainingJob(512, 2048), Choices(replicas, stages, published_batch=True))


def timed(problem: Problem, solver: str, seed: int, stop: StopRule | None) -> tuple[Result, float]:
    """The result, and the CPU seconds it took."""
    begun = time.process_time()
    result = solve(problem, SOLVERS[solver], DtFm(), seed=seed, stop=stop)
    return result, time.process_time() - begun


def down_to(cost_s: float) -> StopRule:
    def rule(progress: Progress) -> bool:
        return progress.best is not None and progress.best.cost.iteration_s <= cost_s

    return rule


def scenarios(seeds: int, order: str, most: int) -> Iterator[str]:
    """`auto` in its default steps, and how many candidates `evolutionary` needs, at most `most`."""
    columns = f"{'auto':>10} {'CPU s':>7} {'at step':>8} {'evolutionary':>13} {'CPU s':>7} {'candidates':>11}"
    yield f"{'scenario':<18} seed {'reference':>10} {columns}"
    for name, reference in REFERENCE_S.items():
        cluster, missed = read_cluster(SPECS / f"{name}.yaml"), 0
        for seed in range(seeds):
            problem = problem_of(cluster, 8, 8, order, seed)
            auto, auto_s = timed(problem, "auto", seed, None)
            stop = AnyOf((MaxSteps(most), down_to(reference * TOLERANCE)))
            alone, alone_s = timed(problem, "evolutionary", seed, stop)
            missed += auto.cost.iteration_s > reference * TOLERANCE
            needed = str(alone.candidates) if alone.cost.iteration_s <= reference * TOLERANCE else f"> {most}"
            yield (
                f"{name:<18} {seed:>4} {reference:>10.4f} {auto.cost.iteration_s:>10.4f} {auto_s:>7.2f} "
                f"{auto.trace[-1].step:>8} {alone.cost.iteration_s:>13.4f} {alone_s:>7.2f} {needed:>11}"
            )
        yield f"{name:<18} auto above the reference: {missed} of {seeds}"


def hard(seeds: int, order: str, seconds: float, solvers: list[str]) -> Iterator[str]:
    """The best that each solver finds in the time."""
    yield f"{'instance':<22} {'solver':<13} seed {'cost':>10} {'found at s':>11} {'candidates':>11}"
    for instance in HARD:
        cluster = instance.cluster()
        for solver in solvers:
            costs = []
            for seed in range(seeds):
                problem = problem_of(cluster, instance.replicas, instance.stages, order, seed)
                result, _ = timed(problem, solver, seed, MaxSeconds(seconds))
                costs.append(result.cost.iteration_s)
                yield (
                    f"{instance.name:<22} {solver:<13} {seed:>4} {costs[-1]:>10.4f} {result.trace[-1].seconds:>11.1f} "
                    f"{result.candidates:>11}"
                )
            spread = f"best {min(costs):.4f}, mean {np.mean(costs):.4f}, worst {max(costs):.4f}"
            yield f"{instance.name:<22} {solver:<13} {spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("part", nargs="?", choices=("all", "scenarios", "hard"), default="all")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to this less one (default: 10)")
    parser.add_argument("--candidates", type=int, default=2000, help="of `evolutionary` alone at most (default: 2000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each harder instance and seed (default: 20)")
    parser.add_argument("--solvers", nargs="+", choices=sorted(SOLVERS), default=["auto"], help="for the harder ones")
    parser.add_argument("--order", choices=("shuffled", "inventory"), default="shuffled", help="of the nodes")
    given = parser.parse_args()
    parts: list[Iterator[str]] = []
    if given.part != "hard":
        parts.append(scenarios(given.seeds, given.order, given.candidates))
    if given.part != "scenarios":
        parts.append(hard(given.seeds, given.order, given.seconds, given.solvers))
    for lines in parts:
        for line in lines:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
