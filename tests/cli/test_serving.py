"""evaluate and simulate of serving plans, and what is said where a command or an option does not suit the plan."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Cli = Callable[..., Result]
PLANS = Path(__file__).parents[2] / "plans"
BOTH, APART, TRAINING = PLANS / "serve-by-hand.json", PLANS / "serve-apart.json", PLANS / "by-hand.json"
CONTRACT = {
    "requests_per_s",
    "output_tokens_per_s",
    "ttft_ms",
    "tpot_ms",
    "slo_attainment",
    "usd_per_hour",
    "usd_per_million_tokens",
    "violations",
}


def changed(path: Path, source: Path = BOTH, **changes: Any) -> Path:
    data = json.loads(source.read_text()) | changes
    data["cluster"]["path"] = str(PLANS / data["cluster"]["path"])
    path.write_text(json.dumps(data))
    return path


def document(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", [BOTH, APART], ids=lambda path: path.stem)
@pytest.mark.parametrize("command", ["evaluate", "simulate"])
def test_the_figures_of_the_contract(cli: Cli, path: Path, command: str) -> None:
    found = document(cli(command, path, "--json"))
    assert found.keys() >= CONTRACT
    for key in ("ttft_ms", "tpot_ms"):
        assert found[key].keys() == {"mean", "p50", "p90", "p99"}
        assert 0 < found[key]["p50"] <= found[key]["p90"] <= found[key]["p99"]
    assert 0 < found["slo_attainment"] <= 1
    assert found["violations"] == []
    hour = found["output_tokens_per_s"] * 3600
    assert found["usd_per_million_tokens"] == pytest.approx(found["usd_per_hour"] / hour * 1e6)


def test_equal_seeds_and_a_trace_at_a_rate(cli: Cli) -> None:
    words = ("simulate", BOTH, "--trace", "azure-2023-code", "--seconds", 300, "--rate", 3, "--json")
    first = cli(*words)
    assert first.stdout == cli(*words).stdout
    assert document(first)["offered_per_s"] == pytest.approx(3)
    drawn = [
        document(cli(*words, "--arrivals", "poisson", "--requests", 200, "--seed", seed))["e2e_ms"]["mean"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_trace_beside_the_plan(cli: Cli, tmp_path: Path) -> None:
    rows = "".join(f"{second},{100 + second},20\n" for second in range(50))
    (tmp_path / "mine.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    plan = changed(tmp_path / "plan.json", workload={"trace": "mine.csv", "slo": {"e2e_ms": 10_000}})
    found = document(cli("simulate", plan, "--json"))
    assert (found["requests"], found["slo_attainment"]) == (50, 1.0)
    assert document(cli("simulate", plan, "--isl", 10, "--osl", 5, "--rate", 9, "--json"))["requests"] == 1000


def test_limits_of_the_command_line(cli: Cli) -> None:
    def attained(*words: object) -> float:
        return float(document(cli("simulate", BOTH, *words, "--json"))["slo_attainment"])

    assert attained("--slo-e2e-ms", 1) == 0.0
    assert attained("--slo-scale", 1000) == attained()
    assert 0.0 < attained("--slo-scale", 0.7) < 1.0
    text = cli("simulate", BOTH, "--slo-scale", 3, "--slo-percentile", 90).stdout
    assert "SLO scale 3 × for 90%" in " ".join(text.split())


def test_one_requests_life(cli: Cli, tmp_path: Path) -> None:
    words = ("simulate", APART, "--request", 5, "--timeline", tmp_path / "life.json")
    text = cli(*words).stdout
    for what in ("Request 5:", "prefill of 700 tokens", "is sent there", "decode of"):
        assert what in text
    found = document(cli("simulate", APART, "--request", 5, "--json"))
    moments = found["moments"]
    happened = [moment["what"] for moment in moments if moment["what"] not in {"queued", "landed"}]
    assert happened[:3] == ["prefill", "transfer", "decode"]
    assert all(before["end_s"] <= after["start_s"] + 1e-9 for before, after in pairwise(moments))
    events = [e for e in json.loads((tmp_path / "life.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert [event["name"] for event in events] == [moment["what"] for moment in moments]
    assert events[0]["ts"] == pytest.approx(0.0, abs=1e-3)


def test_a_plan_that_does_not_fit_is_priced_and_says_so(cli: Cli, tmp_path: Path) -> None:
    one = [{"max_batch": 4, "stages": [{"layers": [0, 32], "devices": ["office-pc/0"]}]}]
    plan = changed(tmp_path / "plan.json", pipelines=one, routes=[])
    found = document(cli("evaluate", plan, "--json"))
    assert [violation["device"] for violation in found["violations"]] == ["office-pc/0"]
    assert found["output_tokens_per_s"] > 0
    assert found["ttft_ms"]["p99"] > 0
    assert "DOES NOT FIT: office-pc/0" in cli("evaluate", plan).stdout


def test_without_a_rate_it_is_what_could_be_served(cli: Cli, tmp_path: Path) -> None:
    plan = changed(tmp_path / "plan.json", workload={"isl": 300, "osl": 50})
    found = document(cli("evaluate", plan, "--json"))
    assert found["requests_per_s"] == found["capacity_requests_per_s"]
    played = document(cli("simulate", plan, "--json"))
    assert played["requests_per_s"] > 0.5 * found["capacity_requests_per_s"]


def test_the_other_cost_model(cli: Cli) -> None:
    found = document(cli("evaluate", BOTH, "--cost-model", "hexgen", "--json"))
    assert found["output_tokens_per_s"] > 0
    assert "llama-2-7b on home-office" in cli("evaluate", BOTH, "--cost-model", "hexgen").stdout


@pytest.mark.parametrize("plan", [BOTH, APART])
def test_an_explanation(cli: Cli, plan: Path) -> None:
    text = cli("explain", plan).stdout
    for heading in ("What limits it", "What one more GPU", "A prompt of the mean length", "A decode step", "KV room"):
        assert heading in text
    found = document(cli("explain", plan, "--json"))
    evaluated = document(cli("evaluate", plan, "--json"))
    assert found["capacity_per_s"] == pytest.approx(evaluated["capacity_requests_per_s"])
    assert {route["target"] for route in found["routes"]} <= {replica["name"] for replica in found["replicas"]}
    assert "no request's KV cache has room" in cli("explain", plan, "--memory-fraction", 0.05).stdout


WRONG = {
    "compare": (
        ("compare", TRAINING, BOTH),
        1,
        "by-hand.json is a training plan and serve-by-hand.json a serving plan",
    ),
    "run": (("run", BOTH), 1, "is a serving plan, a training plan is needed here"),
    "a cost model of the other kind": (("evaluate", BOTH, "--cost-model", "dtfm"), 1, "is a serving plan, for which"),
    "and the other way": (("evaluate", TRAINING, "--cost-model", "hexgen"), 1, "is a training plan, for which"),
    "a rate for a training plan": (("simulate", TRAINING, "--rate", 2), 2, "--rate is for serving plans"),
    "a request that is none": (("simulate", BOTH, "--request", 1000), 1, "there is no request 1000"),
    "a timeline of all": (("simulate", BOTH, "--timeline", "x.json"), 2, "add --request N"),
    "no such trace": (("simulate", BOTH, "--trace", "none.csv"), 1, "trace none.csv does not exist"),
    "a trace and lengths": (("simulate", BOTH, "--trace", "azure-2023-code", "--isl", 9), 1, "--trace has lengths"),
    "a window of nothing": (("simulate", BOTH, "--seconds", 9), 1, "--seconds is for a trace, and there is none"),
    "longer than the model's positions": (("simulate", BOTH, "--isl", 4000), 1, "are more than the 4,096 positions"),
    "too many requests": (("simulate", BOTH, "--requests", 10**9), 2, "--requests"),
    "a rate that is none": (("simulate", BOTH, "--rate", 1e-300), 1, "rate_per_s is 1e-300, expected 1e-06 to 1e+09"),
    "nothing left of a trace": (
        ("simulate", BOTH, "--trace", "azure-2023-code", "--max-input-tokens", 1),
        1,
        "azure-2023-code: no request is left",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_suit_is_said(cli: Cli, case: str) -> None:
    words, code, message = WRONG[case]
    assert message in " ".join(cli(*words, code=code).stderr.split())


def test_the_highest_rate_within_limits(cli: Cli) -> None:
    words = ("simulate", BOTH, "--requests", 300, "--slo-ttft-ms", 500, "--slo-tpot-ms", 40)
    found = document(cli(*words, "--find-rate", "--json"))
    rate = found["highest_rate_per_s"]
    assert found["slo_attainment"] >= 0.98
    assert document(cli(*words, "--rate", rate, "--json"))["slo_attainment"] == found["slo_attainment"]
    assert document(cli(*words, "--rate", 1.1 * rate, "--json"))["slo_attainment"] < 0.99
    assert "keeps its limits at no rate" in cli(*words, "--find-rate", "--slo-e2e-ms", 1, code=3).stderr


def test_a_trace_comes_at_its_own_rate(cli: Cli, tmp_path: Path) -> None:
    """Not at that of the plan's workload; times with an offset are what they are everywhere."""
    stamps = ("2023-11-16T18:00:00Z", "2023-11-16T20:00:10+02:00", "2023-11-16 18:00:20")
    rows = "".join(f"{stamp},100,10\n" for stamp in stamps)
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    found = document(cli("simulate", BOTH, "--trace", tmp_path / "t.csv", "--json"))
    assert found["offered_per_s"] == pytest.approx(0.1)


def test_a_class_of_requests(cli: Cli) -> None:
    words = ("simulate", BOTH, "--trace", "azure-2023-conv", "--class", "LPHD", "--max-input-tokens", 300)
    text = cli(*words, "--requests", 200, "--rate", 2, "--request", 0).stdout
    prompt, output = re.findall(r"Request 0: ([\d,]+) tokens in, ([\d,]+) out", text)[0]
    assert int(prompt) <= 300
    assert int(output.replace(",", "")) > 128


def test_the_slo_scale_is_shown(cli: Cli) -> None:
    found = document(cli("simulate", BOTH, "--slo-scale", 5, "--json"))
    assert 0 < found["slo_scale"]["p50"] <= found["slo_scale"]["p99"]
    assert "over alone (SLO scale)" in cli("simulate", BOTH, "--slo-scale", 5).stdout


def test_serving_plans_side_by_side(cli: Cli, tmp_path: Path) -> None:
    other = changed(tmp_path / "other.json", APART, workload={"isl": 300, "osl": 30, "rate_per_s": 3})
    text = cli("compare", BOTH, APART, other).stdout
    assert "1P + 2D" in text
    assert "the plans serve different workloads" in text
    assert max(map(len, text.splitlines())) <= 80
    found = document(cli("compare", BOTH, other, "--same-load", "--json"))
    assert found["notes"] == []
    alone = document(cli("evaluate", BOTH, "--json"))
    assert found["plans"][0]["predicted"] == alone
    assert found["plans"][1]["predicted"]["offered_per_s"] == alone["offered_per_s"]
