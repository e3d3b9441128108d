"""Oracle: a second program that knows only the paper's formula, reads plan JSON and cluster YAML, and uses plain loops.

Yuan et al. 2022, arXiv 2206.01288, section 3: DATAP + 2 · PIPELINE.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_model
from hetsched.cluster import Cluster
from hetsched.cost.published.dtfm import DtFm, messages_gigabytes, published_messages_gigabytes
from hetsched.errors import HetschedError
from hetsched.plan import Plan
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster, read_plan, write_plan
from hetsched.search import MaxSteps, solve
from hetsched.solvers import SOLVERS
from hetsched.workload import TrainingJob

SPECS = Path(__file__).parents[2] / "cluster_specs"
ASYMMETRIC = {"hierarchical", "local-search", "pipeline-dp"}  # the formula has prices for grids alone
SCENARIOS = ["dtfm-datacenter", "dtfm-spot", "dtfm-universities", "dtfm-regional", "dtfm-worldwide"]

Measured = Callable[[str, str], tuple[float, float]]  # from one device to another: latency in ms, Gbit/s


def second_program(plan: dict[str, Any], measured: Measured) -> tuple[float, float]:
    """DATAP and PIPELINE of a plan file, in seconds."""
    pipelines = [[stage["devices"][0] for stage in pipeline["stages"]] for pipeline in plan["pipelines"]]
    replicas, stages = len(pipelines), len(pipelines[0])
    if "dtfm_message_gigabytes" in plan["options"]:
        c_dp, c_pp = plan["options"]["dtfm_message_gigabytes"]
    else:
        job, model = plan["workload"], plan["model"]
        size = {"bf16": 2, "fp16": 2, "fp32": 4}[job["dtype"]]
        c_dp = find_model(model["name"]).parameters * size / stages / 1e9  # type: ignore[union-attr]
        c_pp = job["global_batch"] / replicas * job["seq_len"] * model["hidden_size"] * size / 1e9
    datap = 0.0
    for s in range(stages):
        for a in range(replicas):
            total = 0.0
            for b in range(replicas):
                if a != b:
                    latency_ms, gbps = measured(pipelines[a][s], pipelines[b][s])
                    total += 2 * (latency_ms / 1000 + c_dp * 8 / (replicas * gbps))
            datap = max(datap, total)
    pipeline_s = 0.0
    for s in range(stages - 1):
        slowest = 0.0
        for pipeline in pipelines:
            latency_ms, gbps = measured(pipeline[s], pipeline[s + 1])
            slowest = max(slowest, latency_ms / 1000 + c_pp * 8 / gbps)
        pipeline_s += slowest
    return datap, pipeline_s


def node_of(device: str) -> str:
    return device.rpartition("/")[0]


def measured_in(spec: Path) -> Measured:
    """The network of a bundled cluster, read here: inside a node, inside a region, between regions both ways."""
    data = yaml.safe_load(spec.read_text())
    region = {node["name"]: node["region"] for node in data["nodes"]}
    network = data["network"]
    between = {frozenset((row["a"], row["b"])): row for row in network.get("between_regions", [])}

    def look_up(source: str, target: str) -> tuple[float, float]:
        a, b = node_of(source), node_of(target)
        if a == b:
            row = network["inside_node"]
        elif region[a] == region[b]:
            row = network["inside_region"]
        else:
            row = between[frozenset((region[a], region[b]))]
        return row["latency_ms"], row["bandwidth_gbps"]

    return look_up


def measured_on(cluster: Cluster) -> Measured:
    def look_up(source: str, target: str) -> tuple[float, float]:
        a, b = (
            int(source.split("/", maxsplit=1)[0][1:]),
            int(target.split("/", maxsplit=1)[0][1:]),
        )  # nodes are n0, n1, ...
        return float(cluster.network.latency_s[a, b]) * 1e3, float(cluster.network.bandwidth_bytes_per_s[a, b]) * 8e-9

    return look_up


def agrees(plan: Plan, cluster: Cluster, measured: Measured, path: Path) -> None:
    """The plan, its file, and the plan read back have the price that the second program finds in the file."""
    cost = DtFm().price(cluster, plan)
    write_plan(plan, path)
    datap, pipeline = second_program(json.loads(path.read_text()), measured)
    assert cost.iteration_s == pytest.approx(datap + 2 * pipeline, rel=1e-12)
    assert cost.breakdown_s["data_parallel"] == pytest.approx(datap, rel=1e-12)
    assert cost.breakdown_s["pipeline_parallel"] == pytest.approx(2 * pipeline, rel=1e-12)
    assert sum(cost.breakdown_s.values()) == pytest.approx(cost.iteration_s)
    assert DtFm().price(cluster, read_plan(path)).iteration_s == cost.iteration_s


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    grid=st.sampled_from([(1, 1), (1, 9), (9, 1), (2, 4), (4, 2), (3, 3), (2, 3)]),
    name=st.sampled_from(["gpt2", "gpt3-xl", "llama-2-7b", "opt-350m"]),
    published=st.booleans(),
)
def test_random_plans(
    random_cluster: Callable[..., Cluster],
    random_plan: Callable[..., Plan],
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    grid: tuple[int, int],
    name: str,
    published: bool,
) -> None:
    cluster = random_cluster(seed, (2, 1, 3, 1, 2))
    plan = random_plan(seed, cluster, name, grid)
    if published:
        plan = replace(plan, options=replace(plan.options, dtfm_message_gigabytes=published_messages_gigabytes(*grid)))
    agrees(plan, cluster, measured_on(cluster), tmp_path_factory.getbasetemp() / "random.json")


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ASYMMETRIC])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", ["gpt3-xl", "gpt2"])
def test_plans_of_the_solvers(scenario: str, solver: str, name: str, tmp_path: Path) -> None:
    spec, model = SPECS / f"{scenario}.yaml", find_model(name)
    assert model is not None
    cluster = read_cluster(spec)
    job = TrainingJob(512, min(model.max_positions, 2048))
    problem = Problem(cluster, model, job, Choices(replicas=8, stages=8, published_batch=True))
    result = solve(problem, SOLVERS[solver], DtFm(), stop=MaxSteps(2))
    agrees(result.best, cluster, measured_in(spec), tmp_path / "plan.json")
    assert (result.best.options.dtfm_message_gigabytes is not None) == (name == "gpt3-xl")


def test_the_published_messages() -> None:
    """Of GPT3-XL on 8 replicas × 8 stages: 0.65 and 0.47125 gigabytes."""
    gradient, activation = published_messages_gigabytes(8, 8)
    assert gradient == pytest.approx(0.65)
    assert activation == pytest.approx(0.47125, abs=5e-6)
    halves = published_messages_gigabytes(16, 4)
    assert halves == pytest.approx((1.3, 0.47125 / 2), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "hidden"), [("llama-3-8b", 8_030_261_248, 4096), ("opt-1.3b", 1_315_758_080, 2048)]
)
def test_other_models_send_what_they_have(name: str, parameters: int, hidden: int) -> None:
    """Parameter counts of the real models."""
    model = find_model(name)
    assert model is not None
    job = TrainingJob(96, 1024, micro_batch=4)
    gradient, activation = messages_gigabytes(model, job, replicas=3, stages=4)
    assert gradient == pytest.approx(parameters * 2 / 4 / 1e9)
    assert activation == pytest.approx(96 / 3 * 1024 * hidden * 2 / 1e9)
    wide = messages_gigabytes(model, replace(job, dtype="fp32"), replicas=3, stages=4)
    assert wide == pytest.approx((2 * gradient, 2 * activation))


def test_published_messages_are_for_the_published_batch_alone() -> None:
    cluster, model = read_cluster(SPECS / "dtfm-worldwide.yaml"), find_model("gpt3-xl")
    assert model is not None
    problem = Problem(cluster, model, TrainingJob(512, 2048), Choices(replicas=8, stages=8))
    best = solve(problem, SOLVERS["random"], DtFm(), stop=MaxSteps(1)).best
    assert best.options.dtfm_message_gigabytes is None


def test_unequal_depths_are_refused(random_cluster: Callable[..., Cluster], random_plan: Callable[..., Plan]) -> None:
    cluster = random_cluster(0, (3, 3))
    plans = (random_plan(seed, cluster) for seed in range(50))
    uneven = next(plan for plan in plans if len({len(pipeline.stages) for pipeline in plan.pipelines}) > 1)
    with pytest.raises(HetschedError, match="pipelines have 2 to 4 stages"):
        DtFm().price(cluster, uneven)
