"""A serving plan for a person at a terminal of 80 columns: what is where, and how well it serves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

from hetsched.cluster import Cluster
from hetsched.cost.serving.plan_cost import arriving_shares
from hetsched.plan import ServingPipeline, ServingPlan
from hetsched.report.placement import gpus_used, names_regions, places, stage_place
from hetsched.report.serving_rates import limited_throughput, searched_rate
from hetsched.report.text import WIDTH, bullet, columns, joined_ranges, large, seconds
from hetsched.units import SECONDS_PER_MS
from hetsched.workload import ServingLoad, Slo

SHOWN_ROWS, SHOWN_ROUTES, SHOWN_VIOLATIONS, SHOWN_NOTES = 24, 12, 4, 6
LEAST_TEXT = 24
TIMES = {"ttft_ms": "first token (TTFT)", "tpot_ms": "each further (TPOT)", "e2e_ms": "whole request"}
LIMITS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "whole request", "scale": "SLO scale"}
FIGURES = ("mean", "p50", "p90", "p99")


def serving_table(
    plan: ServingPlan, cluster: Cluster, emphasise: Callable[[str], str] = str, rate: str | None = None
) -> str:
    """The plan in words and columns. `plan.predicted` must be filled; `emphasise` marks headings (bold, say).

    rate: of what kind its rate is; None: it is what the plan's search found.
    """
    predicted = plan.predicted
    parts = [
        _headline(plan, cluster, emphasise, rate),
        f"{emphasise('What is where')}\n{serving_placement(plan, cluster)}",
        f"{emphasise('Latency')}\n{latencies(predicted)}",
        f"{emphasise('Load')}\n{replica_loads(predicted)}" if predicted.get("replicas") else "",
        notes(predicted, emphasise),
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(plan: ServingPlan, cluster: Cluster, emphasise: Callable[[str], str], rate: str | None) -> str:
    predicted = plan.predicted
    most = rate is None and limited_throughput(plan)
    kind = searched_rate(plan) if rate is None else rate
    title = f"{plan.model.name} on {cluster.name}: {large(predicted['requests_per_s'])} requests/s"
    lines = [
        emphasise(f"{title} within the limits" if most else title),
        *([bullet(kind, "  ")] if kind else []),
        f"  {', '.join(figures(predicted))}",
        f"  {gpus_used(plan, cluster)}, {replicas(plan)}",
        bullet(load_line(replace(plan.workload, rate_per_s=None) if most else plan.workload), "  "),
    ]
    capacity = predicted.get("capacity_requests_per_s")
    if capacity is not None:
        lines.append(f"  in a steady state it could serve {large(capacity)} requests/s")
    if plan.workload.slo.limits:
        lines.append(bullet(slo_line(plan.workload.slo, predicted), "  "))
    violations = predicted.get("violations", ())
    lines += [emphasise(bullet(v["message"], "  DOES NOT FIT: ")) for v in violations[:SHOWN_VIOLATIONS]]
    if len(violations) > SHOWN_VIOLATIONS:
        lines.append(emphasise(f"  DOES NOT FIT: {len(violations) - SHOWN_VIOLATIONS} more GPUs"))
    return "\n".join(lines)


def figures(predicted: Mapping[str, Any]) -> list[str]:
    """Output tokens a second, and money where prices are known."""
    found = [f"{large(predicted['output_tokens_per_s'])} output tokens/s"]
    if predicted.get("usd_per_hour") is not None:
        found.append(f"${predicted['usd_per_hour']:.2f} an hour")
    if predicted.get("usd_per_million_tokens") is not None:
        found.append(f"${predicted['usd_per_million_tokens']:.4g} a million of them")
    return found


def replicas(plan: ServingPlan) -> str:
    """`2 prefill and 3 decode replicas`, `4 replicas`."""
    counts = {role: sum(p.role == role for p in plan.pipelines) for role in ("prefill", "decode", "both")}
    if not plan.disaggregated:
        return f"{counts['both']} replica{'s' * (counts['both'] > 1)}"
    words = [f"{count} {role if role != 'both' else 'co-located'}" for role, count in counts.items() if count]
    return f"{', '.join(words[:-1])} and {words[-1]} replicas"


def load_line(load: ServingLoad) -> str:
    """What is asked, in words."""
    rate = "as many requests as it can" if load.rate_per_s is None else f"{load.rate_per_s:g} requests/s"
    if load.trace is not None:
        return f"asked: {'requests' if load.rate_per_s is None else rate} of the trace {load.trace.trace}"
    spread = ", log-normal" if load.isl_sigma or load.osl_sigma else ""
    return f"asked: {rate} of {load.isl:g} tokens in and {load.osl:g} out{spread}"


def slo_line(slo: Slo, predicted: Mapping[str, Any]) -> str:
    """The limits, and how many requests are within all of them."""
    words = []
    for name, limit in slo.limits.items():
        value = f"{limit.value:g} ×" if name == "scale" else seconds(limit.value)
        words.append(f"{LIMITS[name]} {value} for {limit.percentile:g}%")
    attained = predicted.get("slo_attainment")
    found = "" if attained is None else f"; {attained:.1%} of requests are within all limits"
    return f"SLO: {', '.join(words)}{found}"


def serving_placement(plan: ServingPlan, cluster: Cluster) -> str:
    """Replicas in rows: what they do, their share of the requests, and their stages with the blocks of each."""
    regional, shares = names_regions(plan, cluster), arriving_shares(plan)
    alike: dict[tuple[Any, ...], list[ServingPipeline]] = {}
    for pipeline in plan.pipelines:
        stages = tuple((stage_place(cluster, stage, regional), stage.num_layers) for stage in pipeline.stages)
        alike.setdefault((pipeline.role, pipeline.max_batch, f"{shares[pipeline.name]:.1%}", stages), []).append(
            pipeline
        )
    rows = []
    for (role, max_batch, share, stages), pipelines in alike.items():
        text = " → ".join(f"{place}\xa0({blocks})" for place, blocks in stages)
        names = joined_ranges([pipeline.name for pipeline in pipelines])
        names = names if len(names) <= LEAST_TEXT else f"{len(pipelines)} replicas"
        rows.append([f"  {names}", role, share, str(max_batch), text])
    lines = _with_text(["  replica", "does", "share", "batch", "stages (blocks)"], rows[:SHOWN_ROWS])
    if len(rows) > SHOWN_ROWS:
        lines.append(f"  and {len(rows) - SHOWN_ROWS} more kinds of replicas, in the plan file")
    return "\n".join([*lines, *_routes(plan), "", places(plan, cluster, regional)])


def _routes(plan: ServingPlan) -> list[str]:
    routes = [route for route in plan.routes if route.source is not None and route.share > 0.0]
    if not routes:
        return []
    words = [f"{route.source}\xa0→\xa0{route.target}\xa0{route.share:.0%}" for route in routes[:SHOWN_ROUTES]]
    if len(routes) > SHOWN_ROUTES:
        words.append(f"and {len(routes) - SHOWN_ROUTES} more")
    return [bullet(", ".join(words), "  KV: ")]


def _with_text(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of which the last is text that is wrapped."""
    fixed = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads) - 1)]
    indent = sum(fixed) + 2 * len(fixed)
    lines = []
    for row in [heads, *rows]:
        start = "  ".join(
            cell.rjust(width) if k in (2, 3) else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, fixed, strict=False))
        )
        pieces = wrap(row[-1], max(LEAST_TEXT, WIDTH - indent), break_on_hyphens=False) or [""]
        lines.append(f"{start}  {pieces[0]}")
        lines += [" " * indent + piece for piece in pieces[1:]]
    return [line.replace("\xa0", " ").rstrip() for line in lines]


def latencies(predicted: Mapping[str, Any]) -> str:
    """Mean and percentiles."""
    rows = []
    for key, label in TIMES.items():
        found = predicted.get(key) or {}
        shown = [_time(found.get(figure)) for figure in FIGURES]
        rows.append([f"  {label}", *(text.rjust(9) for text in shown)])
    if predicted.get("slo_scale"):
        shown = ["-" if value is None else f"{value:.2f} ×" for value in predicted["slo_scale"].values()]
        rows.append(["  over alone (SLO scale)", *(text.rjust(9) for text in shown)])
    return columns(["", *(figure.rjust(9) for figure in FIGURES)], rows)


def _time(value_ms: float | None) -> str:
    return "-" if value_ms is None else seconds(value_ms * SECONDS_PER_MS)


def replica_loads(predicted: Mapping[str, Any]) -> str:
    """What each replica did in the simulation."""
    rows = []
    found = predicted["replicas"]
    for name, load in list(found.items())[:SHOWN_ROWS]:
        busy = load["busy"]
        rows.append(
            [
                f"  {name}",
                load["requests"],
                f"{max(busy):.0%}".rjust(4),
                load["peak_batch"],
                f"{load['kv_mean']:.0%}".rjust(4),
                f"{load['kv_peak']:.0%}".rjust(4),
                load["preemptions"],
            ]
        )
    table = columns(["  replica", "requests", "busy", "most at once", "KV mean", "KV peak", "preempted"], rows)
    if len(found) > SHOWN_ROWS:
        table += f"\n  and {len(found) - SHOWN_ROWS} more replicas, in the JSON"
    return table


def notes(predicted: Mapping[str, Any], emphasise: Callable[[str], str]) -> str:
    """What was assumed."""
    found = list(predicted.get("notes") or ())
    if not found:
        return ""
    lines = [bullet(note) for note in found[:SHOWN_NOTES]]
    if len(found) > SHOWN_NOTES:
        lines.append(f"  and {len(found) - SHOWN_NOTES} more, in the JSON under notes")
    return "\n".join([emphasise("Assumed"), *lines])
