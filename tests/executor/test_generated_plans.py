"""Plans of every shape compute what one process does, each rank a real gloo process."""

from collections.abc import Callable

import pytest

from hetsched.executor import CheckReport, RunSettings
from hetsched.plan import Plan
from tests.executor.generated_plans import generated_plan

pytest.importorskip("torch")

SETTINGS = RunSettings(steps=3, device="cpu", dtype="fp32", timeout_s=60, learning_rate=1e-4)
PRECISE = RunSettings(steps=3, device="cpu", dtype="fp64", timeout_s=60, learning_rate=1e-4)
PLANS, PRECISE_PLANS = 34, 6

Check = Callable[[Plan, RunSettings], CheckReport]


@pytest.mark.parametrize("seed", range(PLANS))
def test_a_generated_plan_computes_what_one_process_does(forked_check: Check, seed: int) -> None:
    report = forked_check(generated_plan(seed), SETTINGS)
    assert report.passed, report.failures


@pytest.mark.parametrize("seed", range(100, 100 + PRECISE_PLANS))
def test_in_fp64_the_difference_is_rounding_alone(forked_check: Check, seed: int) -> None:
    report = forked_check(generated_plan(seed), PRECISE)
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
