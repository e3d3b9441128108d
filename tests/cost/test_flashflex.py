"""Oracle: a second program straight from the text of FlashFlex's formulas (arXiv 2409.01143), with plain loops.

It reads plan JSON and a table of devices and links in the paper's own units, and knows nothing of our classes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hetsched.catalog import find_gpu, find_model
from hetsched.cli import main
from hetsched.cluster import Cluster
from hetsched.cost.published.flashflex import FlashFlex
from hetsched.cost.published.flashflex_formulas import gpipe_s
from hetsched.errors import HetschedError
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.readers import read_cluster, write_plan
from hetsched.workload import TrainingJob

SPECS = Path(__file__).parents[2] / "cluster_specs"
REFERENCE = {  # TFLOPS and GB by the paper's configuration
    "3080ti": (56.9, 12.0, 20.0),
    "3090": (80.0, 24.0, 2.0),
    "4090": (165.2, 24.0, 2.0),
    "a100": (312.0, 80.0, 200.0),
}


@dataclass(frozen=True)
class Machines:
    """What the second program knows of devices: TFLOPS and GB of each, and GB/s of each pair."""

    figures: Callable[[str], tuple[float, float]]
    gigabytes_per_s: Callable[[str, str], float]


def second_program(plan: dict[str, Any], machines: Machines) -> dict[str, Any]:
    """Iteration seconds, the slowest pipeline, DP, and gigabytes by device of a plan file."""
    model, job = plan["model"], plan["workload"]
    h, blocks, v = model["hidden_size"], model["num_layers"], model["vocab_size"]
    mb, s, pipelines = job["micro_batch"], job["seq_len"], plan["pipelines"]
    k = len(pipelines)
    n = ceil(job["global_batch"] / (mb * k))

    def flops(device: str) -> float:
        return machines.figures(device)[0] * 1024**4

    def bandwidth(a: str, b: str) -> float:
        return machines.gigabytes_per_s(a, b) * 1024**3

    times, memory, fits = [], {}, True
    for pipeline in pipelines:
        costs = []
        stages = pipeline["stages"]
        for number, stage in enumerate(stages):
            group, count = stage["devices"], stage["layers"][1] - stage["layers"][0]
            t = len(group)
            compute = 96 * mb * s * h**2 * (1 + s / (6 * h) + v / (16 * blocks * h)) / (flops(group[0]) * t)
            tensor = 12 * max(sum(mb * s * h * 2 / (t * bandwidth(i, j)) for j in group if j != i) for i in group)
            hop = 0.0
            if number + 1 < len(stages):
                after = stages[number + 1]["devices"]
                ways = []
                for i in group:
                    for j in after:
                        spread = sum(mb * s * h * 2 / (len(after) * bandwidth(j, x)) for x in after if x != j)
                        ways.append(mb * s * h * 2 / bandwidth(i, j) + spread)
                hop = 2 * min(ways)
            costs.append(count * (compute + tensor) + hop)
            first, last = stage["layers"][0] == 0, stage["layers"][1] == blocks
            held = 12 * h**2 * count / t + h * last + v * h * last + h * (v + s) * first
            gigabytes = held * 8 / 1024**3 + (count * mb * s * h / t + 2 * mb * s * h) * 2 / 1024**3
            fits &= gigabytes <= sum(machines.figures(d)[1] for d in group) / t
            memory.update(dict.fromkeys(group, gigabytes))
        depth = len(costs)
        columns = [[costs[x] for x in range(depth) if 0 <= q - x < n] for q in range(n + depth - 1)]
        times.append(sum(max(column) for column in columns))

    dp = 0.0
    for block in range(blocks):
        groups = [
            next(stage["devices"] for stage in p["stages"] if stage["layers"][0] <= block < stage["layers"][1])
            for p in pipelines
        ]
        degrees = [len(group) for group in groups]
        padded = [[rank for rank in group for _ in range(max(degrees) // len(group))] for group in groups]
        for column in range(max(degrees) // min(degrees)):
            ranks = [group[column] for group in padded]
            dp += 2 * max(
                sum(12 * h**2 * 2 / (min(degrees) * k * bandwidth(i, j)) for j in ranks if j != i) for i in ranks
            )
    return {"iteration_s": 1.8 * max(times) + 1.1 * dp, "data_parallel": 1.1 * dp, "memory": memory, "fits": fits}


def machines_of(cluster: Cluster) -> Machines:
    def figures(device: str) -> tuple[float, float]:
        gpu = cluster.device(device).gpu
        return gpu.half_flops_per_s / 1e12, gpu.memory_bytes / 2**30

    def gigabytes_per_s(a: str, b: str) -> float:
        return cluster.link(cluster.index_of[a], cluster.index_of[b]).bandwidth_bytes_per_s / 1e9

    return Machines(figures, gigabytes_per_s)


def asymmetric_plan(seed: int, cluster: Cluster, name: str = "gpt2") -> Plan:
    """Groups of 1, 2 or 4 GPUs of one kind, also across machines, in pipelines of any depth and split."""
    rng = np.random.default_rng(seed)
    model = find_model(name)
    assert model is not None
    kinds: dict[str, list[str]] = {}
    for device in rng.permutation(np.array(cluster.devices, dtype=object)):
        kinds.setdefault(device.gpu.kind, []).append(device.name)
    groups: list[tuple[str, ...]] = []
    for names in kinds.values():
        while names:
            size = int(rng.choice([size for size in (1, 2, 4) if size <= len(names)]))
            groups.append(tuple(names.pop() for _ in range(size)))
    rng.shuffle(groups)
    count = int(rng.integers(1, min(4, len(groups)) + 1))
    chains = [groups[p::count][: model.num_layers] for p in range(count)]
    size = int(rng.choice([1, 2, 4]))
    job = TrainingJob(int(rng.integers(count * size, 60)), 2 ** int(rng.integers(4, 10)), size)
    share = ceil(job.global_batch / (size * count))
    pipelines = []
    for number, chain in enumerate(chains):
        cuts = np.sort(rng.choice(np.arange(1, model.num_layers), len(chain) - 1, replace=False)).tolist()
        bounds = pairwise([0, *cuts, model.num_layers])
        stages = tuple(Stage(layers, group) for layers, group in zip(bounds, chain, strict=True))
        pipelines.append(Pipeline(f"p{number}", stages, share))
    return Plan(model, job, tuple(pipelines), Options("gpipe", True, 0))


@pytest.mark.parametrize("seed", range(60))
def test_asymmetric_plans_cost_what_a_second_program_says(random_cluster: Callable[..., Cluster], seed: int) -> None:
    cluster = random_cluster(seed, (4, 3, 5, 2, 4, 1))
    plan = asymmetric_plan(seed, cluster)
    cost = FlashFlex().price(cluster, plan)
    expected = second_program(json.loads(json.dumps(plan.to_json())), machines_of(cluster))
    assert cost.iteration_s == pytest.approx(expected["iteration_s"], rel=1e-12)
    assert cost.breakdown_s["data_parallel"] == pytest.approx(expected["data_parallel"], rel=1e-12)
    assert sum(cost.breakdown_s.values()) == pytest.approx(cost.iteration_s, rel=1e-12)
    assert set(cost.breakdown_s) == {"compute", "tensor_parallel", "pipeline_parallel", "bubble", "data_parallel"}
    assert {name: held / 2**30 for name, held in cost.memory_bytes.items()} == pytest.approx(expected["memory"])
    assert cost.feasible == expected["fits"]


@pytest.mark.parametrize("spec", ["flashflex-a-fast", "flashflex-a-slow", "flashflex-b-fast", "flashflex-b-slow"])
def test_a_plan_file_is_evaluated_in_the_papers_units(tmp_path: Path, spec: str) -> None:
    """Read from the bundled files, against the paper's own TFLOPS and GB/s, with its MFU."""
    cluster = read_cluster(SPECS / f"{spec}.yaml")
    between = 5.0 if spec.endswith("fast") else 0.5

    def row(device: str) -> tuple[float, float, float]:
        return REFERENCE[device.partition("-")[0]]

    def gigabytes_per_s(a: str, b: str) -> float:
        return row(a)[2] if a.partition("/")[0] == b.partition("/")[0] else between

    machines = Machines(lambda device: row(device)[:2], gigabytes_per_s)
    plan = asymmetric_plan(7, cluster, "llama-2-7b")
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    arguments = ["evaluate", str(path), "--cluster", str(SPECS / f"{spec}.yaml"), "--cost-model", "flashflex", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    predicted = json.loads(result.stdout)
    expected = second_program(json.loads(path.read_text()), machines)
    assert predicted["iteration_s"] == pytest.approx(expected["iteration_s"], rel=1e-9)
    assert bool(predicted["violations"]) == (not expected["fits"])
    h, s, tokens = 4096, plan.workload.seq_len, plan.workload.tokens
    work = 96 * 32 * tokens * h**2 * (1 + s / (6 * h) + 32000 / (16 * 32 * h))
    peak = sum(row(device.name)[0] * 1024**4 for device in cluster.devices)
    assert predicted["hfu"] == pytest.approx(work / predicted["iteration_s"] / peak, rel=1e-9)
    assert predicted["mfu"] == pytest.approx(predicted["hfu"] * 3 / 4, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_gpipe_adds_up_its_columns(count: int) -> None:
    rng = np.random.default_rng(count)
    for depth in range(1, 8):
        costs = rng.uniform(0.1, 3.0, depth).tolist()
        columns = [[costs[x] for x in range(depth) if 0 <= q - x < count] for q in range(count + depth - 1)]
        assert gpipe_s(costs, count) == pytest.approx(sum(map(max, columns)), rel=1e-12)


def two_pipelines(
    first: tuple[str, ...], second: tuple[str, ...], shares: tuple[int, int] = (4, 4), **job: Any
) -> Plan:
    model = find_model("gpt2")
    assert model is not None
    pipelines = tuple(
        Pipeline(f"p{number}", (Stage((0, 12), group),), share)
        for number, (group, share) in enumerate(zip((first, second), shares, strict=True))
    )
    return Plan(model, TrainingJob(sum(shares), 256, **job), pipelines)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (two_pipelines(("n0/0",), ("n0/1",), (3, 5)), "5 micro-batches"),
        (two_pipelines(("n0/0", "n0/1"), ("n0/2", "n0/3", "n0/4")), "do not divide"),
        (two_pipelines(("n0/0",), ("n0/1", "n1/0")), "mixes"),
        (two_pipelines(("n0/0",), ("n0/1",), dtype="fp32"), "fp32"),
    ],
)
def test_plans_it_has_no_place_for(random_cluster: Callable[..., Cluster], plan: Plan, why: str) -> None:
    cluster = random_cluster(0, (5, 5))
    with pytest.raises(HetschedError, match=why):
        FlashFlex().price(cluster, plan)


def test_compression_has_no_place(random_cluster: Callable[..., Cluster]) -> None:
    plan = two_pipelines(("n0/0",), ("n0/1",))
    squeezed = Plan(plan.model, plan.workload, plan.pipelines, Options(compression=Compression(grad_bits=8)))
    assert FlashFlex().refuses(plan) is None
    assert "compress" in str(FlashFlex().refuses(squeezed))


def test_the_whole_memory_may_be_used(random_cluster: Callable[..., Cluster]) -> None:
    """The limit is the paper's: what the stage's devices have, over its degree; whatever share is asked for."""
    cluster = random_cluster(0, (2,), kinds=("A100-SXM-80GB",))
    plan = two_pipelines(("n0/0",), ("n0/1",))
    needed = FlashFlex(0.5).price(cluster, plan).memory_bytes["n0/0"]
    assert needed < find_gpu("A100-SXM-80GB", "test").memory_bytes
    assert FlashFlex(1e-6).price(cluster, plan).feasible
