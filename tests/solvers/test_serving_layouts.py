"""The layouts of one replica equal exhaustive search, priced by whole stages' times and not by differences."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.network import team_of
from hetsched.cost.serving.placed import degrees
from hetsched.cost.serving.replica import needed_bytes, stage_times
from hetsched.cost.serving.steady import Traffic
from hetsched.model import ModelSpec
from hetsched.plan import Stage
from hetsched.precision import Precision
from hetsched.solvers.serving.layouts import Layouts
from hetsched.solvers.serving.pools import Inventory, Pool

KINDS = ("RTX-3080-10GB", "RTX-2080Ti-11GB", "T4-16GB", "L4-24GB")
TRAFFIC = Traffic.of(300, 40)
HALF, FRACTION, BATCH, ROUNDS = Precision(), 0.92, 4.0, 2.0


def model(blocks: int) -> ModelSpec:
    return ModelSpec.from_json(
        {
            "name": "wide",
            "num_layers": blocks,
            "hidden_size": 8192,
            "num_heads": 64,
            "num_kv_heads": 8,
            "ffn_size": 49152,
            "vocab_size": 32000,
            "max_positions": 4096,
        }
    )


def random_cluster(seed: int) -> Cluster:
    rng = np.random.default_rng(seed)
    counts: list[int] = []
    most = int(rng.integers(1, 6))
    while sum(counts) < most and len(counts) < 3:
        counts.append(int(rng.integers(1, min(4, most - sum(counts) + 1))))
    kinds = rng.choice(KINDS, len(counts))
    nodes = tuple(
        Node(f"n{k}", "r", (find_gpu(str(kind), "test"),) * count)
        for k, (kind, count) in enumerate(zip(kinds, counts, strict=True))
    )
    size = len(nodes), len(nodes)
    return Cluster("random", nodes, Network(np.exp(rng.uniform(20, 24, size)), rng.uniform(1e-5, 5e-3, size)))


def every_layout(cluster: Cluster, blocks: int, spec: ModelSpec) -> Iterator[list[Stage]]:
    """All chains of stages, every order, degree and number of blocks; GPUs of a node taken in turn."""

    def grow(left: dict[int, list[str]], done: int, stages: list[Stage]) -> Iterator[list[Stage]]:
        if done == blocks:
            yield stages
            return
        for node, names in left.items():
            for degree in degrees(spec, len(names)):
                rest = {**left, node: names[degree:]}
                for held in range(1, blocks - done + 1):
                    yield from grow(rest, done + held, [*stages, Stage((done, done + held), tuple(names[:degree]))])

    machines = {k: [f"{n.name}/{i}" for i in range(len(n.gpus))] for k, n in enumerate(cluster.nodes)}
    yield from grow(machines, 0, [])


def priced(layouts: Layouts, spec: ModelSpec, stages: list[Stage]) -> tuple[float, float] | None:
    """(latency, work of the busiest stage a request), None where a stage has no room for the batch."""
    cluster, together = layouts.inventory.cluster, BATCH / ROUNDS
    context = together * (TRAFFIC.input_tokens + TRAFFIC.output_tokens / 2)
    latency, busiest = 0.0, 0.0
    for stage in stages:
        times = stage_times(cluster, spec, team_of(cluster, stage.devices), stage.layers, HALF)
        gpu_bytes = cluster.device(stage.devices[0]).gpu.memory_bytes
        cache_bytes = BATCH * (TRAFFIC.input_tokens + TRAFFIC.output_tokens) * times.kv_bytes_per_token
        if needed_bytes(times, gpu_bytes) + cache_bytes > gpu_bytes * FRACTION:
            return None
        prompt = float(times.prefill_s(TRAFFIC.input_tokens, TRAFFIC.pairs))
        token = float(times.decode_s(together, context))
        latency += prompt + TRAFFIC.output_tokens * token
        busiest = max(busiest, prompt + TRAFFIC.output_tokens * token / together)
    for a, b in pairwise(stages):
        source, target = (Pool(((cluster.position(stage.devices[0]),),)) for stage in (a, b))
        latency += layouts._hop_s(source, target, together)
    return latency, busiest


def test_equal_to_trying_every_layout() -> None:
    """100 random groups of at most 5 GPUs: the quickest, the least busy, and all of the Pareto set."""
    feasible = 0
    for seed in range(100):
        cluster, spec = random_cluster(seed), model(3 + seed % 2)
        layouts = Layouts(Inventory(cluster), spec, TRAFFIC, HALF, FRACTION)
        group = range(len(cluster.devices))
        all_priced = [priced(layouts, spec, stages) for stages in every_layout(cluster, spec.num_layers, spec)]
        points = sorted({point for point in all_priced if point is not None})
        quickest, busiest = layouts.quickest(group, BATCH, ROUNDS), layouts.busiest(group, BATCH, ROUNDS)
        if not points:
            assert quickest is None
            assert busiest is None
            assert layouts.pareto(group, BATCH, ROUNDS) == []
            continue
        feasible += 1
        assert quickest is not None
        assert busiest is not None
        found = [priced(layouts, spec, stages) for stages in (quickest, busiest)]
        assert found[0] is not None
        assert found[1] is not None
        assert found[0][0] == pytest.approx(points[0][0], rel=1e-9)
        assert found[1][1] == pytest.approx(min(work for _, work in points), rel=1e-6)
        front: list[tuple[float, float]] = []
        least = np.inf
        for latency, work in points:
            if work < least * (1 - 1e-9):
                if front and latency <= front[-1][0] * (1 + 1e-9):
                    front.pop()
                front.append((latency, work))
                least = work
        mine = [priced(layouts, spec, stages) for stages in layouts.pareto(group, BATCH, ROUNDS)]
        np.testing.assert_allclose(np.array(mine), np.array(front), rtol=1e-7)
    assert 40 <= feasible < 100


def test_machines_that_look_alike_share_a_class() -> None:
    cluster = random_cluster(1)
    gpus = (find_gpu("L4-24GB", "test"),)
    same = np.full((4, 4), 1e9)
    alike = Cluster("alike", tuple(Node(f"n{k}", "r", gpus) for k in range(4)), Network(same, same * 1e-12))
    assert Inventory(alike).node_class == (0, 0, 0, 0)
    assert Inventory(cluster).node_class == tuple(range(len(cluster.nodes)))
    assert Inventory(alike).key([0, 1]) == Inventory(alike).key([2, 3])
