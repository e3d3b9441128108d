"""What few nodes allow, and what stages have room for: each plan of tiny clusters the time it takes, and not all."""

from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from hetsched.bound.cells import Cell
from hetsched.bound.roofline import cells_of, roofline_bound_s
from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.account import MEMORY_FRACTION
from hetsched.cost.memory import RESERVE_BYTES, block_activation_bytes, logits_bytes
from hetsched.cost.training import Roofline
from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.problem import Choices, Problem
from hetsched.profiles import Measurements, ModelShape, PartTimes, PassTimes, TrainingProfile
from hetsched.readers import read_cluster
from hetsched.workload import TrainingJob
from tests.bound.enumerate_plans import fastest_s
from tests.bound.test_bound import tiny_model
from tests.bound.test_nodes import small

ROOT = Path(__file__).parents[2]


def tight(cluster: Cluster, model: ModelSpec, job: TrainingJob, rng: np.random.Generator) -> Cluster:
    """The same with GPUs that each hold from a third to all of the model, and some micro-batches."""
    states = 18 * model.parameters * rng.uniform(0.3, 1.0)
    kept = model.num_layers * block_activation_bytes(model, job) * rng.uniform(0.5, 2.0) + logits_bytes(model, job)
    size = int((states + kept + RESERVE_BYTES) / 0.97)
    nodes = [replace(n, gpus=tuple(replace(gpu, memory_bytes=size) for gpu in n.gpus)) for n in cluster.nodes]
    bandwidth = cluster.network.bandwidth_bytes_per_s.copy()
    np.fill_diagonal(bandwidth, float(rng.choice([2e9, 2e11])))
    return replace(cluster, nodes=tuple(nodes), network=Network(bandwidth, cluster.network.latency_s))


@pytest.mark.parametrize("seed", range(6))
def test_every_plan_is_allowed_the_time_it_takes(seed: int) -> None:
    """Of all plans of each setting and number of pipelines the fastest."""
    rng = np.random.default_rng(seed)
    counts = [(2, 2), (2, 1, 1), (1, 1, 1, 1), (3, 1), (2, 2, 1), (3, 2)][seed]
    model, job = tiny_model(rng, 3 if sum(counts) > 4 else 4), TrainingJob(int(rng.integers(4, 30)), 256)
    cluster = tight(small(rng, counts, bool(rng.integers(2))), model, job, rng)
    cells = list(cells_of(Problem(cluster, model, job, Choices(micro_batch=1, schedule="1f1b")), 1.0))
    members = [np.flatnonzero(cluster.node_of == node).tolist() for node in range(len(counts))]
    tested = 0
    for recompute, zero in product((False, True), (2, 3)):
        options = Options("1f1b", recompute, zero)
        pricer = Roofline(1.0).chains(cluster, members, model, job, options)
        assert pricer is not None
        fastest = fastest_s(pricer, counts, range(len(counts)), model.num_layers, job.global_batch)
        for replicas, seconds in fastest.items():
            cell = next(cell for cell in cells if replace(cell.options, overlap=True) == options)
            assert cell.few is not None
            assert cell.few.seats.first(seconds * (1 + 1e-9), [replicas]) == replicas
            assert cell.few.seats.allow(seconds * (1 + 1e-9), 1, sum(counts))
            group = max(start for start in cell.few.setting.fewest_pipelines if start <= replicas)
            assert cell.few.allow(seconds * (1 + 1e-9), group)
            assert not cell.few.allow(1e-5 * seconds, group)
            tested += 1
    assert tested


def cell_of(micro_batch: int, zero: int = 2) -> Cell:
    """Five machines of 8 GPUs with 12 or 24 GB, 4 Gbit/s apart; computing alone takes 35.3 s."""
    cluster, model = read_cluster(ROOT / "cluster_specs" / "flashflex-a-slow.yaml"), find_model("llama-2-7b")
    assert model is not None
    choices = Choices(micro_batch=micro_batch, schedule="1f1b", recompute=False, zero=zero)
    return next(cells_of(Problem(cluster, model, TrainingJob(480, 4096), choices), MEMORY_FRACTION))


def test_what_whole_nodes_add() -> None:
    """One pipeline has but two machines, or messages both ways of one between; several reduce what they share."""
    few = cell_of(1).few
    assert few is not None
    assert not few.allow(58, 1)
    assert few.allow(66, 1)  # 16 of the fastest GPUs compute that long
    assert not few.allow(44.1, 2)
    assert few.allow(77.9, 2)  # a plan of three pipelines ends by then
    assert not few.allow(45.2, 9)


def test_what_gathers_add() -> None:
    """With ZeRO 3 each GPU gathers 405 MB a block and micro-batch, at 20 GB/s at best: 20 ms more than 70 to 203."""
    few = [cell_of(1, zero).few for zero in (2, 3)]
    assert [one is not None and one.allow(50.0, 2) for one in few] == [True, False]


def test_late_backwards_by_position() -> None:
    """Three pipelines that fit the memory, given by the blocks of their stages, have no more late than may be."""
    few = cell_of(1).few
    assert few is not None
    late, load = few.late(2), few.setting.load
    assert late is not None
    plan = (
        (1, 1, 1, 1, 3, 3, 2, 1, 5, 5, 5, 4),
        (2, 2, 1, 2, 2, 1, 2, 1, 2, 3, 1, 4, 5, 4),
        (1, 1, 2, 3, 3, 3, 1, 4, 5, 3, 2, 4),
    )
    taken = [held * (1 + (1 - load.stage_phi) * r) for line in plan for r, held in enumerate(reversed(line))]
    assert sum(taken) < late.deep < late.every


def test_what_room_by_position_adds() -> None:
    """Early stages keep many micro-batches: two sequences at once leave too few blocks a GPU, or too slow teams."""
    few = [cell_of(size, zero=3).few for size in (1, 2, 4)]
    assert all(few)
    fit_by = [[one is not None and one.seats.allow(end_s, 8, 8) for end_s in (45.0, 1e4)] for one in few]
    assert fit_by == [[True, True], [False, True], [False, True]]


def test_neighbouring_stages_that_count_as_one_have_the_time_of_the_last() -> None:
    """A pipeline of 23 stages of long forwards: the first may hold three blocks, as it is that far from the end."""
    blocks, micro_batches, gpu = 47, 44, find_gpu("A100-SXM-80GB", "test")
    model = replace(tiny_model(np.random.default_rng(0), blocks), tied_embeddings=False)
    job, kinds = TrainingJob(micro_batches, 256), [replace(gpu, kind=f"g{k}") for k in range(23)]
    none, block = PassTimes(0.0, 0.0, 0.0), PassTimes(1e-3, 5e-4, 0.0)
    training = {
        (ModelShape.of(model, job), kind.kind, 1): TrainingProfile({1: PartTimes(none, block, none)}) for kind in kinds
    }
    nodes = tuple(Node(f"n{k}", "r", tuple(kinds[8 * k : 8 * k + 8])) for k in range(3))
    network = Network(np.full((3, 3), 1e13), np.full((3, 3), 1e-9))
    cluster = Cluster("deep", nodes, network, measured=Measurements(training))
    cuts = [0, *range(3, blocks + 1, 2)]
    stages = tuple(Stage(held, (device.name,)) for held, device in zip(pairwise(cuts), cluster.devices, strict=True))
    plan = Plan(model, job, (Pipeline("p", stages, micro_batches),), Options("1f1b", False, 2))
    taken_s = Roofline(1.0).price(cluster, plan).iteration_s
    choices = Choices(replicas=1, micro_batch=1, schedule="1f1b", recompute=False, zero=2)
    assert 0.9 * taken_s < roofline_bound_s(Problem(cluster, model, job, choices), 1.0)[0] <= taken_s
