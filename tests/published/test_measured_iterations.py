"""Whole iterations that were measured on GH200s, against the default cost model with measured profiles.

Data: eth-easl/sailor (SOSP 2025), MIT licence, Copyright (c) 2023-present ETH Zurich. Three rows are left out: for two
the layer profile itself is off (micro-batch 1 on one node: it is 16 to 28 % above the whole iteration), and one is
flagged by its source. No constant of the cost model is fitted to these rows.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hetsched.cli import main
from hetsched.cost.base import Cost
from hetsched.cost.training import Roofline
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.readers import read_cluster, read_model
from hetsched.workload import TrainingJob

HERE = Path(__file__).parent
SPEC = HERE.parents[1] / "cluster_specs" / "gh200-32-nodes.yaml"
LEFT_OUT = ("N1_D1_M4_G1", "N1_D1_M4_G32", "N4_D4")
ROWS = [
    row
    for row in json.loads((HERE / "training_measured.json").read_text(encoding="utf-8"))["rows"]
    if row["id"] not in LEFT_OUT
]


def plan_of(row: dict[str, Any]) -> Plan:
    """The row's plan: a stage a node, in order. Its engine waits for its messages (DeepSpeed's pipeline)."""
    depth = len(row["stage_blocks"])
    micro_batches = row["global_batch"] // row["dp"] // row["micro_batch"]
    pipelines = tuple(
        Pipeline(
            f"p{replica}",
            tuple(
                Stage((first, last), tuple(f"gh200-{replica * depth + s}/{k}" for k in range(row["tp"])))
                for s, (first, last) in enumerate(row["stage_blocks"])
            ),
            micro_batches,
        )
        for replica in range(row["dp"])
    )
    job = TrainingJob(row["global_batch"], 2048, row["micro_batch"], "fp32")
    return Plan(read_model("opt-350m-s"), job, pipelines, Options(overlap=False))


@pytest.fixture(scope="module")
def costs() -> list[Cost]:
    cluster = read_cluster(SPEC)
    return [Roofline().price(cluster, plan_of(row)) for row in ROWS]


def test_iterations_as_measured(costs: list[Cost]) -> None:
    """At most 5 % off on average and 10 % at worst; the best published planner is 7.4 % off."""
    measured = np.array([row["measured_iteration_s"] for row in ROWS])
    errors = np.abs(np.array([cost.iteration_s for cost in costs]) / measured - 1)
    others = np.abs(np.array([row["other_planner_iteration_s"] for row in ROWS]) / measured - 1)
    assert len(errors) == 12
    assert errors.mean() <= 0.05
    assert errors.max() <= 0.10
    assert others.mean() == pytest.approx(0.074, abs=0.001)


def test_memory_as_measured(costs: list[Cost]) -> None:
    """At most 6 % off on average."""
    measured = np.array([row["measured_max_memory_bytes"] for row in ROWS])
    needed = np.array([max(cost.memory_bytes.values()) for cost in costs])
    assert np.abs(needed / measured - 1).mean() <= 0.06


def test_a_plan_by_hand_says_the_same(costs: list[Cost], tmp_path: Path) -> None:
    """What a person writes, without options: the command prices it as the engines that wait for their messages."""
    plan = plan_of(ROWS[1])
    path = tmp_path / "plan.json"
    document = plan.to_json()
    kept = {key: document[key] for key in ("format", "kind", "workload", "pipelines")}
    path.write_text(json.dumps({**kept, "model": "opt-350m-s", "cluster": {"path": str(SPEC)}}), encoding="utf-8")
    result = CliRunner().invoke(main, ["evaluate", str(path), "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    predicted = json.loads(result.stdout)
    assert predicted["iteration_s"] == pytest.approx(costs[1].iteration_s, rel=1e-12)
    assert not [note for note in predicted["notes"] if "data sheet" in note]
