"""Serving plans side by side, for a person at a terminal of 80 columns or for a script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hetsched.cluster import Cluster
from hetsched.plan import ServingPlan
from hetsched.report.comparison import side_by_side, unlike
from hetsched.report.serving_rates import evaluated_kind, what_is_stated
from hetsched.report.serving_table import load_line
from hetsched.report.text import cut, large, seconds
from hetsched.units import SECONDS_PER_MS

LONGEST_COLUMN, LONGEST_OF_TWO = 18, 26
EQUAL = 5e-3
SHOWN = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("whole request", "e2e_ms"))


@dataclass(frozen=True)
class Served:
    """A plan with its `predicted` filled, on its cluster; name: what it is called in the table; path: its file.

    stated_per_s: what its search found for the load that is played; None where it states nothing of that.
    """

    name: str
    path: str
    plan: ServingPlan
    cluster: Cluster
    stated_per_s: float | None = None


def serving_comparison_table(several: Sequence[Served], emphasise: Callable[[str], str] = str) -> str:
    """A column for each plan, and what makes them answers to different questions."""
    longest = LONGEST_COLUMN if len(several) > 2 else LONGEST_OF_TWO

    def row(name: str, cell: Callable[[Served], str]) -> tuple[str, list[str]]:
        return name, [cut(cell(one), longest) for one in several]

    def figure(key: str, form: str) -> Callable[[Served], str]:
        return lambda one: "" if one.plan.predicted[key] is None else format(one.plan.predicted[key], form)

    first = several[0].plan.predicted["output_tokens_per_s"]
    rows = [
        row("", lambda one: one.name),
        row("model", lambda one: one.plan.model.name),
        row("cluster", lambda one: one.cluster.name),
        row("requests/s", lambda one: large(one.plan.predicted["requests_per_s"])),
        *([row("as the plan states", _stated)] if any(one.stated_per_s is not None for one in several) else []),
        row("output tokens/s", lambda one: large(one.plan.predicted["output_tokens_per_s"])),
        row("against the first", lambda one: "" if one is several[0] else _against(one, first)),
        row("could serve", lambda one: f"{large(one.plan.predicted['capacity_requests_per_s'])} a second"),
    ]
    for label, key in SHOWN:
        for percentile in ("p50", "p99"):
            rows.append((f"{label} {percentile}", [_time(one, key, percentile) for one in several]))
    rows += [
        row("within all limits", _attained),
        row("$ an hour", figure("usd_per_hour", ".2f")),
        row("$ a million tokens", figure("usd_per_million_tokens", ".4g")),
        row("GPUs used", lambda one: f"{_used(one)} of {len(one.cluster.devices)}"),
        row("replicas", _replicas),
        row("stages", lambda one: _range([len(pipeline.stages) for pipeline in one.plan.pipelines])),
        row("tensor parallel", lambda one: _range([stage.tensor_parallel for _, _, stage in one.plan.stages])),
        row("KV peak", lambda one: f"{max(load['kv_peak'] for load in one.plan.predicted['replicas'].values()):.0%}"),
        row("preempted", lambda one: f"{one.plan.predicted['preemptions']:,}"),
        row("rejected", lambda one: f"{one.plan.predicted['rejected']:,}"),
        row("fits", _fits),
        row("solver", lambda one: str(one.plan.provenance.get("solver", ""))),
    ]
    return side_by_side(rows, [*differences(several), *_kinds_of_rates(several)], emphasise)


def serving_comparison_json(several: Sequence[Served]) -> dict[str, Any]:
    """The same as one document."""
    return {
        "plans": [
            {
                "name": one.name,
                "path": one.path,
                "model": one.plan.model.name,
                "cluster": one.cluster.name,
                "predicted": dict(one.plan.predicted),
                "gpus_used": _used(one),
                "gpus": len(one.cluster.devices),
                "solver": one.plan.provenance.get("solver"),
            }
            for one in several
        ],
        "notes": differences(several),
    }


def differences(several: Sequence[Served]) -> list[str]:
    """What makes the plans answers to different questions."""
    found = unlike(
        ("for different models", [one.plan.model.name for one in several]),
        ("for different clusters", [one.cluster.name for one in several]),
    )
    if len({one.plan.workload for one in several}) > 1:
        loads = "; ".join(dict.fromkeys(load_line(one.plan.workload) for one in several))
        found.append(f"the plans serve different workloads ({loads}): --same-load plays that of the first on all")
    return found


def _kinds_of_rates(several: Sequence[Served]) -> list[str]:
    """Where plans state rates: what kinds these and the evaluated ones are."""
    stated = [one for one in several if one.stated_per_s is not None]
    if not stated:
        return []
    kinds = dict.fromkeys(evaluated_kind(one.plan, one.plan.predicted) for one in several)
    words = dict.fromkeys(what_is_stated(one.plan) for one in stated)
    return [f"requests/s are {'; or '.join(kinds)}; as plans state: simulated, {' or '.join(words)}"]


def _stated(one: Served) -> str:
    return "" if one.stated_per_s is None else large(one.stated_per_s)


def _against(one: Served, first: float) -> str:
    """By output tokens a second."""
    ratio = one.plan.predicted["output_tokens_per_s"] / first if first else 0.0
    return "equal" if abs(ratio - 1) < EQUAL else f"{ratio:.2f}× the tokens/s"


def _time(one: Served, key: str, percentile: str) -> str:
    value = one.plan.predicted[key][percentile]
    return "-" if value is None else seconds(value * SECONDS_PER_MS)


def _attained(one: Served) -> str:
    return f"{one.plan.predicted['slo_attainment']:.1%}" if one.plan.workload.slo.limits else ""


def _used(one: Served) -> int:
    return sum(len(pipeline.devices) for pipeline in one.plan.pipelines)


def _replicas(one: Served) -> str:
    counts = {role: sum(p.role == role for p in one.plan.pipelines) for role in ("prefill", "decode", "both")}
    if not one.plan.disaggregated:
        return str(counts["both"])
    apart = f"{counts['prefill']}P + {counts['decode']}D"
    return apart + (f" + {counts['both']} both" if counts["both"] else "")


def _fits(one: Served) -> str:
    violations = one.plan.predicted["violations"]
    return f"no: {len(violations)} GPUs" if violations else "yes"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
