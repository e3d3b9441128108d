"""What limits a serving plan that was searched for, and what it gains over the baseline."""

from collections.abc import Callable, Mapping
from typing import Any

from hetsched.plan import ServingPlan
from hetsched.report.text import bullet, large

BASELINES = {
    "uniform": "equal replicas, the best of all shapes",
    "distserve": "equal prefill and equal decode replicas, the best pair of shapes",
}


def serving_gain(plan: ServingPlan, emphasise: Callable[[str], str] = str) -> str:
    """Lines for a terminal of 80 columns; `plan.predicted` must hold `limited_by` and `baselines`."""
    predicted = plan.predicted
    lines = ["", emphasise("What limits it"), bullet(predicted["limited_by"], "  ")]
    why = predicted.get("modes", {}).get("why", ())
    if len(why) > 1:
        lines += ["", emphasise("Why this mode"), *(bullet(line, "  ") for line in why)]
    lines += ["", emphasise("Against")]
    for name, rival in predicted["baselines"].items():
        lines.append(bullet(f"{BASELINES[name]}: none fits" if rival is None else _against(plan, name, rival), "  "))
    return "\n".join(lines)


def _against(plan: ServingPlan, baseline: str, rival: Mapping[str, Any]) -> str:
    predicted, objective = plan.predicted, plan.provenance.get("objective")
    name = f"{BASELINES[baseline]} ({rival['replicas']} on {rival['gpus']} GPUs)"
    if objective == "attainment":
        return f"{name}: {rival['slo_attainment']:.1%} within the limits, this plan {predicted['slo_attainment']:.1%}"
    if not rival["keeps_slo"]:
        return f"{name}: they do not keep the limits"
    if objective == "cost":
        return f"{name}: ${rival['usd_per_hour']:.2f} an hour, this plan ${predicted['usd_per_hour']:.2f}"
    gain = predicted["requests_per_s"] / rival["requests_per_s"] if rival["requests_per_s"] else float("inf")
    return f"{name}: {large(rival['requests_per_s'])} requests/s; this plan does {gain:.2f} times as many"
