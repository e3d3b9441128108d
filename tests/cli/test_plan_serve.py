"""`hetsched plan-serve`: from a cluster file to a plan that the other commands read, and its refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Cli = Callable[..., Result]

SMALL = """
name: small
nodes:
  - {name: a, region: x, gpu: A100-SXM-40GB, count: 2, usd_per_hour: 4.0}
  - {name: b, region: x, gpu: L4-24GB, count: 2, usd_per_hour: 1.4}
  - {name: c, region: y, gpu: T4-16GB, usd_per_hour: 0.5}
  - {name: d, region: y, gpu: T4-16GB, usd_per_hour: 0.5}
network:
  inside_region: {bandwidth_gbps: 10, latency_ms: 0.5}
  between_regions: [{a: x, b: y, bandwidth_gbps: 2, latency_ms: 8}]
"""
KINDS = ("colocated", "disaggregated", "mixed")
WORDS = ("--isl", 300, "--osl", 40, "--max-steps", 25)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def planned(cli: Cli, small: Path, *words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        cli("plan-serve", small, "--model", "llama-3.1-8b", *WORDS, *words, "--json").stdout
    )
    return document


def test_a_plan_keeps_its_limits_and_is_read_again(cli: Cli, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    words = (*WORDS, "--slo-ttft-ms", 1500, "--slo-tpot-ms", 90, "-o", out)
    shown = cli("plan-serve", small, "--model", "llama-3.1-8b", *words).stdout
    assert "What limits it" in shown
    assert max(map(len, shown.splitlines())) <= 100
    plan = json.loads(out.read_text(encoding="utf-8"))
    predicted = plan["predicted"]
    rate = plan["workload"]["rate_per_s"]
    assert predicted["requests_per_s"] == pytest.approx(rate, abs=0.0)
    assert predicted["output_tokens_per_s"] == pytest.approx(rate * 40)
    assert f"{rate:.3g} requests/s within the limits" in shown
    assert f"wins: {rate:.3g} requests/s" in shown
    assert predicted["slo_attainment"] >= 0.98  # both limits together; each holds for 99 %
    arriving = [route["share"] for route in plan["routes"] if route["source"] is None]
    assert sum(arriving) == pytest.approx(1.0)
    assert all(pipeline["max_batch"] >= 1 for pipeline in plan["pipelines"])
    assert plan["workload"]["rate_per_s"] >= predicted["baselines"]["uniform"]["requests_per_s"] * 0.98
    evaluated = json.loads(cli("evaluate", out, "--json").stdout)
    assert evaluated["violations"] == []
    for shown in (cli("evaluate", out).stdout, cli("simulate", out, "--requests", 400).stdout):
        text = " ".join(shown.split())
        assert f"with filling and draining; the plan states {rate:.3g} simulated, the highest within the limits" in text
    assert f"as the plan states {rate:.3g} {rate:.3g}" in " ".join(cli("compare", out, out).stdout.split())
    assert "plan states" not in cli("simulate", out, "--requests", 20, "--rate", 1).stdout
    again = json.loads(cli("simulate", out, "--json", "--requests", 400).stdout)
    assert again["slo_attainment"] > 0.9


def test_equal_seeds_give_equal_plans(cli: Cli, small: Path) -> None:
    first, second = (planned(cli, small, "--seed", 3, "--max-steps", 8) for _ in range(2))
    assert first["pipelines"] == second["pipelines"]
    assert first["routes"] == second["routes"]


def test_less_money_never_buys_more_and_the_budget_holds(cli: Cli, small: Path) -> None:
    rich = planned(cli, small)
    poor = planned(cli, small, "--budget-usd-per-hour", 2.0)
    assert poor["predicted"]["usd_per_hour"] <= 2.0 < rich["predicted"]["usd_per_hour"]
    assert poor["predicted"]["requests_per_s"] < rich["predicted"]["requests_per_s"]


def test_least_money_for_a_rate(cli: Cli, small: Path) -> None:
    """A rate that one L4 node keeps takes no A100; one that all but the A100s can not keep takes them."""
    words = ("--objective", "cost", "--slo-ttft-ms", 3000)
    little, much = (planned(cli, small, *words, "--rate", rate) for rate in (0.3, 25))
    assert little["predicted"]["usd_per_hour"] <= 1.4
    assert much["predicted"]["usd_per_hour"] >= 4.0
    assert little["predicted"]["slo_attainment"] >= 0.99


def test_most_requests_within_limits_at_a_rate(cli: Cli, small: Path) -> None:
    plan = planned(cli, small, "--objective", "attainment", "--rate", 8, "--slo-tpot-ms", 60)
    rival = plan["predicted"]["baselines"]["uniform"]
    assert plan["predicted"]["slo_attainment"] >= rival["slo_attainment"]


OFFERS = """
name: rented
offers:
  - {name: l4, region: z, gpu: L4-24GB, usd_per_hour: 0.7, available: 3}
  - {name: pair, region: z, gpu: T4-16GB, count: 2, usd_per_hour: 0.9, available: 2}
network:
  inside_region: {bandwidth_gbps: 10, latency_ms: 0.5}
"""
TO_OWN = """  between_regions:
    - {a: z, b: x, bandwidth_gbps: 1, latency_ms: 20}
    - {a: z, b: y, bandwidth_gbps: 1, latency_ms: 20}
"""


def test_offers_alone_are_rented_within_the_budget(cli: Cli, tmp_path: Path) -> None:
    """The plan names the offers as its cluster, and other commands read them."""
    offers, out = tmp_path / "offers.yaml", tmp_path / "plan.json"
    offers.write_text(OFFERS, encoding="utf-8")
    words = (
        "--offers",
        offers,
        "--model",
        "llama-3.1-8b",
        "--budget-usd-per-hour",
        2.3,
        "-o",
        out,
        *WORDS,
        "--mode",
        "colocated",
    )
    assert "GPUs of 7 on offer" in cli("plan-serve", *words).stdout
    plan = json.loads(out.read_text(encoding="utf-8"))
    assert plan["predicted"]["usd_per_hour"] <= 2.3
    assert plan["cluster"]["path"] == "offers.yaml"
    assert plan["predicted"]["requests_per_s"] >= plan["predicted"]["baselines"]["uniform"]["requests_per_s"]
    assert json.loads(cli("evaluate", out, "--json").stdout)["violations"] == []


def test_what_is_hinted_helps(cli: Cli, tmp_path: Path) -> None:
    """Where offers keep limits at no price, the objective that is hinted plans; without a rate none is hinted."""
    offers = tmp_path / "offers.yaml"
    offers.write_text(OFFERS, encoding="utf-8")
    words = ("--offers", offers, "--model", "llama-3.1-8b", *WORDS, "--mode", "colocated", "--slo-ttft-ms", 2000)
    missed = cli("plan-serve", *words, "--rate", 5000, "--objective", "cost", code=3).stderr
    assert "a lower --rate" in missed
    assert "--objective attainment with --budget-usd-per-hour" in missed
    cli("plan-serve", *words, "--rate", 5000, "--objective", "attainment", "--budget-usd-per-hour", 2.3)
    circle = cli("plan-serve", *words, "--rate", 5000, "--objective", "attainment", code=1).stderr
    assert "hint: --budget-usd-per-hour USD" in circle
    hardly = cli("plan-serve", *words, "--slo-ttft-ms", 2, "--budget-usd-per-hour", 2.3, code=3).stderr
    assert "hint: larger limits or faster GPUs" in hardly


def test_offers_join_what_one_has(cli: Cli, small: Path, tmp_path: Path) -> None:
    """Two paid L4s take the rate with one more that is rented, and no dearer GPU is touched."""
    offers, out = tmp_path / "offers.yaml", tmp_path / "plan.json"
    offers.write_text(OFFERS + TO_OWN, encoding="utf-8")
    small.write_text(
        small.read_text(encoding="utf-8").replace("usd_per_hour: 1.4", "usd_per_hour: 0"), encoding="utf-8"
    )
    words = ("--model", "llama-3.1-8b", "--offers", offers, "--mode", "colocated", *WORDS)
    cheap = json.loads(
        cli(
            "plan-serve",
            small,
            *words,
            *("--objective", "cost", "--rate", 0.5, "--slo-ttft-ms", 3000),
            *("-o", out, "--json"),
        ).stdout
    )
    assert cheap["predicted"]["usd_per_hour"] == 0
    assert cheap["cluster"]["offers"] == "offers.yaml"
    assert json.loads(cli("evaluate", out, "--json").stdout)["usd_per_hour"] == 0
    most = json.loads(cli("plan-serve", small, *words, "--budget-usd-per-hour", 0.75, "--json").stdout)
    nodes = {device["node"] for device in most["devices"].values()}
    assert "b" in nodes
    assert nodes - {"b"}
    assert not {"a", "c"} <= nodes
    assert most["predicted"]["usd_per_hour"] <= 0.75


def test_disaggregated_plans_pass_kv_on_and_auto_is_at_least_as_good(cli: Cli, small: Path) -> None:
    """Prefill pipelines hand all of their requests on; auto simulates both modes alike and says why one wins."""
    apart = planned(cli, small, "--mode", "disaggregated", "--max-steps", 60)
    roles = {pipeline["name"]: pipeline["role"] for pipeline in apart["pipelines"]}
    assert set(roles.values()) == {"prefill", "decode"}
    for name, role in roles.items():
        if role == "prefill":
            assert sum(r["share"] for r in apart["routes"] if r["source"] == name) == pytest.approx(1.0)
    together = planned(cli, small, "--mode", "colocated")
    assert {pipeline["role"] for pipeline in together["pipelines"]} == {"both"}
    auto = planned(cli, small)
    rates = {
        name: found["requests_per_s"] for name, found in auto["predicted"]["modes"].items() if name in KINDS and found
    }
    assert auto["predicted"]["requests_per_s"] == pytest.approx(max(rates.values()))
    assert {"colocated", "disaggregated"} <= rates.keys()
    assert any("wins" in line for line in auto["predicted"]["modes"]["why"])
    for name in ("uniform", "distserve"):
        assert auto["predicted"]["requests_per_s"] >= auto["predicted"]["baselines"][name]["requests_per_s"]


def test_one_long_chain(cli: Cli, small: Path) -> None:
    plan = planned(cli, small, "--solver", "pipeline-dp")
    assert plan["provenance"]["solver"] == "pipeline-dp"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--model", "llama-2-70b", "--memory-fraction", "0.5"), 3, "no replica of llama-2-70b fits small"),
        (("--model", "llama-2-70b", "--mode", "disaggregated"), 3, "no prefill replica besides a decode replica"),
        (("--model", "llama-3.1-8b", "--slo-ttft-ms", "2"), 3, "hint: larger limits or faster GPUs"),
        (("--model", "llama-3.1-8b", "--slo-percentile", "90"), 1, "--slo-percentile is of limits"),
        (("--model", "llama-3.1-8b", "--rate", "1e6", "--objective", "cost"), 3, "does not keep up with the requests"),
        (("--model", "llama-3.1-8b", "--objective", "cost"), 1, "needs a rate"),
        (("--model", "llama-3.1-8b", "--objective", "attainment", "--rate", "1"), 1, "needs an SLO"),
        (("--model", "llama-3.1-8b", "--mode", "disaggregated", "--solver", "genetic"), 1, "no disaggregated plans"),
        (("--model", "llama-3.1-8b", "--mode", "colocated", "--solver", "maxflow"), 1, "no colocated plans"),
        (("--model", "llama-2-13b", "--budget-usd-per-hour", "1"), 3, "the cheapest that do cost $1.40"),
        (("--model", "llama-3.1-8b", "--offers", "none.yaml"), 1, "how much may be spent"),
        (("--model", "llama-3.1-8b", "--solver", "magic"), 2, "genetic, pipeline-dp, maxflow, uniform"),
    ],
)
def test_refusals(cli: Cli, small: Path, words: tuple[str, ...], code: int, message: str) -> None:
    assert message in cli("plan-serve", small, *words, *WORDS, code=code).stderr
