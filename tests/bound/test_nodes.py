"""What the networks of nodes allow: every plan of tiny clusters by the time it takes, and not everything."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hetsched.bound.roofline import cells_of, roofline_bound_s
from hetsched.bound.sizes import MessageSizes
from hetsched.bound.speeds import team_speeds
from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.training import Roofline
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster
from hetsched.workload import TrainingJob
from tests.bound.enumerate_plans import fastest_s
from tests.bound.test_bound import tiny_model

ROOT = Path(__file__).parents[2]


def small(rng: np.random.Generator, counts: tuple[int, ...], even: bool) -> Cluster:
    """Nodes of one kind or two, fast inside and slow between."""
    kinds = [find_gpu(str(kind), "test") for kind in rng.choice(["A100-SXM-80GB", "V100-SXM2-16GB"], len(counts))]
    if rng.integers(2):
        kinds = [kinds[0]] * len(counts)
    nodes = tuple(Node(f"n{k}", "r", (kinds[k],) * count) for k, count in enumerate(counts))
    bandwidth = np.exp(rng.uniform(np.log(1e7), np.log(3e9), (len(counts), len(counts))))
    latency = np.exp(rng.uniform(np.log(1e-6), np.log(3e-3), bandwidth.shape))
    if even:
        bandwidth, latency = np.maximum(bandwidth, bandwidth.T), np.maximum(latency, latency.T)
    np.fill_diagonal(bandwidth, 2e11)
    return Cluster("small", nodes, Network(bandwidth, latency))


@pytest.mark.parametrize("seed", [0, 3, 5, 6])  # each shape, of even networks two
def test_every_plan_is_allowed_the_time_it_takes(seed: int) -> None:
    """Of all plans of each setting and number of pipelines the fastest, and not next to nothing."""
    rng = np.random.default_rng(seed)
    counts = [(2, 2), (2, 1, 1), (1, 1, 1), (3, 1)][seed % 4]
    cluster = small(rng, counts, bool(seed // 4 % 2))
    model, job = tiny_model(rng, 3), TrainingJob(int(rng.integers(4, 15)), 256)
    bits = Compression(*rng.choice([4, 16], 3).tolist())
    problem = Problem(cluster, model, job, Choices(micro_batch=1, compression=bits))
    cells = list(cells_of(problem, 1.0))
    members = [np.flatnonzero(cluster.node_of == node).tolist() for node in range(len(counts))]
    tested = 0
    for schedule, recompute, zero in product(("1f1b", "gpipe"), (False, True), (2, 3)):
        options = Options(schedule, recompute, zero, bits)
        pricer = Roofline(1.0).chains(cluster, members, model, job, options)
        assert pricer is not None
        fastest = fastest_s(pricer, counts, range(len(counts)), model.num_layers, job.global_batch)
        slowest_class = next(cell for cell in cells if replace(cell.options, overlap=True) == options)
        networks = slowest_class.networks
        assert networks is not None
        for replicas, seconds in fastest.items():
            assert networks.allow(seconds * (1 + 1e-9), replicas)
            assert replicas == 1 or not networks.allow(1e-5 * seconds, replicas)
            tested += 1
    assert tested >= 4


@pytest.mark.parametrize(("schedule", "recompute", "least"), [("1f1b", False, 6.6), ("gpipe", True, 6.5)])
def test_what_it_adds_where_machines_are_far_apart(schedule: str, recompute: bool, least: float) -> None:
    """Eight machines of eight GPUs, 3 Gbit/s apart: most of the bound is what their networks carry both ways."""
    cluster, model = read_cluster(ROOT / "cluster_specs" / "dtfm-datacenter.yaml"), find_model("gpt3-xl")
    assert model is not None
    choices = Choices(micro_batch=1, schedule=schedule, recompute=recompute)
    cell = next(cells_of(Problem(cluster, model, TrainingJob(512, 2048), choices), 0.92))
    assert cell.networks is not None
    assert 2 * cell.least_s < least
    assert not cell.networks.allow(least, 2)
    assert cell.networks.allow(11.2, 2)


def test_stages_that_work_while_their_messages_travel() -> None:
    """Two pipelines of 8, 1 and 8 blocks: those of 8 have no time left for their messages, the third has plenty."""
    blocks, micro_batches = 17, 1000
    model = ModelSpec(
        name="wide",
        num_layers=blocks,
        hidden_size=16384,
        num_heads=128,
        ffn_size=65536,
        vocab_size=64,
        max_positions=4096,
        num_kv_heads=128,
        head_dim=128,
    )
    gpu = replace(find_gpu("A100-SXM-80GB", "test"), memory_bytes=10**13)
    nodes, job = tuple(Node(f"n{k}", "r", (gpu,)) for k in range(6)), TrainingJob(micro_batches, 16)
    sizes, inside = MessageSizes.of(model, job, Compression()), np.eye(6) > 0
    team = next(team_speeds(Cluster("one", nodes, Network(np.full((6, 6), 1e9), np.zeros((6, 6)))), model, job, False))
    block_s = 1 / team.blocks_per_s
    reduce_s = 8 * block_s * micro_batches / 2 * 0.51 / 0.49  # of 8 blocks, so that 49 % of the time is left for passes
    bandwidth = np.full((6, 6), sizes.block / reduce_s)
    bandwidth[:4, :4] *= 8
    bandwidth[inside] = 2e11
    link_s = sizes.hop[0] / bandwidth[0, 5]
    latency_s = np.full((6, 6), max(0.0, (3 * 8 - blocks) * block_s - 4 * link_s) / 4)  # just as much as is hidden
    latency_s[inside] = 1e-6
    cluster = Cluster("apart", nodes, Network(bandwidth, latency_s))
    layers = ((0, 8), (8, 9), (9, 17))
    pipelines = tuple(
        Pipeline(
            f"p{p}",
            tuple(Stage(held, (f"n{node}/0",)) for held, node in zip(layers, (2 * p, 4 + p, 2 * p + 1), strict=True)),
            micro_batches // 2,
        )
        for p in range(2)
    )
    taken_s = Roofline(1.0).price(cluster, Plan(model, job, pipelines, Options("1f1b", False, 2))).iteration_s
    choices = Choices(replicas=2, micro_batch=1, schedule="1f1b", recompute=False, zero=2)
    assert 0.8 * taken_s < roofline_bound_s(Problem(cluster, model, job, choices), 1.0)[0] <= taken_s
