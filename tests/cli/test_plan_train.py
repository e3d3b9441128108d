import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from hetsched import __version__
from hetsched.readers import read_plan
from hetsched.solvers import SOLVERS

Cli = Callable[..., Result]


def test_the_plan_file_holds_all_that_the_format_promises(
    cli: Cli, home: tuple[object, ...], specs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    cli(*home, "-o", path)
    data = json.loads(path.read_text())
    assert data["format"] == "hetsched-plan/1"
    cluster = specs / "home-office.yaml"
    assert data["cluster"]["name"] == "home-office"
    assert (tmp_path / data["cluster"]["path"]).resolve() == cluster.resolve()
    assert data["cluster"]["sha256"] == hashlib.sha256(cluster.read_bytes()).hexdigest()
    used = [name for pipe in data["pipelines"] for stage in pipe["stages"] for name in stage["devices"]]
    assert set(data["devices"]) == set(used) == set(data["predicted"]["memory_bytes"])
    for name, facts in data["devices"].items():
        assert set(facts) == {"node", "region", "index", "kind"}
        assert name == f"{facts['node']}/{facts['index']}"
    predicted = data["predicted"]
    assert predicted["violations"] == []
    assert set(predicted["baselines"]) == {"megatron", "random"}
    assert all(value > 0 for value in predicted["baselines"].values())
    played = predicted["baselines_simulated_iteration_s"]
    assert all(played[name] == pytest.approx(value, rel=0.3) for name, value in predicted["baselines"].items())
    assert 0 < predicted["lower_bound_iteration_s"] <= predicted["iteration_s"]
    assert predicted["lower_bound_because"]
    assert predicted["other_cost_models_iteration_s"]["dtfm"] > 0
    assert predicted["tokens_per_s"] == pytest.approx(512 * 1024 / predicted["iteration_s"])
    made = data["provenance"]
    assert (made["solver"], made["seed"], made["cost_model"], made["candidates"]) == ("random", 0, "roofline", 4)
    assert made["version"] == __version__
    assert made["memory_fraction"] == 0.92
    read_plan(path)


def test_a_plan_prices_the_same_when_it_is_read_again(cli: Cli, home: tuple[object, ...], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for options in ((), ("--cost-model", "dtfm"), ("--compression", "4,8,8", "--zero", 1, "--memory-fraction", 0.5)):
        cli(*home, *options, "-o", path)
        stated = json.loads(path.read_text())["predicted"]
        anew = json.loads(cli("evaluate", path, "--json").stdout)
        assert anew == {key: value for key, value in stated.items() if not key.startswith("baselines")}


def test_equal_seeds_give_equal_plans_and_other_seeds_others(cli: Cli, home: tuple[object, ...]) -> None:
    documents = [json.loads(cli(*home, "--json", "--seed", seed).stdout) for seed in (3, 3, 4)]
    same, again, other = (json.dumps(document["pipelines"]) for document in documents)
    assert same == again
    assert same != other


def test_json_is_the_whole_plan_and_nothing_else(cli: Cli, home: tuple[object, ...], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = cli(*home, "--json", "-o", path)
    printed, written = json.loads(result.stdout), json.loads(path.read_text())
    assert printed["pipelines"] == written["pipelines"]
    assert result.stderr == ""


def test_the_worldwide_cluster(cli: Cli, specs: Path) -> None:
    result = cli(
        *("plan-train", specs / "dtfm-worldwide.yaml", "--model", "gpt3-xl", "--cost-model", "dtfm"),
        *("--replicas", 8, "--stages", 8, "--micro-batch", 1, "--solver", "random", "--max-steps", 2),
    )
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "8 pipelines of 8 stages" in result.stdout
    assert "predicted by DT-FM's formula" in result.stdout
    assert "under the roofline model:" in result.stdout
    assert re.search(r"megatron +\S+ s +\S+ (faster|slower)|equal", result.stdout)


def test_options_reach_the_plan(cli: Cli, home: tuple[object, ...]) -> None:
    options = ["--global-batch", 24, "--micro-batch", 2, "--seq-len", 128, "--replicas", 2, "--stages", 3]
    options += ["--dtype", "fp16", "--schedule", "gpipe", "--recompute", "--zero", 1, "--compression", "8"]
    data = json.loads(cli(*home, *options, "--json").stdout)
    assert data["workload"] == {"global_batch": 24, "micro_batch": 2, "seq_len": 128, "dtype": "fp16"}
    assert [len(pipeline["stages"]) for pipeline in data["pipelines"]] == [3, 3]
    assert data["options"] == {
        "schedule": "gpipe",
        "recompute": True,
        "zero": 1,
        "compression": {"activation_bits": 8, "activation_grad_bits": 8, "grad_bits": 8},
        "overlap": True,
    }


def test_defaults_of_batch_and_length(cli: Cli, specs: Path) -> None:
    words = ("plan-train", specs / "home-office.yaml", "--solver", "random", "--max-steps", 1, "--json")
    assert json.loads(cli(*words, "--model", "gpt2").stdout)["workload"]["seq_len"] == 1024
    assert json.loads(cli(*words, "--model", "qwen3-0.6b").stdout)["workload"]["seq_len"] == 4096


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_plans(cli: Cli, specs: Path, solver: str) -> None:
    words = ("plan-train", specs / "home-office.yaml", "--model", "gpt2", "--solver", solver, "--max-steps", 3)
    assert json.loads(cli(*words, "--json").stdout)["provenance"]["solver"] == solver


def test_the_default_solver_is_one(cli: Cli, specs: Path) -> None:
    words = ("plan-train", specs / "home-office.yaml", "--model", "gpt2", "--max-steps", 3, "--json")
    assert json.loads(cli(*words).stdout)["provenance"]["solver"] == "auto"


def test_max_seconds_ends_a_search(cli: Cli, specs: Path) -> None:
    words = ("plan-train", specs / "home-office.yaml", "--model", "gpt2", "--solver", "random", "--max-seconds", 0.2)
    made = json.loads(cli(*words, "--json").stdout)["provenance"]
    assert 0.2 <= made["wall_s"] < 5


def test_what_was_fixed_is_said_of_the_bound(cli: Cli, specs: Path, tmp_path: Path) -> None:
    """The bound is on plans that have it; priced again, too."""
    words = ("plan-train", specs / "home-office.yaml", "--model", "gpt2", "--global-batch", 16, "--max-steps", 3)
    found = cli(*words, "--stages", 1, "--recompute", "-o", tmp_path / "plan.json").stdout
    said = "  fixed by --stages 1 --recompute\n  no plan so fixed takes less than"
    assert said in found
    assert said in cli("evaluate", tmp_path / "plan.json").stdout
    assert "fixed" not in json.loads(cli(*words, "--json").stdout)["provenance"]


def test_a_budget_leaves_out_nodes(cli: Cli, home: tuple[object, ...]) -> None:
    data = json.loads(cli(*home, "--budget-usd-per-hour", 0.4, "--json").stdout)
    assert {facts["node"] for facts in data["devices"].values()} <= {"desktop", "office-pc"}
    assert data["predicted"]["usd_per_hour"] <= 0.4
    assert data["provenance"]["budget_usd_per_hour"] == 0.4


def test_a_budget_for_nothing_is_infeasible(cli: Cli, home: tuple[object, ...]) -> None:
    message = cli(*home, "--budget-usd-per-hour", 0.1, code=3).stderr
    assert "pays for no node" in message
    assert "office-pc, costs $0.12" in message


@pytest.mark.parametrize("option", [("--objective", "cost"), ("--budget-usd-per-hour", 3)])
def test_money_needs_prices(cli: Cli, specs: Path, option: tuple[object, ...]) -> None:
    message = cli("plan-train", specs / "dtfm-worldwide.yaml", "--model", "gpt3-xl", *option, code=1).stderr
    assert "has no price for node oregon-0 and 63 more" in message
    assert "hint: give each node its `usd_per_hour`" in message


def test_no_plan_that_fits_says_which_limit_where_and_by_how_much(cli: Cli, specs: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("precious")
    words = ("plan-train", specs / "home-office.yaml", "--model", "llama-2-70b", "--solver", "random")
    result = cli(*words, "--max-steps", 1, "--json", "-o", path, code=3)
    assert re.search(r"error: no plan .* needs \S+ GiB, \S+ GiB are usable \(\S+ GiB too much\)", result.stderr)
    assert "hint: what would help" in result.stderr
    assert result.stdout == ""
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("target", "reason"), [("missing/plan.json", "No such file"), (".", "a directory"), ("-", "names no file")]
)
def test_where_nothing_can_be_written_nothing_is_searched(
    cli: Cli, home: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, reason: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr("hetsched.cli.driver.solve", never)
    monkeypatch.chdir(tmp_path)
    result = cli(*home, "-o", target, code=1)
    assert reason in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--model", "gpt2", "--solver", "nonsense"),
        ("--model", "gpt2", "--max-steps", "0"),
        ("--model", "gpt2", "--max-seconds", "nan"),
        ("--model", "gpt2", "--memory-fraction", "1.5"),
        ("--model", "gpt2", "--compression", "4,8"),
        ("--model", "gpt2", "--compression", "64"),
        ("--model", "gpt2", "--zero", "4"),
        ("--model", "gpt2", "--cost-model", "guess"),
        ("--model", "gpt2", "--objective", "fame"),
    ],
)
def test_wrong_usage_exits_2(cli: Cli, specs: Path, words: tuple[str, ...]) -> None:
    assert "Usage: " in cli("plan-train", specs / "home-office.yaml", *words, code=2).stderr


def test_wrong_input_exits_1_with_a_hint(cli: Cli, specs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("nodes: [")
    home = specs / "home-office.yaml"
    for words in (
        ("plan-train", tmp_path / "no.yaml", "--model", "gpt2", "--solver", "random"),
        ("plan-train", broken, "--model", "gpt2", "--solver", "random"),
        ("plan-train", home, "--model", "gpt9", "--solver", "random"),
        ("plan-train", home, "--model", "gpt2", "--solver", "random", "--replicas", 9),
        ("plan-train", home, "--model", "gpt2", "--solver", "random", "--seq-len", 4096),
    ):
        result = cli(*words, code=1)
        assert result.stderr.startswith("error: ")
        assert result.stdout == ""


def test_an_input_is_never_written_over(cli: Cli, specs: Path, tmp_path: Path) -> None:
    path = tmp_path / "home.yaml"
    path.write_text((specs / "home-office.yaml").read_text())
    message = cli("plan-train", path, "--model", "gpt2", "--solver", "random", "-o", path, code=1).stderr
    assert "is an input of this command" in message
    assert path.read_text() == (specs / "home-office.yaml").read_text()


def test_by_cost_a_plan_is_no_dearer_than_by_time(cli: Cli, specs: Path) -> None:
    words = ("plan-train", specs / "home-office.yaml", "--model", "gpt2", "--solver", "megatron", "--json")
    by_time, by_cost = (json.loads(cli(*words, "--objective", goal).stdout) for goal in ("time", "cost"))
    assert by_cost["predicted"]["usd_per_million_tokens"] <= by_time["predicted"]["usd_per_million_tokens"]
    assert by_cost["predicted"]["iteration_s"] >= by_time["predicted"]["iteration_s"]
    assert by_cost["provenance"]["objective"] == "cost"


def test_quiet_prints_nothing(cli: Cli, home: tuple[object, ...], tmp_path: Path) -> None:
    assert cli(*home, "--quiet", "-o", tmp_path / "plan.json").output == ""


def test_without_output_no_file_is_written(
    cli: Cli, home: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "What is where" in cli(*home).stdout
    assert list(tmp_path.iterdir()) == []


def test_a_warning_of_the_cluster_file_is_a_line_on_stderr(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("nodes:\n - {name: a, gpu: RTX-3090-24GB, color: green}\n")
    result = cli("plan-train", path, "--model", "gpt2", "--solver", "random", "--max-steps", 1, "--json")
    assert result.stderr == "warning: odd.yaml: nodes[0]: unknown key `color` is ignored\n"
    json.loads(result.stdout)


def test_zero_goes_as_far_as_memory_needs(cli: Cli, specs: Path) -> None:
    """8 whole models of 1.3 billion parameters need 11.3 GiB each with ZeRO 1."""
    grid = "--stages", 1, "--replicas", 8, "--seq-len", 1024, "--micro-batch", 1, "--recompute", "--solver", "random"
    words = "plan-train", specs / "dtfm-worldwide.yaml", "--model", "opt-1.3b", *grid, "--max-steps", 1, "--json"
    used = [json.loads(cli(*words, "--memory-fraction", share).stdout)["options"]["zero"] for share in (0.92, 0.7)]
    assert used == [1, 2]
    cli(*words, "--memory-fraction", 0.7, "--zero", 1, code=3)


def test_a_micro_batch_is_no_larger_than_the_batch(cli: Cli, home: tuple[object, ...]) -> None:
    wrong = cli(*home, "--global-batch", 16, "--micro-batch", 17, code=1).stderr
    assert "error: a micro-batch of 17 for a global batch of 16 sequences" in wrong
    assert "hint: ask for a smaller --micro-batch" in wrong
    assert json.loads(cli(*home, "--global-batch", 16, "--micro-batch", 16, "--json").stdout)["pipelines"]


def test_short_sequences_go_through_in_larger_micro_batches(cli: Cli, specs: Path, tmp_path: Path) -> None:
    """All that was tried by hand at one size is no better, and the bound is on it too."""
    words = "plan-train", specs / "home-office.yaml", "--model", "gpt2", "--seq-len", 128, "--global-batch", 256
    open_ = json.loads(cli(*words, "--json").stdout)
    bound_s, found_s = (open_["predicted"][f"{name}iteration_s"] for name in ("lower_bound_", ""))
    fixed = {}
    for size in (8, 64, 128):
        path = tmp_path / f"{size}.json"
        cli(*words, "--micro-batch", size, "--max-steps", 20, "-o", path)
        fixed[size] = json.loads(cli("evaluate", path, "--json").stdout)["iteration_s"]
    assert bound_s <= found_s <= min(fixed.values())
    assert found_s < 0.7 * fixed[8]
