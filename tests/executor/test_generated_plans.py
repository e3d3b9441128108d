"""Plans of every shape compute what one process does, each rank a real gloo process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetsched.executor import CheckReport, RunSettings
from hetsched.executor.launch import _gather, arguments
from hetsched.plan import Plan
from tests.executor.generated_plans import generated_plan

pytest.importorskip("torch")

SETTINGS = RunSettings(steps=3, device="cpu", dtype="fp32", timeout_s=60, learning_rate=1e-4)
PRECISE = RunSettings(steps=3, device="cpu", dtype="fp64", timeout_s=60, learning_rate=1e-4)
PLANS, PRECISE_PLANS = 34, 6

Check = Callable[[Plan, RunSettings, Path], CheckReport]


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """`check(plan, settings, folder)`."""
    from hetsched.executor.check import compare

    pool = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("rank_pool.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert pool.stdin is not None
    assert pool.stdout is not None
    questions, answers = pool.stdin, pool.stdout

    def run(plan: Plan, settings: RunSettings, folder: Path) -> CheckReport:
        devices = tuple(device for devices in plan.devices_by_node.values() for device in devices)
        (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")
        words = arguments(settings, folder, folder)[:-1]  # without --end-with-stdin
        questions.write(json.dumps({"world_size": len(devices), "words": words}) + "\n")
        questions.flush()
        assert answers.readline() == f"{[0] * len(devices)}\n"
        return compare(plan, settings, _gather(plan, devices, folder, ()), folder)

    with pool:
        yield run
        questions.close()


@pytest.mark.parametrize("seed", range(PLANS))
def test_a_generated_plan_computes_what_one_process_does(check: Check, seed: int, tmp_path: Path) -> None:
    report = check(generated_plan(seed), SETTINGS, tmp_path)
    assert report.passed, report.failures


@pytest.mark.parametrize("seed", range(100, 100 + PRECISE_PLANS))
def test_in_fp64_the_difference_is_rounding_alone(check: Check, seed: int, tmp_path: Path) -> None:
    report = check(generated_plan(seed), PRECISE, tmp_path)
    assert report.passed, report.failures
    assert report.loss_difference < 1e-10
    assert report.gradient_difference < 1e-10
    assert report.tensor_difference < 1e-10


def test_the_plans_have_every_shape() -> None:
    plans = [generated_plan(seed) for seed in range(PLANS)]
    stages = [stage for plan in plans for _, _, stage in plan.stages]
    assert {stage.tensor_parallel for stage in stages} == {1, 2, 3, 4}
    assert {len(pipeline.stages) for plan in plans for pipeline in plan.pipelines} == {1, 2, 3, 4}
    assert {len(plan.pipelines) for plan in plans} == {1, 2, 3}
    assert {(plan.model.family, plan.model.tied_embeddings) for plan in plans} == {
        (family, tied) for family in ("llama", "gpt2") for tied in (True, False)
    }
    assert any(plan.model.num_kv_heads % stage.tensor_parallel for plan in plans for _, _, stage in plan.stages)
    assert any(stage.tensor_parallel > plan.model.num_kv_heads for plan in plans for _, _, stage in plan.stages)
    assert any(
        {a.tensor_parallel, b.tensor_parallel} == {2, 3}
        for plan in plans
        for p in plan.pipelines
        for q in plan.pipelines
        if p != q
        for a in p.stages
        for b in q.stages
        if a.layers[0] < b.layers[1] and b.layers[0] < a.layers[1]
    )
