"""What holds for every problem: its grids, and the plans made on them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster
from hetsched.cost import COST_MODELS
from hetsched.cost.account import MEMORY_FRACTION
from hetsched.cost.compute import Worker, stage_work
from hetsched.cost.memory import stage_bytes, usable_bytes
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Options, Stage
from hetsched.problem import Choices, Problem
from hetsched.solvers.grid import Variant, apportion, even_split, grid_of, grid_plan, shape_of, split_layers, variant_of
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]

SEEDS = st.integers(0, 2**32)
KINDS = ["A100-SXM-80GB", "RTX-3090-24GB", "RTX-2080Ti-11GB", "V100-SXM2-16GB", "T4-16GB"]


def model_of(name: str) -> ModelSpec:
    model = find_model(name)
    assert model is not None
    return model


GPT2 = model_of("gpt2")


@settings(deadline=None, max_examples=150)
@given(
    devices=st.integers(1, 30),
    batch=st.integers(1, 40),
    replicas=st.none() | st.integers(1, 12),
    stages=st.none() | st.integers(1, 14),
)
def test_grids(random_cluster: MakeCluster, devices: int, batch: int, replicas: int | None, stages: int | None) -> None:
    cluster, job = random_cluster(0, (1,) * devices), TrainingJob(batch, 64)
    least = replicas or 1, stages or 1
    possible = least[0] * least[1] <= devices and least[1] <= 12 and least[0] <= batch
    if not possible:
        with pytest.raises(HetschedError):
            Problem(cluster, GPT2, job, Choices(replicas, stages))
        return
    grids = Problem(cluster, GPT2, job, Choices(replicas, stages)).grids()
    allowed = [
        (d, p)
        for d, p in product(range(1, devices + 1), range(1, 13))
        if d * p <= devices and d <= batch and replicas in (None, d) and stages in (None, p)
    ]
    assert len(set(grids)) == len(grids) > 0
    assert set(grids) <= set(allowed)
    for p in {p for _, p in allowed}:  # each depth with all the replicas that it allows
        assert (max(d for d, depth in allowed if depth == p), p) in grids


@settings(deadline=None, max_examples=80)
@given(
    seed=SEEDS,
    replicas=st.integers(1, 4),
    stages=st.integers(1, 6),
    batch=st.integers(4, 300),
    size=st.sampled_from([1, 2, 8, 64]),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
    memory=st.tuples(st.integers(0, 3), st.booleans()),
    even=st.booleans(),
)
def test_plans_on_a_grid(
    random_cluster: MakeCluster,
    seed: int,
    replicas: int,
    stages: int,
    batch: int,
    size: int,
    schedule: str,
    memory: tuple[int, bool],
    even: bool,
) -> None:
    """A Plan checks that its stages cover the model and its batches add up; here that it is the plan asked for."""
    rng = np.random.default_rng(seed)
    cluster = random_cluster(seed, rng.multinomial(24, [0.3, 0.3, 0.2, 0.2]) + 1)
    problem = Problem(cluster, GPT2, TrainingJob(batch, 256))
    grid = rng.permutation(len(cluster.devices))[: replicas * stages].reshape(stages, replicas).tolist()
    variant = Variant(size, schedule, *memory)
    plan = grid_plan(problem, grid, variant, even=even)
    assert (grid_of(cluster, plan), shape_of(plan), variant_of(plan)) == (grid, (replicas, stages), variant)
    assert (plan.workload.global_batch, plan.workload.seq_len) == (batch, 256)
    for pipeline in plan.pipelines:
        assert [block for s in pipeline.stages for block in range(*s.layers)] == list(range(12))
        assert all(s.num_layers >= 1 for s in pipeline.stages)
    counts = [pipeline.micro_batches for pipeline in plan.pipelines]
    assert sum(counts) == max(replicas, -(-batch // size))
    if even:
        assert max(counts) - min(counts) <= 1
        assert len({tuple(s.layers for s in pipeline.stages) for pipeline in plan.pipelines}) == 1
    for model in (make(0.9) for make in COST_MODELS.values()):
        if model.refuses(plan) is None:
            assert model.price(cluster, plan).iteration_s > 0 or replicas * stages == 1


@pytest.mark.parametrize("blocks", range(1, 15))
def test_an_even_split(blocks: int) -> None:
    for stages in range(1, blocks + 1):
        parts = even_split(blocks, stages)
        assert [block for part in parts for block in range(*part)] == list(range(blocks))
        sizes = [last - first for first, last in parts]
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == stages


@settings(deadline=None, max_examples=100)
@given(pace=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 7.0]), min_size=1, max_size=4), more=st.integers(0, 9))
def test_batch_shares_end_as_soon_as_any(pace: list[float], more: int) -> None:
    total = len(pace) + more
    counts = apportion(total, pace)
    assert sum(counts) == total
    assert min(counts) >= 1
    every = (shares for shares in product(range(1, more + 2), repeat=len(pace)) if sum(shares) == total)
    best = min(max(count * s for count, s in zip(shares, pace, strict=True)) for shares in every)
    assert max(count * s for count, s in zip(counts, pace, strict=True)) == pytest.approx(best)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["gpt2", "gpt3-xl", "opt-350m"]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
    size=st.sampled_from([1, 4, 16]),
    options=st.builds(Options, st.sampled_from(["1f1b", "gpipe"]), st.booleans(), st.integers(0, 1)),
)
def test_layers_are_split_as_well_as_any_split(name: str, kinds: list[str], size: int, options: Options) -> None:
    """Of every split that fits, none has a faster slowest stage; and where one fits, so does what is found."""
    model = model_of(name)
    job, depth = TrainingJob(64, 512, size), len(kinds)
    gpus = tuple(find_gpu(kind, "test") for kind in kinds)

    def slowest(parts: list[tuple[int, int]]) -> float:
        works = [
            stage_work(Worker(gpu), model, job, part, options.recompute) for gpu, part in zip(gpus, parts, strict=True)
        ]
        return max(work.forward_s + work.backward_s for work in works)

    def fits(parts: list[tuple[int, int]]) -> bool:
        return all(
            stage_bytes(model, job, options, Stage(part, ("d",)), s, depth, 16, 2)
            <= usable_bytes(gpu.memory_bytes, MEMORY_FRACTION)
            for s, (gpu, part) in enumerate(zip(gpus, parts, strict=True))
        )

    every = [
        list(pairwise([0, *cuts, model.num_layers])) for cuts in combinations(range(1, model.num_layers), depth - 1)
    ]
    found = list(split_layers(model, job, options, gpus, 16, 2))
    fitting = [parts for parts in every if fits(parts)]
    assert fits(found) == bool(fitting)
    assume(fitting)
    assert slowest(found) == pytest.approx(min(map(slowest, fitting)), rel=1e-9)


def test_sequences_longer_than_learned_positions_are_refused(random_cluster: MakeCluster) -> None:
    with pytest.raises(HetschedError, match="1024"):
        Problem(random_cluster(0), GPT2, TrainingJob(8, 1025))
    Problem(random_cluster(0), replace(GPT2, positions="rotary"), TrainingJob(8, 1025))
