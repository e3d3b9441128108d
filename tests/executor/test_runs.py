"""Real gloo processes on this machine, a rank each."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hetsched.errors import HetschedError
from hetsched.executor import CheckReport, RunSettings, StepReport, check_plan, run_plan
from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

pytest.importorskip("torch")

SETTINGS = RunSettings(steps=3, device="cpu", timeout_s=100)
Models = Callable[..., ModelSpec]
Plans = Callable[..., Plan]


def faulty(fault: str) -> tuple[str, ...]:
    return (sys.executable, str(Path(__file__).with_name("faulty_rank.py")), fault)


@pytest.mark.parametrize(
    ("family", "changes", "options"),
    [
        ("gpt2", {}, {"schedule": "gpipe", "recompute": True}),
    ],
)
def test_unequal_pipelines_compute_what_one_process_does(
    model: Models, unequal_plan: Plans, family: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    steps: list[StepReport] = []
    report = check_plan(unequal_plan(model(family, **changes), **options), SETTINGS, on_step=steps.append)
    assert report.passed, report.failures
    assert report.loss_difference < 1e-6
    assert report.gradient_difference < 5e-6
    # every copy of every tensor, in the first and the last step: each block stands on two ranks
    assert report.copies >= 2 * 2 * 4 * 9
    assert [step.loss for step in steps] == list(report.run.losses)
    assert report.run.losses[-1] < report.run.losses[0]
    assert all(0 < step.schedule_s <= step.iteration_s for rank in report.run.ranks for step in rank)


def test_tied_ends_of_two_deep_pipelines_stay_equal(
    model: Models, forked_check: Callable[[Plan, RunSettings], CheckReport]
) -> None:
    """2 × 2 with unequal layers, 1F1B: both ends of both pipelines hold the embedding, on four ranks."""
    plan = Plan(
        model=model("llama", tied_embeddings=True),
        workload=TrainingJob(global_batch=8, seq_len=16, dtype="fp32"),
        pipelines=(
            Pipeline("p0", (Stage((0, 1), ("a/0",)), Stage((1, 4), ("a/1",))), 5),
            Pipeline("p1", (Stage((0, 3), ("b/0",)), Stage((3, 4), ("b/1",))), 3),
        ),
        options=Options(zero=1),
    )
    report = forked_check(plan, SETTINGS)
    assert report.passed, report.failures


@pytest.mark.parametrize(("fault", "family"), [("average", "llama"), ("tied", "gpt2"), ("rows", "llama")])
def test_a_wrong_average_fails_the_check(model: Models, unequal_plan: Plans, fault: str, family: str) -> None:
    plan = unequal_plan(model(family))
    if fault == "rows":
        deep, _ = plan.pipelines
        plan = replace(plan, pipelines=(deep, Pipeline("flat", (Stage((0, 4), ("a/1", "a/2")),), 2)))
    report = check_plan(plan, SETTINGS, program=faulty(fault))
    assert not report.passed
    assert any("gradient of" in failure for failure in report.failures)


def test_a_killed_rank_is_named_soon(model: Models, unequal_plan: Plans) -> None:
    begun: list[float] = []

    def note(step: StepReport) -> None:
        begun.append(time.monotonic())

    with pytest.raises(HetschedError, match=r"rank 2 \(b/0\) was killed by signal 9"):
        run_plan(unequal_plan(model("llama")), SETTINGS, program=faulty("die"), on_step=note)
    assert time.monotonic() - begun[0] < 5


def test_a_run_that_takes_too_long_is_ended(model: Models, unequal_plan: Plans) -> None:
    with pytest.raises(HetschedError, match=r"not done after 0.2 s; still running: a/0"):
        run_plan(unequal_plan(model("llama")), RunSettings(device="cpu", timeout_s=0.2))


def test_torch_pipelining_computes_the_same(model: Models, tmp_path: Path) -> None:
    import torch

    plan = Plan(
        model=model("llama"),
        workload=TrainingJob(global_batch=8, seq_len=16, micro_batch=2, dtype="fp32"),
        pipelines=(Pipeline("p0", (Stage((0, 1), ("a/0",)), Stage((1, 4), ("a/1",))), 4),),
    )
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")
    run = run_plan(plan, RunSettings(steps=1, device="cpu", timeout_s=60), gradients_to=tmp_path)
    others = [
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("pipelining_rank.py"), tmp_path],
            env=dict(os.environ) | {"RANK": str(rank), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    assert [other.wait(timeout=60) for other in others] == [0, 0]
    for rank in range(2):
        opinion = torch.load(tmp_path / f"opinion-{rank}.pt")
        ours = torch.load(tmp_path / f"rank-{rank}-step-0.pt")
        assert ours.keys() == opinion["gradients"].keys()
        for name, [(_, _, _, gradient)] in ours.items():
            torch.testing.assert_close(gradient, opinion["gradients"][name], rtol=1e-4, atol=1e-6)
    assert run.losses[0] == pytest.approx(float(opinion["loss"]), rel=1e-6)
