import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from hetsched.executor import CheckReport, RunReport

Cli = Callable[..., Result]
Minimal = Callable[..., dict[str, Any]]
REPORT = RunReport((5.5, 5.4), (0.2, 0.1), 0.1, 100.0, "fp32", "cpu", ("a/0",), (), ("a word of warning",))

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


@pytest.fixture
def plan(minimal: Minimal, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(minimal(predicted={"iteration_s": 1.25})))
    return path


@needs_torch
def test_a_large_model_is_scaled_down_and_checked(cli: Cli, plan: Path) -> None:
    result = cli("run", plan, "--check", "--steps", 1, "--hidden-size", 16, "--seq-len", 8, "--device", "cpu")
    assert "2 processes train gpt2-scaled (scaled down from gpt2" in result.stdout
    assert result.stdout.count("  loss ") == 3
    assert "not to be compared with this run" in result.stdout
    assert "equal to one process" in result.stdout


def test_a_failed_check_exits_1(cli: Cli, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = CheckReport(REPORT, (5.5, 5.1), 0.3, 0.4, 0.5, "x", 7, ("step 1: the loss is off", "and more"))
    monkeypatch.setattr("hetsched.executor.launch.require_torch", lambda: None)
    monkeypatch.setattr("hetsched.executor.check_plan", lambda *_, **__: failed)
    result = cli("run", plan, "--check", code=1)
    assert "NOT equal to one process" in result.stdout
    assert "error: the run differs from one process: step 1: the loss is off (and 1 more)" in result.stderr
    document = json.loads(cli("run", plan, "--check", "--json", code=1).stdout)
    assert document["check"]["passed"] is False


def test_json_beside_the_prediction(cli: Cli, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetsched.executor.launch.require_torch", lambda: None)
    monkeypatch.setattr("hetsched.executor.run_plan", lambda *_, **__: REPORT)
    result = cli("run", plan, "--json")
    document = json.loads(result.stdout)
    assert document["losses"] == [5.5, 5.4]
    assert document["predicted_iteration_s"] == 1.25
    assert document["scaled_down"] is True
    assert "warning: a word of warning" in result.stderr
    assert "1.250 s an iteration on the planned GPUs" in cli("run", plan, "--full-size").stdout
    assert cli("run", plan, "--quiet").stdout == ""


def test_without_torch_the_install_command_is_said(cli: Cli, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert 'hint: pip install "hetsched[executor]"' in cli("run", plan, code=1).stderr


def test_full_size_excludes_sizes(cli: Cli, plan: Path) -> None:
    assert "exclude each other" in cli("run", plan, "--full-size", "--seq-len", 8, code=2).stderr
