"""Quick prices of chains against the cost model's own, on plans that a walk comes by."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost import COST_MODELS
from hetsched.cost.chains import pipelined_ends
from hetsched.cost.roofline_chains import RooflineChains
from hetsched.model import ModelSpec
from hetsched.problem import Choices, Problem
from hetsched.solvers.arena import Arenas
from hetsched.solvers.hierarchical import starts
from hetsched.workload import TrainingJob
from tests.bound.enumerate_plans import compositions

MakeCluster = Callable[..., Cluster]
KINDS = ("A100-SXM-80GB", "RTX-3090-24GB", "V100-SXM2-16GB")


def model_of(name: str) -> ModelSpec:
    model = find_model(name)
    assert model is not None
    return model


def cluster_of(seed: int) -> Cluster:
    """Nodes of 4, 2, 4 and 1 GPUs of three kinds, every link different."""
    rng = np.random.default_rng(seed)
    nodes = tuple(
        Node(f"n{k}", f"r{k % 2}", (find_gpu(KINDS[k % 3], "test"),) * count) for k, count in enumerate((4, 2, 4, 1))
    )
    bandwidth = np.exp(rng.uniform(np.log(1e8), np.log(2e10), (4, 4)))
    return Cluster("chains", nodes, Network(bandwidth, rng.uniform(0, 0.01, (4, 4))))


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("model", ["roofline", "flashflex"])
@pytest.mark.parametrize("seed", range(4))
def test_a_walks_plans_cost_what_the_model_says(model: str, seed: int, zero: int) -> None:
    """Standing by standing: asymmetric pipelines, tensor-parallel groups, unequal batches."""
    spec = model_of("gpt2" if model == "roofline" else "llama-2-7b")
    length = 512 if model == "roofline" else 2048
    choices = Choices(micro_batch=2, zero=zero, recompute=seed % 2 == 1, schedule="1f1b" if seed % 2 else "gpipe")
    problem = Problem(cluster_of(seed), spec, TrainingJob(37, length, 2), choices)
    priced_by, random, seen, teams = COST_MODELS[model](0.92), Random(seed), 0, 0
    arenas = Arenas(problem, priced_by)
    for start in list(starts(arenas, np.random.default_rng(seed)))[::3]:
        if len(start.standing.chains) > 3:
            continue
        chains = start.standing.chains
        for _ in range(6):
            found = start.arena.walk(random).run(chains, 30, 0.5, 0.4)
            if found.seconds == float("inf"):
                continue
            chains = found.chains
            candidate = start.arena.candidate(found.chains)
            assert candidate.cost.feasible
            assert candidate.cost.iteration_s == pytest.approx(found.seconds, rel=1e-9)
            anew = next(iter(Arenas(problem, priced_by))).pricer  # which remembers nothing that would spare it a bound
            assert anew.stand(chains, found.guide_s * (1 + 1e-9)).seconds == pytest.approx(found.seconds, rel=1e-9)
            seen += 1
            teams += any(stage.tensor_parallel > 1 for _, _, stage in candidate.plan.stages)
    assert seen > 10
    assert teams > 0


@pytest.mark.parametrize("block", range(4))
def test_layers_split_so_that_the_pipeline_ends_soonest(block: int) -> None:
    """Against all splits, 400 times."""
    none = 0
    for seed in range(100 * block, 100 * block + 100):
        rng = np.random.default_rng(seed)
        depth, blocks, repeats = int(rng.integers(1, 5)), int(rng.integers(1, 10)), int(rng.choice([1, 2, 6, 300]))
        seconds, extra = rng.uniform(0.1, 3, depth), rng.uniform(0, 3, depth)
        if seed % 2:
            seconds, extra = seconds.round() + 1, extra.round()
        most = rng.integers(0, blocks + 3, depth)

        floor_s = float(rng.choice([0.0, 6.0]))
        every = {}
        for split in compositions(blocks, depth):
            times = extra + np.array(split) * seconds
            if all(split <= most):
                every[split] = times.sum() + (repeats - 1) * max(floor_s, times.max())
        found = pipelined_ends(seconds.tolist(), extra.tolist(), most.tolist(), blocks, repeats, floor_s)
        none += found is None
        assert (found is None) == (not every)
        if found is not None:
            assert every[tuple(found)] == pytest.approx(min(every.values()), rel=1e-9)
    assert 5 < none < 95


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("blocks", [1, 2, 3, 12])
def test_a_stage_of_all_blocks_fits_where_the_model_says(blocks: int, zero: int) -> None:
    """Its embedding and head are there with all of its blocks, and with no fewer."""
    spec, seen = replace(model_of("gpt2"), num_layers=blocks), set()
    for size in (1, 2, 8):
        choices = Choices(1, 1, micro_batch=size, zero=zero, recompute=True, schedule="1f1b")
        problem = Problem(cluster_of(0), spec, TrainingJob(16, 512), choices)
        for fraction in np.linspace(0.04, 0.2, 20):
            arena = next(iter(Arenas(problem, COST_MODELS["roofline"](float(fraction)))))
            chain = (((0,), blocks),)
            fits = arena.candidate([chain]).cost.feasible
            assert isinstance(arena.pricer, RooflineChains)
            assert arena.pricer.fits(chain, 16 // size, 1) == fits
            seen.add(fits)
    assert seen == {True, False}
