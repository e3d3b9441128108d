"""Why a serving mode wins: the best plan of each kind, under the same simulator, and what holds the others back."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from hetsched.cost.serving.flow import serving_flow
from hetsched.cost.serving.steady import Traffic
from hetsched.plan import ServingPlan
from hetsched.serving.judge import Judge, Verdict
from hetsched.units import SECONDS_PER_MS, duration

KINDS = ("colocated", "disaggregated", "mixed")
MISSING = {
    "colocated": "none was found that serves",
    "disaggregated": "none was found: the weights must fit twice, once for each phase",
    "mixed": "none was found",
}


def mode_of(plan: ServingPlan) -> str:
    """Of `KINDS`: replicas do both phases, each does one, or some do both."""
    roles = {pipeline.role for pipeline in plan.pipelines}
    return "colocated" if roles == {"both"} else "mixed" if "both" in roles else "disaggregated"


def compared(judge: Judge, modes: Mapping[str, Verdict], memory_fraction: float) -> dict[str, Any]:
    """{kind: figures of its best plan, or None}, and `why`: sentences on the winner and what limits the others."""
    best = max(modes.values(), key=lambda verdict: verdict.value)
    found: dict[str, Any] = dict.fromkeys(KINDS)
    for kind, verdict in modes.items():
        found[kind] = _figures(judge, verdict)
    return {**found, "why": _why(judge, modes, best, memory_fraction)}


def _figures(judge: Judge, verdict: Verdict) -> dict[str, Any]:
    run, slo = verdict.run, judge.problem.load.slo
    return {
        "requests_per_s": verdict.rate_per_s,
        "slo_attainment": run.attainment(slo, judge.reference),
        "keeps_slo": verdict.keeps,
        "usd_per_hour": verdict.usd_per_hour,
        "tpot_ms": _mean_ms(run.tpot_s),
        "ttft_ms": _mean_ms(run.ttft_s),
        "replicas": dict(Counter(pipeline.role for pipeline in verdict.draft.plan.pipelines)),
    }


def _why(judge: Judge, modes: Mapping[str, Verdict], best: Verdict, memory_fraction: float) -> list[str]:
    problem = judge.problem
    winner = mode_of(best.draft.plan)
    lines = [f"{winner} wins: {_worth(judge, best)}; {_division(judge, best)}"]
    for kind in KINDS:
        if kind == winner:
            continue
        other = modes.get(kind)
        if other is None:
            if problem.mode == "auto" and kind != "mixed":
                lines.append(f"{kind}: {MISSING[kind]}")
            continue
        lines.append(f"{kind}: {_worth(judge, other)}; {_limit(judge, other, best, memory_fraction)}")
    return lines


def _worth(judge: Judge, verdict: Verdict) -> str:
    """What the objective counts."""
    problem = judge.problem
    if problem.objective == "attainment":
        return f"{verdict.run.attainment(problem.load.slo, judge.reference):.1%} within the limits"
    if not verdict.keeps:
        return "it does not keep the limits"
    if problem.objective == "cost" and verdict.usd_per_hour is not None:
        return f"${verdict.usd_per_hour:.2f} an hour"
    return f"{verdict.rate_per_s:.3g} requests/s"


def _division(judge: Judge, verdict: Verdict) -> str:
    """Which GPUs do what."""
    kinds: dict[str, Counter[str]] = {}
    for pipeline in verdict.draft.plan.pipelines:
        counted = kinds.setdefault(pipeline.role, Counter())
        counted.update(judge.problem.cluster.device(name).gpu.kind for name in pipeline.devices)
    what = {"prefill": "prefill on", "decode": "decode on", "both": "both phases on"}
    words = [
        f"{what[role]} {', '.join(f'{n} {kind}' for kind, n in kinds[role].most_common())}"
        for role in what
        if role in kinds
    ]
    return "; ".join(words)


def _limit(judge: Judge, verdict: Verdict, best: Verdict, memory_fraction: float) -> str:
    """What holds a plan back that did not win."""
    problem, plan = judge.problem, verdict.draft.plan
    if not plan.disaggregated:
        mine, other = (duration(_mean_ms(v.run.tpot_s) * SECONDS_PER_MS) for v in (verdict, best))
        return f"prompts and decode steps take turns on its GPUs: a token takes {mine}, in the winner {other}"
    flow = serving_flow(problem.cluster, plan, memory_fraction, Traffic.of_requests(problem.requests))
    load = {load.name: max(load.busy) for load in verdict.run.loads}
    busy = {
        role: float(np.mean([load[p.name] for p in plan.pipelines if p.role == role])) for role in ("prefill", "decode")
    }
    full = f", full are {', '.join(flow.full[:4])}" if flow.full else ""
    kv_s = max((edge.kv_s for edge in flow.edges if edge.flow_per_s > 0.0), default=0.0)
    return (
        f"its prefill replicas work {busy['prefill']:.0%} of the time, its decode replicas {busy['decode']:.0%}{full}; "
        f"a request's KV is {duration(kv_s)} on its way at most"
    )


def _mean_ms(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) / SECONDS_PER_MS if known.size else float("nan")
