"""simulate, explain and compare, on the bundled plans and on wrong ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Cli = Callable[..., Result]
Minimal = Callable[..., dict[str, Any]]
PLANS = Path(__file__).parents[2] / "plans"
BY_HAND, WORLDWIDE = PLANS / "by-hand.json", PLANS / "worldwide-gpt3-xl.json"


@pytest.fixture
def plan(minimal: Minimal, specs: Path, tmp_path: Path) -> Path:
    """Two GPUs in two regions: nothing is shared but for the two ways, which are apart."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(minimal(cluster={"path": str(specs / "home-office.yaml")})))
    return path


def test_a_simulation_that_is_exact_is_what_evaluate_says(cli: Cli, plan: Path) -> None:
    simulated = json.loads(cli("simulate", plan, "--json").stdout)
    evaluated = json.loads(cli("evaluate", plan, "--json").stdout)
    assert simulated["simulation"]["exact"] is True
    for key in ("iteration_s", "tokens_per_s", "mfu", "usd_per_hour"):
        assert simulated[key] == pytest.approx(evaluated[key], rel=1e-9)
    assert simulated["breakdown_s"] == pytest.approx(evaluated["breakdown_s"], rel=1e-9)
    assert simulated["violations"] == evaluated["violations"] == []
    assert simulated["memory_bytes"] == evaluated["memory_bytes"]
    table = cli("simulate", plan).stdout
    assert "exact: true" in table
    assert "the same" in table


def test_a_simulation_of_shared_networks(cli: Cli) -> None:
    simulated = json.loads(cli("simulate", WORLDWIDE, "--json").stdout)
    found = simulated["simulation"]
    assert found["exact"] is False
    plan = json.loads(Path(WORLDWIDE).read_text(encoding="utf-8"))
    assert len(found["stages"]) == sum(len(pipeline["stages"]) for pipeline in plan["pipelines"])
    assert sum(simulated["breakdown_s"].values()) == pytest.approx(simulated["iteration_s"])
    if found["kinds_apart_iteration_s"] is not None:
        assert found["kinds_apart_iteration_s"] <= found["model_iteration_s"] * (1 + 1e-9)
    assert "exact: false" in cli("simulate", WORLDWIDE).stdout


def test_a_timeline(cli: Cli, plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    result = cli("simulate", plan, "--timeline", path)
    assert f"written to {path}" in result.stdout
    events = json.loads(path.read_text())["traceEvents"]
    assert len([event for event in events if event["name"] == "forward"]) == 16
    json.loads(cli("simulate", plan, "--timeline", path, "--json").stdout)
    assert cli("simulate", plan, "-q").output == ""
    assert "is an input" in cli("simulate", plan, "--timeline", plan, code=1).stderr
    assert "can't be written" in cli("simulate", plan, "--timeline", tmp_path / "no" / "t.json", code=1).stderr


def test_an_explanation(cli: Cli, plan: Path) -> None:
    text = cli("explain", plan).stdout
    for heading in ("What limits it", "Time by stage", "Memory by stage", "Messages between stages"):
        assert heading in text
    found = json.loads(cli("explain", plan, "--json").stdout)
    evaluated = json.loads(cli("evaluate", plan, "--json").stdout)
    assert found["iteration_s"] == evaluated["iteration_s"]
    assert found["breakdown_s"] == evaluated["breakdown_s"]
    assert [stage["devices"] for stage in found["stages"]] == [["office-pc/0"], ["desktop/1"]]
    assert {link["source"] for link in found["links"]} == {0, 1}
    assert "does not fit" in cli("explain", plan, "--memory-fraction", 0.05).stdout


def test_a_comparison(cli: Cli, plan: Path, tmp_path: Path) -> None:
    document = json.loads(cli("compare", BY_HAND, plan, "--json").stdout)
    assert [one["name"] for one in document["plans"]] == ["by-hand", "plan"]
    priced = json.loads(cli("evaluate", BY_HAND, "--json").stdout)
    assert document["plans"][0]["predicted"]["iteration_s"] == priced["iteration_s"]
    assert document["plans"][0]["stages"] == [1, 3]
    table = cli("compare", BY_HAND, plan, WORLDWIDE).stdout
    assert "by-hand" in table
    assert "as fast" in table
    assert "the plans are for different clusters: home-office, dtfm-worldwide" in table
    other = tmp_path / "other" / "plan.json"
    other.parent.mkdir()
    other.write_text(plan.read_text())
    names = [one["name"] for one in json.loads(cli("compare", plan, other, "--json").stdout)["plans"]]
    assert names == [str(plan), str(other)]
    assert cli("compare", BY_HAND, "-q").output == ""


@pytest.mark.parametrize("command", ["simulate", "explain", "compare"])
def test_what_is_no_plan_for_them(cli: Cli, plan: Path, specs: Path, tmp_path: Path, command: str) -> None:
    assert "does not exist" in cli(command, tmp_path / "no.json", code=1).stderr
    elsewhere = cli(command, plan, "--cluster", specs / "dtfm-worldwide.yaml", code=1).stderr
    assert "'office-pc/0' is not in cluster dtfm-worldwide" in elsewhere
    serving = tmp_path / "serve.json"
    serving.write_text(json.dumps(json.loads(plan.read_text()) | {"kind": "serve"}))
    assert cli(command, serving, code=1).stderr.startswith("error: ")
    cli(command, code=2)
