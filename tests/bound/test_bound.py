"""No plan beats the bound: not one of all plans of tiny problems, none of many random ones, none of the bundled."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.bound import lower_bound_s
from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.published.dtfm import DtFm
from hetsched.cost.training import Roofline
from hetsched.finish import bounded
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Plan, Stage
from hetsched.problem import Choices, Problem
from hetsched.profiles import (
    BandwidthCurve,
    BandwidthCurves,
    Measurements,
    ModelShape,
    PartTimes,
    PassTimes,
    TrainingProfile,
)
from hetsched.readers import read_cluster
from hetsched.search import MaxSteps, solve
from hetsched.solvers import SOLVERS
from hetsched.workload import TrainingJob
from tests.bound.enumerate_plans import every_plan

ROOT = Path(__file__).parents[2]
EVERY_OPTION = [
    Options(schedule, recompute, zero)
    for schedule, recompute, zero in product(("1f1b", "gpipe"), (False, True), range(4))
]
NEARLY = 1 - 1e-9
SHAPES = [(1, 1, 1), (2, 1), (3,), (1, 2)]


def tiny_model(rng: np.random.Generator, blocks: int) -> ModelSpec:
    hidden = int(rng.choice([256, 1024]))
    return ModelSpec(
        name="tiny",
        num_layers=blocks,
        hidden_size=hidden,
        num_heads=8,
        ffn_size=4 * hidden,
        vocab_size=int(rng.choice([64, 8192])),
        max_positions=512,
        num_kv_heads=8,
        head_dim=hidden // 8,
        tied_embeddings=bool(rng.integers(2)),
    )


def tiny_cluster(rng: np.random.Generator, counts: tuple[int, ...], model: ModelSpec, job: TrainingJob) -> Cluster:
    """Two regions, or three of one GPU; links of 30 MB/s to 200 GB/s, 1 us to 0.1 s; sometimes measured times."""
    kinds = rng.choice(["A100-SXM-80GB", "V100-SXM2-16GB"], len(counts))
    gpus = [find_gpu(str(kind), "test") for kind in kinds]
    regions = 3 if counts == (1, 1, 1) else 2
    nodes = tuple(Node(f"n{k}", f"r{k % regions}", (gpus[k],) * count) for k, count in enumerate(counts))
    size = len(counts), len(counts)
    bandwidth = np.exp(rng.uniform(np.log(3e7), np.log(2e11), size))
    network = Network(bandwidth, np.exp(rng.uniform(np.log(1e-6), np.log(0.1), size)))
    measured = Measurements()
    if rng.integers(2):
        passes = [PassTimes(*np.exp(rng.uniform(np.log(1e-4), np.log(0.05), 3)).tolist()) for _ in range(6)]
        shape = ModelShape.of(model, job)
        training = {
            (shape, str(kinds[0]), degree): TrainingProfile({1: PartTimes(*passes[3 * k : 3 * k + 3])})
            for k, degree in enumerate((1, 2))
        }
        curve = BandwidthCurve((-0.2, 2.0, float(rng.uniform(0.5, 20))), 5e10)
        between = {(str(kinds[0]), str(kinds[-1]), 1): curve}
        measured = Measurements(training, BandwidthCurves({(str(kinds[0]), 2): curve}, between))
    return Cluster("tiny", nodes, network, measured=measured)


@pytest.mark.parametrize("seed", range(12))
def test_no_plan_of_all_beats_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = tiny_model(rng, int(rng.integers(2, 4)))
    job = TrainingJob(int(rng.integers(2, 5)), 256)
    cluster = tiny_cluster(rng, SHAPES[seed % len(SHAPES)], model, job)
    bits = Compression(*rng.choice([4, 16], 3).tolist())
    problem = Problem(cluster, model, job, Choices(micro_batch=1, compression=bits))
    options = [replace(option, compression=bits) for option in EVERY_OPTION]
    bound = lower_bound_s(problem, Roofline()).iteration_s
    costs = (Roofline().price(cluster, plan) for plan in every_plan(cluster, model, job, options))
    best = min(cost.iteration_s for cost in costs if cost.feasible)
    assert 0.2 * best <= bound <= best / NEARLY


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_more_pipelines_than_the_batch_makes_micro_batches(random_cluster: Callable[..., Cluster], zero: int) -> None:
    """Seven pipelines of seven sequences, four at a time: each pipeline has a micro-batch of its own."""
    model = find_model("gpt2")
    assert model is not None
    choices = Choices(replicas=7, micro_batch=4, zero=zero)
    problem = Problem(random_cluster(1, (3, 4)), model, TrainingJob(7, 256), choices)
    best = solve(problem, SOLVERS["auto"], Roofline(), stop=MaxSteps(12)).cost.iteration_s
    assert 0 < lower_bound_s(problem, Roofline()).iteration_s <= best / NEARLY


@pytest.mark.parametrize("zero", [None, 1, 3])
def test_memory_that_takes_more_pipelines_than_micro_batches(zero: int | None) -> None:
    """A batch of four at a time is one micro-batch, but states fit only in shares of two pipelines or more."""
    rng = np.random.default_rng(0)
    model = replace(tiny_model(rng, 2), hidden_size=2048, ffn_size=8192, head_dim=256, vocab_size=64)
    states_bytes = 18 * model.num_layers * model.block_parameters
    gpu = find_gpu("A100-SXM-80GB", "test")
    gpu = replace(gpu, memory_bytes=int((0.37 * states_bytes + 2**30) / 0.89))
    bandwidth = np.full((4, 4), 1e9)
    cluster = Cluster(
        "four", tuple(Node(f"n{k}", "r", (gpu,)) for k in range(4)), Network(bandwidth, bandwidth * 1e-14)
    )
    problem = Problem(cluster, model, TrainingJob(4, 64), Choices(micro_batch=4, zero=zero))
    result = solve(problem, SOLVERS["auto"], Roofline(), stop=MaxSteps(12))
    best = result.cost.iteration_s
    assert len(result.best.pipelines) > 1
    assert 0.2 * best <= lower_bound_s(problem, Roofline()).iteration_s <= best / NEARLY


def wide_cluster(
    rng: np.random.Generator, counts: tuple[int, ...], model: ModelSpec, job: TrainingJob, regions: int
) -> Cluster:
    """One kind of GPU; teams of more GPUs compute faster or slower, and send more or as much at once."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    nodes = tuple(Node(f"n{k}", f"r{k % regions}", (gpu,) * count) for k, count in enumerate(counts))
    bandwidth = np.exp(rng.uniform(np.log(3e7), np.log(3e10), (len(counts), len(counts))))
    times = np.exp(rng.uniform(np.log(1e-3), np.log(0.05), (3, 3)))
    faster = rng.uniform(0.5, 1.2, 3).cumprod()  # none, of degrees 1 to 3
    training = {
        (ModelShape.of(model, job), gpu.kind, degree): TrainingProfile(
            {1: PartTimes(*(PassTimes(*part.tolist()) for part in times * faster[degree - 1]))}
        )
        for degree in (1, 2, 3)
    }
    speeds = np.sort(np.exp(rng.uniform(np.log(0.05), np.log(20), 3)))
    curves = {flows: BandwidthCurve((-0.2, 2.0, float(speed)), 5e10) for flows, speed in enumerate(speeds, start=1)}
    between = {(gpu.kind, gpu.kind, flows): curve for flows, curve in curves.items()}
    measured = Measurements(training, BandwidthCurves({(gpu.kind, flows): curves[flows] for flows in (2, 3)}, between))
    return Cluster("wide", nodes, Network(bandwidth, np.full_like(bandwidth, 1e-5)), measured=measured)


@pytest.mark.parametrize(
    ("seed", "counts", "regions"),
    [*((seed, [(2, 2), (3, 1)][seed % 2], 1) for seed in range(6)), (6, (2, 2, 1), 3)],
)
def test_no_plan_of_wide_teams_beats_it(seed: int, counts: tuple[int, ...], regions: int) -> None:
    """Where some waste speed, and rings and messages are as fast as the smaller of two is wide.

    Of three regions two may be joined by their link for wide teams, where all are alike for narrow ones.
    """
    rng = np.random.default_rng(seed)
    model, job = tiny_model(rng, 2), TrainingJob(3, 256)
    cluster = wide_cluster(rng, counts, model, job, regions)
    problem = Problem(cluster, model, job, Choices(micro_batch=1, recompute=False))
    options = [Options(schedule, False, zero) for schedule, zero in product(("1f1b", "gpipe"), (2, 3))]
    best = min(Roofline().price(cluster, plan).iteration_s for plan in every_plan(cluster, model, job, options))
    assert 0.2 * best <= lower_bound_s(problem, Roofline()).iteration_s <= best / NEARLY


@pytest.mark.parametrize(
    ("seed", "regions"), list(enumerate([(0, 0, 1, 1), (0, 0, 1, 2), (0, 1, 1, 2), (0, 1, 2, 3)] * 2))
)
def test_no_plan_over_groups_of_regions_beats_it(seed: int, regions: tuple[int, ...]) -> None:
    """Single GPUs of regions along a line: the further apart two are, the slower is their link."""
    rng = np.random.default_rng(seed)
    model, job = tiny_model(rng, 2), TrainingJob(int(rng.integers(2, 5)), 256)
    gpu = find_gpu("A100-SXM-80GB", "test")
    nodes = tuple(Node(f"n{k}", f"r{region}", (gpu,)) for k, region in enumerate(regions))
    place = np.sort(rng.uniform(0, 1, len(regions)))[list(regions)]
    apart = np.abs(place[:, None] - place[None, :])
    near, slower, later = np.exp(rng.uniform(np.log([1e8, 1, 1]), np.log([1e10, 1e3, 1e3])))
    network = Network(near / (1 + slower * apart), 1e-5 * (1 + later * apart))
    cluster = Cluster("line", nodes, network)
    problem = Problem(cluster, model, job, Choices(micro_batch=1, recompute=False))
    options = [Options(schedule, False, 2) for schedule in ("1f1b", "gpipe")]
    best = min(Roofline().price(cluster, plan).iteration_s for plan in every_plan(cluster, model, job, options))
    assert 0.2 * best <= lower_bound_s(problem, Roofline()).iteration_s <= best / NEARLY


def with_teams(plan: Plan, rng: np.random.Generator) -> Plan:
    """The plan with some stages on two devices: neighbours in a pipeline whose devices share a node become one."""
    pipelines = []
    for pipeline in plan.pipelines:
        stages: list[Stage] = []
        for stage in pipeline.stages:
            before = stages[-1] if stages else None
            alike = before and {name.split("/")[0] for name in (*before.devices, *stage.devices)}
            if before and alike and len(alike) == 1 and rng.integers(2):
                stages[-1] = Stage((before.layers[0], stage.layers[1]), (*before.devices, *stage.devices))
            else:
                stages.append(stage)
        pipelines.append(replace(pipeline, stages=tuple(stages)))
    return replace(plan, pipelines=tuple(pipelines))


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_no_random_plan_beats_it(
    random_cluster: Callable[..., Cluster], random_plan: Callable[..., Plan], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cluster = random_cluster(seed, (2, 1, 4, 3))
    plan = with_teams(random_plan(seed, cluster), rng)
    cost, job = Roofline(1.0).price(cluster, plan), plan.workload
    choices = Choices(micro_batch=job.micro_batch, compression=plan.options.compression)
    if rng.integers(2):
        choices = replace(choices, replicas=len(plan.pipelines), schedule=plan.options.schedule, zero=plan.options.zero)
    problem = Problem(cluster, plan.model, replace(job, micro_batch=1), choices)
    if cost.feasible:
        assert cost.iteration_s >= lower_bound_s(problem, Roofline(1.0)).iteration_s * NEARLY


@pytest.mark.parametrize("seed", range(4))
def test_no_grid_of_all_beats_it_under_dtfm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, job = tiny_model(rng, 3), TrainingJob(4, 256)
    cluster = tiny_cluster(rng, (1, 2, 1), model, job)
    formula = DtFm()
    plans = every_plan(cluster, model, job, [Options()])
    best = min(formula.price(cluster, plan).iteration_s for plan in plans if formula.refuses(plan) is None)
    bound = lower_bound_s(Problem(cluster, model, job, Choices()), formula).iteration_s
    assert bound <= best / NEARLY
    assert bound == best == 0  # one device sends nothing
    fixed = Choices(replicas=2, stages=2)
    two = [plan for plan in every_plan(cluster, model, job, [Options()]) if formula.refuses(plan) is None]
    two = [plan for plan in two if [len(pipeline.stages) for pipeline in plan.pipelines] == [2, 2]]
    best = min(formula.price(cluster, plan).iteration_s for plan in two)
    bound = lower_bound_s(Problem(cluster, model, job, fixed), formula).iteration_s
    assert 0 < bound <= best / NEARLY


@pytest.mark.parametrize("choices", [Choices(1, 3), Choices(stages=2), Choices(replicas=3), Choices(2, 2)])
@pytest.mark.parametrize("name", ["gpt2", "opt-1.3b"])
def test_a_grid_that_is_fixed_is_no_faster_than_its_bound(name: str, choices: Choices) -> None:
    """Also where no pipeline may have the one stage that would spare it the exchange of tied embeddings."""
    cluster = read_cluster(ROOT / "cluster_specs" / "home-office.yaml")
    model = find_model(name)
    assert model is not None
    problem = Problem(cluster, model, TrainingJob(64, 1024), choices)
    found = solve(problem, SOLVERS["local-search"], Roofline(0.92), stop=MaxSteps(12))
    assert 0 < lower_bound_s(problem, Roofline(0.92)).iteration_s <= found.cost.iteration_s


class Unpriced(DtFm):
    """A cost model of another name."""


def test_what_has_no_bound_says_so() -> None:
    cluster = read_cluster(ROOT / "cluster_specs" / "home-office.yaml")
    model = find_model("gpt2")
    assert model is not None
    found = lower_bound_s(Problem(cluster, model, TrainingJob(8, 64)), Unpriced(name="another"))
    assert (found.iteration_s, found.because) == (0.0, "no bound is known under another")


def test_what_fits_no_memory_has_no_end() -> None:
    cluster = read_cluster(ROOT / "cluster_specs" / "home-office.yaml")
    model = find_model("llama-2-70b")
    assert model is not None
    assert lower_bound_s(Problem(cluster, model, TrainingJob(8, 64)), Roofline()).iteration_s == np.inf


# ---- the bundled clusters: the least that the bound is of a short search's plan

BUNDLED = {
    ("home-office", "gpt2", "bf16"): 0.6,
    ("home-office", "opt-1.3b", "bf16"): 0.8,
    ("home-office", "llama-2-7b", "bf16"): 0.8,
    ("gh200-32-nodes", "opt-350m-s", "fp32"): 0.5,
    ("dtfm-universities", "gpt3-xl", "bf16"): 0.5,
    ("dtfm-datacenter", "gpt3-xl", "bf16"): 0.55,
    ("dtfm-regional", "gpt3-xl", "bf16"): 0.5,
}


@pytest.mark.parametrize(("name", "model", "dtype"), BUNDLED)
def test_bundled_clusters(name: str, model: str, dtype: str) -> None:
    cluster, spec = read_cluster(ROOT / "cluster_specs" / f"{name}.yaml"), find_model(model)
    assert spec is not None
    job = TrainingJob(512, min(spec.max_positions, 4096), dtype=dtype)
    problem = Problem(cluster, spec, job)
    result = solve(problem, SOLVERS["auto"], Roofline(), stop=MaxSteps(24))
    result = bounded(problem, Roofline(), result)
    assert result.lower_bound is not None
    bound_s, taken_s = result.lower_bound.iteration_s, result.cost.iteration_s
    assert BUNDLED[name, model, dtype] * taken_s <= bound_s <= taken_s
    assert result.gap == pytest.approx(taken_s / bound_s - 1)
