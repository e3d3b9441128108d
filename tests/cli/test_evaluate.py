import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Cli = Callable[..., Result]
Minimal = Callable[..., dict[str, Any]]


def written(path: Path, plan: dict[str, Any]) -> Path:
    path.write_text(json.dumps(plan))
    return path


def test_a_minimal_plan_by_hand(cli: Cli, minimal: Minimal, specs: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "by-hand.json", minimal())
    predicted = json.loads(cli("evaluate", path, "--cluster", specs / "home-office.yaml", "--json").stdout)
    assert predicted["iteration_s"] > 0
    assert predicted["violations"] == []
    assert set(predicted["memory_bytes"]) == {"office-pc/0", "desktop/1"}
    assert 0 < predicted["lower_bound_iteration_s"] <= predicted["iteration_s"]
    table = cli("evaluate", path, "--cluster", specs / "home-office.yaml").stdout
    assert "office-pc/0  desktop/1" in table
    assert "Compared with" not in table
    assert "no plan takes less than" in table


def test_the_bound_holds_for_the_micro_batch_sizes_of_searches_too(
    cli: Cli, minimal: Minimal, specs: Path, tmp_path: Path
) -> None:
    """A plan by hand, of one size that is searched and one that is not, is bounded by what holds for both."""
    stated = []
    for size in (1, 64):
        stages = [{"layers": [0, 12], "devices": ["rented/0"]}]
        whole = {"micro_batches": 64 // size, "stages": stages}
        plan = minimal(workload={"global_batch": 64, "micro_batch": size}, pipelines=[whole])
        path = written(tmp_path / "by-hand.json", plan)
        predicted = json.loads(cli("evaluate", path, "--cluster", specs / "home-office.yaml", "--json").stdout)
        assert predicted["violations"] == []
        stated.append(predicted["lower_bound_iteration_s"])
    assert 0 < stated[1] <= stated[0]


def test_the_cluster_is_found_beside_the_plan_and_then_from_here(
    cli: Cli, minimal: Minimal, specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "plans", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    path = written(folder / "plan.json", minimal(cluster={"path": "home.yaml"}))
    monkeypatch.chdir(elsewhere)
    missing = cli("evaluate", path, code=1).stderr
    assert "its cluster is not at" in missing
    assert "hint: give --cluster FILE" in missing
    (elsewhere / "home.yaml").write_text((specs / "home-office.yaml").read_text())
    assert "on home-office:" in cli("evaluate", path).stdout
    (folder / "home.yaml").write_text((specs / "home-office.yaml").read_text().replace("home-office", "beside"))
    assert "on beside:" in cli("evaluate", path).stdout


def test_no_cluster_at_all(cli: Cli, minimal: Minimal, tmp_path: Path) -> None:
    path = written(tmp_path / "plan.json", minimal())
    assert "does not say which cluster" in cli("evaluate", path, code=1).stderr


def test_a_changed_cluster_file_warns(cli: Cli, home: tuple[object, ...], specs: Path, tmp_path: Path) -> None:
    cluster, path = tmp_path / "mine.yaml", tmp_path / "plan.json"
    cluster.write_text((specs / "home-office.yaml").read_text())
    cli(home[0], cluster, *home[2:], "-o", path)
    assert json.loads(path.read_text())["cluster"]["path"] == "mine.yaml"
    assert cli("evaluate", path).stderr == ""
    cluster.write_text(cluster.read_text() + "# a comment\n")
    result = cli("evaluate", path, "--json")
    assert "warning: " in result.stderr
    assert "has changed since plan.json was made" in result.stderr
    json.loads(result.stdout)


def test_what_does_not_fit_is_priced_and_said_not_to_fit(
    cli: Cli, minimal: Minimal, specs: Path, tmp_path: Path
) -> None:
    stages = [{"layers": [0, 20], "devices": ["office-pc/0"]}, {"layers": [20, 32], "devices": ["rented/0"]}]
    plan = minimal(model="llama-2-7b", pipelines=[{"micro_batches": 8, "stages": stages}])
    path = written(tmp_path / "plan.json", plan)
    cluster = ("--cluster", specs / "home-office.yaml")
    predicted = json.loads(cli("evaluate", path, *cluster, "--json").stdout)
    assert predicted["iteration_s"] > 0
    first = predicted["violations"][0]
    assert (first["device"], first["limit"]) == ("office-pc/0", "memory")
    assert first["needed_bytes"] > first["available_bytes"]
    assert "DOES NOT FIT: office-pc/0 needs" in cli("evaluate", path, *cluster).stdout


def test_the_memory_share_of_the_plan_counts_unless_another_is_given(
    cli: Cli, minimal: Minimal, specs: Path, tmp_path: Path
) -> None:
    path = written(tmp_path / "plan.json", minimal(provenance={"memory_fraction": 0.01, "cost_model": "dtfm"}))
    words = ("evaluate", path, "--cluster", specs / "home-office.yaml", "--json")
    tight = json.loads(cli(*words).stdout)
    assert len(tight["violations"]) == 2
    assert set(tight["other_cost_models_iteration_s"]) == {"roofline", "flashflex"}
    assert json.loads(cli(*words, "--memory-fraction", 0.9).stdout)["violations"] == []
    roofline = json.loads(cli(*words, "--cost-model", "roofline").stdout)
    assert roofline["iteration_s"] == tight["other_cost_models_iteration_s"]["roofline"]


def test_a_cost_model_without_a_price_for_the_plan(cli: Cli, minimal: Minimal, specs: Path, tmp_path: Path) -> None:
    alone = {"micro_batches": 4, "stages": [{"layers": [0, 12], "devices": ["rented/0"]}]}
    deep = minimal()["pipelines"][0] | {"micro_batches": 4}
    path = written(tmp_path / "plan.json", minimal(pipelines=[deep, alone]))
    words = ("evaluate", path, "--cluster", specs / "home-office.yaml")
    assert json.loads(cli(*words, "--json").stdout)["other_cost_models_iteration_s"].keys() <= {"flashflex"}
    assert "1 to 2 stages" in cli(*words, "--cost-model", "dtfm", code=1).stderr
    assert "2 pipelines of 1 to 2 stages" in cli(*words).stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "hetsched-plan/2"}, "update hetsched"),
        ({"provenance": {"cost_model": "guess"}}, "use one of: roofline, dtfm"),
        ({"provenance": {"memory_fraction": 2}}, "at most 1"),
        ({"provenance": {"memory_fraction": "much"}}, "expected a number"),
        ({"cluster": {"path": "a\0b"}}, "its cluster is not at"),
        ({"pipelines": []}, "no pipelines"),
        ({"model": "gpt9"}, "gpt9"),
    ],
)
def test_wrong_plans(cli: Cli, minimal: Minimal, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "plan.json", minimal(**changes))
    result = cli("evaluate", path, code=1)
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


def test_a_device_that_the_cluster_lacks(cli: Cli, minimal: Minimal, specs: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "plan.json", minimal())
    result = cli("evaluate", path, "--cluster", specs / "dtfm-worldwide.yaml", code=1)
    assert "'office-pc/0' is not in cluster dtfm-worldwide" in result.stderr


def test_rubbish_is_no_plan(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("", "[" * 100_000, "{", "[1]", '"text"', "\0"):
        path.write_text(text)
        assert cli("evaluate", path, code=1).stderr.startswith("error: ")
