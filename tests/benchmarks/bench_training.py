"""How good and how fast the planners of training are: `python tests/benchmarks/bench_training.py --help`.

flashflex: the eight published rows (Yan et al. 2024, arXiv 2409.01143) by that paper's formulas, against the best known
tokens a second, and clusters of other shapes against what longer runs found. specs: every bundled cluster by the
roofline, against `megatron`, single solvers and the lower bound. large: 1,024 GPUs of five kinds in five regions.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hetsched.bound import lower_bound_s
from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Gpu, Network, Node
from hetsched.cost import COST_MODELS
from hetsched.cost.account import MEMORY_FRACTION
from hetsched.errors import InfeasibleError
from hetsched.finish import best_played, run_baseline
from hetsched.model import ModelSpec
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster
from hetsched.search import MaxSeconds, Result, solve
from hetsched.solvers import SOLVERS
from hetsched.units import BYTES_PER_S_PER_GBPS
from hetsched.workload import TrainingJob

SPECS = Path(__file__).parents[2] / "cluster_specs"
FLASHFLEX = {  # (cluster, model): the best known tokens a second, by a short local search under the same formulas
    ("flashflex-a-slow", "llama-2-7b"): 30265,
    ("flashflex-a-fast", "llama-2-7b"): 38894,
    ("flashflex-a-slow", "llama-2-13b"): 16388,
    ("flashflex-a-fast", "llama-2-13b"): 20442,
    ("flashflex-b-slow", "llama-2-7b"): 35751,
    ("flashflex-b-fast", "llama-2-7b"): 41338,
    ("flashflex-b-slow", "llama-2-13b"): 19829,
    ("flashflex-b-fast", "llama-2-13b"): 21148,
}
MACHINES = {"homogeneous A100": ("A100",) * 4, "homogeneous 4090": ("4090",) * 5}
MACHINES["56 GPUs of four kinds"] = ("3080Ti", "3090", "4090", "4090", "4090", "A100", "A100")
FIGURES = {"3080Ti": (56.9, 12, 20), "3090": (80, 24, 2), "4090": (165.2, 24, 2), "A100": (312, 80, 200)}
OTHERS = (  # machines, model, GB/s between them
    ("homogeneous A100", "llama-2-13b"),
    ("homogeneous 4090", "llama-2-7b"),
    ("56 GPUs of four kinds", "llama-30b"),
    ("8 GPUs of three kinds", "llama-2-7b"),
)
ROOFLINE = (  # cluster, model, sequences, tokens in one
    ("dtfm-datacenter", "gpt3-xl", 512, 2048),
    ("dtfm-spot", "gpt3-xl", 512, 2048),
    ("dtfm-universities", "gpt3-xl", 512, 2048),
    ("dtfm-regional", "gpt3-xl", 512, 2048),
    ("dtfm-worldwide", "gpt3-xl", 512, 2048),
    ("ten-cities", "gpt3-xl", 512, 2048),
    ("home-office", "llama-2-7b", 512, 4096),
    ("home-office", "opt-1.3b", 512, 2048),
    ("flashflex-a-slow", "llama-2-7b", 480, 4096),
    ("flashflex-a-fast", "llama-2-13b", 480, 4096),
    ("flashflex-b-slow", "llama-2-13b", 480, 4096),
    ("flashflex-b-fast", "llama-2-7b", 480, 4096),
    ("gh200-32-nodes", "opt-350m-s", 512, 2048),
    ("gh200-32-nodes", "llama-2-13b", 512, 4096),
)


def model_of(name: str) -> ModelSpec:
    model = find_model(name)
    if model is None:
        raise AssertionError(f"the catalogue has {name}")
    return model


def paper_gpu(kind: str) -> tuple[Gpu, float]:
    """A GPU with the published figures, and the GB/s inside its machine."""
    tflops, memory, inside = FIGURES[kind]
    names = {"3080Ti": "RTX-3080Ti-12GB", "3090": "RTX-3090-24GB", "4090": "RTX-4090-24GB", "A100": "A100-SXM-80GB"}
    usual = find_gpu(names[kind], "the benchmark")
    return replace(usual, half_flops_per_s=tflops * 1e12, memory_bytes=memory * 2**30), inside * 1e9


def machines(name: str, between_gb_per_s: float) -> Cluster:
    """Machines of eight GPUs; or one of four, and two of two, with eight in all."""
    if name == "8 GPUs of three kinds":
        parts = [("A100", 2), ("4090", 2), ("3090", 4)]
    else:
        parts = [(kind, 8) for kind in MACHINES[name]]
    nodes, inside = [], []
    for number, (kind, count) in enumerate(parts):
        gpu, own = paper_gpu(kind)
        nodes.append(Node(f"{kind.lower()}-{number}", "datacenter", (gpu,) * count))
        inside.append(own)
    bandwidth = np.full((len(nodes), len(nodes)), between_gb_per_s * 1e9)
    np.fill_diagonal(bandwidth, inside)
    return Cluster(name, tuple(nodes), Network(bandwidth, np.zeros_like(bandwidth)))


def timed(
    problem: Problem, solver: str, cost_model: str, seed: int, seconds: float | None
) -> tuple[Result | None, float]:
    """The result, None where nothing fits, and the CPU seconds it took."""
    begun, stop, model = time.process_time(), None if seconds is None else MaxSeconds(seconds), COST_MODELS[cost_model]
    priced_by = model(MEMORY_FRACTION)
    try:
        found = solve(problem, SOLVERS[solver], priced_by, seed=seed, stop=stop)
        result: Result | None = best_played(problem, priced_by, found)
    except InfeasibleError:
        result = None
    return result, time.process_time() - begun


def flashflex(solvers: Sequence[str], seeds: int, seconds: float | None, only: str) -> Iterator[str]:
    """The published rows: tokens a second over the best known, for each seed."""
    last = f"{'tokens/s over it, by seed':<42} {'CPU s':>6}"
    yield f"{'cluster':<18} {'model':<12} {'solver':<13} {'best known':>10} {last}"
    for (cluster, name), known in FLASHFLEX.items():
        if only not in f"{cluster} {name}":
            continue
        problem = Problem(
            read_cluster(SPECS / f"{cluster}.yaml"), model_of(name), TrainingJob(480, 4096, 1), Choices(micro_batch=1)
        )
        for solver in solvers:
            found = [timed(problem, solver, "flashflex", seed, seconds) for seed in range(seeds)]
            over = " ".join(f"{r.cost.tokens_per_s / known:.4f}" if r else "none" for r, _ in found)
            slowest = max(cpu_s for _, cpu_s in found)
            yield f"{cluster:<18} {name:<12} {solver:<13} {known:>10} {over:<42} {slowest:>6.1f}"


def others(solvers: Sequence[str], seeds: int, seconds: float | None, only: str) -> Iterator[str]:
    """Other clusters by the same formulas: tokens a second by seed."""
    yield f"{'cluster':<22} {'GB/s':>5} {'model':<12} {'solver':<13} {'tokens/s by seed':<42} {'CPU s':>6}"
    for name, model in OTHERS:
        if only not in f"{name} {model}":
            continue
        for between in (5.0, 0.5):
            problem = Problem(
                machines(name, between), model_of(model), TrainingJob(480, 4096, 1), Choices(micro_batch=1)
            )
            for solver in solvers:
                found = [timed(problem, solver, "flashflex", seed, seconds) for seed in range(seeds)]
                rates = " ".join(f"{r.cost.tokens_per_s:.0f}" if r else "none" for r, _ in found)
                slowest = max(cpu_s for _, cpu_s in found)
                yield f"{name:<22} {between:>5} {model:<12} {solver:<13} {rates:<42} {slowest:>6.1f}"


def specs(solvers: Sequence[str], seed: int, seconds: float | None, only: str) -> Iterator[str]:
    """Bundled clusters by the roofline: seconds an iteration, and as played; the bound's share of the least; CPU s."""
    columns = " ".join(f"{solver:>19}" for solver in ("megatron", *solvers))
    yield f"{'cluster':<18} {'model':<12} {columns} {'bound':>9} {'of best':>8}  CPU s of each"
    for cluster, name, batch, length in ROOFLINE:
        if only not in f"{cluster} {name}":
            continue
        problem = Problem(read_cluster(SPECS / f"{cluster}.yaml"), model_of(name), TrainingJob(batch, length, 1))
        model = COST_MODELS["roofline"](MEMORY_FRACTION)
        begun = time.process_time()
        baseline = run_baseline(problem, SOLVERS["megatron"], model)
        spent, times = [time.process_time() - begun], [baseline.iteration_s]
        played: list[float | None] = [None]
        for solver in solvers:
            result, cpu_s = timed(problem, solver, "roofline", seed, seconds)
            times.append(result.cost.iteration_s if result else None)
            played.append(result.played_s if result else None)
            spent.append(cpu_s)
        bound = lower_bound_s(problem, model).iteration_s
        best = min((t for t in times if t is not None), default=float("nan"))
        cells = " ".join(map(_cell, times, played))
        yield (
            f"{cluster:<18} {name:<12} {cells} {bound:>9.4f} {bound / best:>8.1%}  "
            f"{' '.join(f'{cpu_s:.1f}' for cpu_s in spent)}"
        )


def _cell(seconds: float | None, played_s: float | None) -> str:
    found = "none" if seconds is None else f"{seconds:.4f}" if played_s is None else f"{seconds:.4f} {played_s:9.4f}"
    return f"{found:>19}"


def thousand() -> Cluster:
    """1,024 GPUs in 128 nodes in five regions, of five kinds; regions tens of milliseconds and a few Gbit/s apart."""
    kinds = ("H100-SXM-80GB", "A100-SXM-80GB", "A100-SXM-40GB", "L40S-48GB", "A100-PCIe-80GB")
    inside_gbps = (3600.0, 2400.0, 2400.0, 200.0, 200.0)
    nodes = tuple(
        Node(f"n{k}", f"region-{k % 5}", (find_gpu(kinds[(k // 5) % 5], "the benchmark"),) * 8) for k in range(128)
    )
    region = np.arange(128) % 5
    rng = np.random.default_rng(0)
    far = rng.uniform(2, 10, (5, 5))
    wait = rng.uniform(0.01, 0.12, (5, 5))
    far, wait = np.minimum(far, far.T), np.maximum(wait, wait.T)
    same = region[:, None] == region[None, :]
    gbps = np.where(same, 100.0, far[np.ix_(region, region)])
    latency = np.where(same, 3e-5, wait[np.ix_(region, region)])
    np.fill_diagonal(gbps, [inside_gbps[(k // 5) % 5] for k in range(128)])
    np.fill_diagonal(latency, 5e-6)
    return Cluster("thousand", nodes, Network(gbps * BYTES_PER_S_PER_GBPS, latency))


def large(solvers: Sequence[str], seed: int, seconds: float | None, only: str) -> Iterator[str]:
    """1,024 GPUs: the best by each solver in the time."""
    problem = Problem(thousand(), model_of("llama-3.1-70b"), TrainingJob(1024, 4096, 1))
    yield f"{'solver':<13} {'iteration s':>12} {'found at s':>11} {'candidates':>11} {'CPU s':>7}"
    for solver in solvers:
        result, cpu_s = timed(problem, solver, "roofline", seed, seconds)
        if result is None:
            yield f"{solver:<13} none"
            continue
        found_at = result.trace[-1].seconds
        yield f"{solver:<13} {result.cost.iteration_s:>12.3f} {found_at:>11.1f} {result.candidates:>11} {cpu_s:>7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("part", choices=("flashflex", "others", "specs", "large"))
    parser.add_argument("--solvers", nargs="+", choices=sorted(SOLVERS), default=["auto"])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one; specs: the seed (default: 5)")
    parser.add_argument("--seconds", type=float, help="for each search, in place of the solver's own steps")
    parser.add_argument("--only", default="", help="rows whose cluster and model have this in them")
    given = parser.parse_args()
    parts = {"flashflex": flashflex, "others": others, "specs": specs, "large": large}
    for line in parts[given.part](given.solvers, given.seeds, given.seconds, given.only):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
