import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_gpu
from hetsched.catalog.models import find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.readers import read_cluster
from hetsched.report.placement import placement
from hetsched.report.text import columns, joined_ranges, large, seconds
from hetsched.report.training_table import training_table
from hetsched.workload import TrainingJob

SPECS = Path(__file__).parents[2] / "cluster_specs"
MODEL = find_model("gpt3-xl")
CITIES = ("amsterdam", "antwerp", "oslo", "oss", "sao-paulo-south-america-east")


def cluster(nodes: int, gpus: int, regions: int) -> Cluster:
    kinds = [find_gpu(name, "test") for name in ("A100-SXM-80GB", "RTX-3090-24GB")]
    listed = tuple(Node(f"machine-{k}", CITIES[k % regions], (kinds[k % 3 == 2],) * gpus) for k in range(nodes))
    return Cluster("test", listed, Network(np.full((nodes, nodes), 1e9), np.full((nodes, nodes), 1e-3)))


def plan(layouts: list[list[list[str]]], **changes: Any) -> Plan:
    """layouts: for each pipeline its stages, each a list of devices."""
    assert MODEL is not None
    pipelines = []
    for k, stages in enumerate(layouts):
        bounds = [round(24 * s / len(stages)) for s in range(len(stages) + 1)]
        parts = tuple(Stage((bounds[s], bounds[s + 1]), tuple(devices)) for s, devices in enumerate(stages))
        pipelines.append(Pipeline(f"p{k}", parts, 4))
    return Plan(MODEL, TrainingJob(4 * len(layouts), 2048), tuple(pipelines), **changes)


def predicted(made: Plan, **changes: Any) -> dict[str, Any]:
    return {
        "iteration_s": 10.0,
        "tokens_per_s": 12345.6,
        "mfu": 0.321,
        "breakdown_s": {"compute": 7.0, "tensor_parallel": 0.0, "pipeline_parallel": 2.9, "data_parallel": 0.1},
        "memory_bytes": {name: 10 * 2**30 for pipeline in made.pipelines for name in pipeline.devices},
        **changes,
    }


def flat(names: list[str], depth: int) -> list[list[list[str]]]:
    return [[[name] for name in names[k : k + depth]] for k in range(0, len(names) - depth + 1, depth)]


@settings(max_examples=60, deadline=None)
@given(
    nodes=st.integers(1, 24),
    gpus=st.integers(1, 8),
    regions=st.integers(1, 5),
    depth=st.integers(1, 24),
    degree=st.sampled_from([1, 2, 4]),
    uneven=st.booleans(),
)
def test_every_layout_fits_80_columns(
    nodes: int, gpus: int, regions: int, depth: int, degree: int, uneven: bool
) -> None:
    there = cluster(nodes, gpus, regions)
    names = [device.name for device in there.devices]
    stages = [names[k : k + degree] for k in range(0, len(names), degree)]
    layouts = [stages[k : k + depth] for k in range(0, len(stages), depth)]
    made = plan(layouts if uneven or len(layouts) == 1 else layouts[:-1])
    lines = training_table(Plan(**{**vars(made), "predicted": predicted(made)}), there).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 120


def test_devices_are_named_where_nodes_are_few() -> None:
    there = cluster(2, 4, 2)
    names = [device.name for device in there.devices]
    assert placement(plan(flat(names, 4)), there).splitlines() == [
        "  pipeline  batches  stage 0      stage 1      stage 2      stage 3",
        "  p0              4  machine-0/0  machine-0/1  machine-0/2  machine-0/3",
        "  p1              4  machine-1/0  machine-1/1  machine-1/2  machine-1/3",
        "  layers             6            6            6            6",
        "",
        "  each of machine-0, machine-1: 4 × A100-SXM-80GB",
    ]


def test_pipelines_that_look_alike_share_a_row_and_regions_are_cut_where_it_is_narrow() -> None:
    there = read_cluster(SPECS / "dtfm-worldwide.yaml")
    regions = there.regions
    names = [[device.name for device in there.devices if there.node(device.node).region == r] for r in regions]
    across = [[[column[k]] for column in names] for k in range(8)]
    text = placement(plan(across), there)
    assert "  p0-p7           4  ore  vir  ohi  tok  seo  lon  fra  ire\n" in text
    assert "  layers             3    3    3    3    3    3    3    3\n" in text
    along = [[[name] for name in column] for column in names]
    assert len([line for line in placement(plan(along), there).splitlines() if re.match(r"  p\d ", line)]) == 8


def test_deep_pipelines_become_a_line_of_places() -> None:
    there = cluster(24, 1, 2)
    text = placement(plan(flat([device.name for device in there.devices], 24)), there)
    assert "p0, 4: amsterdam:A100 (1) → antwerp:A100 (1) → amsterdam:RTX (1)" in text


def test_tensor_parallel_stages_name_all_their_devices() -> None:
    there = cluster(2, 4, 1)
    first, second = (tuple(f"machine-{n}/{k}" for k in range(4)) for n in range(2))
    text = placement(plan([[list(first), list(second[:2])]]), there)
    assert "machine-0/0-3  machine-1/0,1" in text
    assert "machine-1: 4 × A100-SXM-80GB, 2 of them idle" in text


def test_what_a_person_must_know_is_there() -> None:
    there = cluster(2, 2, 2)
    made = plan(
        [[["machine-0/0"], ["machine-1/1"]]], options=Options(recompute=True, zero=1, compression=Compression(4, 8, 8))
    )
    violation = {"device": "machine-0/0", "message": "machine-0/0 needs 99.0 GiB"}
    facts = predicted(
        made,
        usd_per_hour=3.5,
        usd_per_million_tokens=0.0787,
        violations=[violation] * 6,
        baselines={"megatron": 20.0, "random": 8.0, "equal": 10.0, "large": None},
        other_cost_models_iteration_s={"dtfm": 49.22},
        notes=[f"note {k}" for k in range(9)],
    )
    given = Plan(**{**vars(made), "predicted": facts, "provenance": {"cost_model": "roofline", "memory_fraction": 0.9}})
    text = training_table(given, there)
    for said in (
        "gpt3-xl on test: 10.00 s an iteration",
        "12,346 tokens/s, MFU 32.1%, $3.50 an hour, $0.0787 a million tokens",
        "2 of 4 GPUs, 1 pipeline of 2 stages; 4 sequences of 2048 tokens",
        "micro-batch 1, bf16, 1F1B, activations recomputed, ZeRO 1, compressed to 4/8/8",
        "predicted by the roofline model",
        "DOES NOT FIT: machine-0/0 needs 99.0 GiB",
        "DOES NOT FIT: 2 more GPUs",
        "fullest A100-SXM-80GB: machine-0/0, 10.0 of 80.0 GiB (12%); 90% may be used",
        "under DT-FM's formula: 49.22 s",
        "note 5",
        "and 3 more",
    ):
        assert said in text
    assert re.search(r"computing +7.00 s +70.0% +█{17}\n", text)
    assert "tensor parallel" not in text
    assert re.search(r"megatron +20.00 s +2.00× faster\n", text)
    assert re.search(r"random +8.00 s +1.25× slower\n", text)
    assert re.search(r"equal +10.00 s +equal\n", text)
    assert re.search(r"large +does not fit\n", text)
    assert "a longer search may find better" in text


def test_a_plan_that_its_price_has_slower_is_compared_as_played() -> None:
    there = cluster(1, 1, 1)
    made = plan([[["machine-0/0"]]])
    facts = predicted(
        made,
        simulated_iteration_s=9.0,
        baselines={"megatron": 20.0, "random": 9.9, "slower": 9.9},
        baselines_simulated_iteration_s={"megatron": 9.9, "random": 10.8, "slower": 6.0},
    )
    text = training_table(Plan(**{**vars(made), "predicted": facts}), there)
    assert re.search(r"megatron +20.00 s +2.00× faster\n", text)
    assert re.search(r"random +9.90 s +1.20× faster as played\n", text)
    assert re.search(r"slower +9.90 s +1.50× slower as played\n", text)
    assert "a longer search may find better" in text


def test_by_cost_baselines_are_compared_by_price() -> None:
    there = cluster(1, 1, 1)
    made = plan([[["machine-0/0"]]])
    facts = predicted(
        made,
        usd_per_hour=1.0,
        usd_per_million_tokens=0.5,
        baselines={"megatron": 5.0},
        baselines_usd_per_million_tokens={"megatron": 0.75},
    )
    text = training_table(Plan(**{**vars(made), "predicted": facts, "provenance": {"objective": "cost"}}), there)
    assert re.search(r"megatron +\$0.75 a million tokens +1.50× cheaper", text)


@pytest.mark.parametrize(
    ("facts", "provenance", "line"),
    [
        ({"lower_bound_iteration_s": 8.0}, {}, "  no plan takes less than 8.00 s: at most 25% above any plan's bound"),
        (
            {"lower_bound_iteration_s": 8.0},
            {"objective": "cost", "budget_usd_per_hour": 3.0},
            "  no plan on the nodes rented takes less than 8.00 s; the search was for the cheapest",
        ),
        (
            {"lower_bound_iteration_s": 8.0},
            {"fixed": {"replicas": 2, "micro_batch": 3, "recompute": False}},
            "  no plan so fixed takes less than 8.00 s: at most 25% above any plan's bound",
        ),
        ({"lower_bound_iteration_s": 0.0}, {}, None),
        ({}, {}, None),
    ],
)
def test_the_bound_is_said_where_one_is_known(
    facts: dict[str, Any], provenance: dict[str, Any], line: str | None
) -> None:
    there = cluster(1, 1, 1)
    made = plan([[["machine-0/0"]]])
    given = Plan(**{**vars(made), "predicted": predicted(made, **facts), "provenance": provenance})
    lines = training_table(given, there).splitlines()
    assert [found for found in lines if "no plan" in found] == ([line] if line else [])
    fixed = ["  fixed by --replicas 2 --micro-batch 3 --no-recompute"] if "fixed" in provenance else []
    assert [found for found in lines if "fixed by" in found] == fixed


@pytest.mark.parametrize(
    ("value", "text"),
    [(49.224, "49.22 s"), (134.4, "134 s"), (0.8121, "812 ms"), (0.0031, "3.1 ms"), (36000, "10.0 h"), (0, "0 ms")],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


def test_large_numbers() -> None:
    assert [large(value) for value in (0.5, 21345.2, 1.3e6, 6.74e9)] == ["0.5", "21,345", "1.3 million", "6.74 billion"]


def test_ranges_of_names() -> None:
    assert joined_ranges(["p0", "p1", "p2", "p5", "q", "a-9", "a-10", "a-11"]) == "p0-p2, p5, q, a-9-a-11"
    assert joined_ranges([]) == ""


def test_columns() -> None:
    assert columns(["name", "n"], [["a", 1000], ["long", 2]]) == "name      n\na     1,000\nlong      2"
