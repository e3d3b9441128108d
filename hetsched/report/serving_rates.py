"""Which of a serving plan's rates a figure is, in words: what its search found, a steady state's, or a run's."""

from collections.abc import Mapping
from typing import Any

from hetsched.plan import ServingPlan
from hetsched.report.text import large

STEADY = "by the cost model's steady state"
PLAYED = "served from the first arrival to the last token, with filling and draining"


def stated_per_s(plan: ServingPlan) -> float | None:
    """What the plan's search found: requests a second; None where no search made it."""
    if "objective" not in plan.provenance:
        return None
    rate = plan.workload.rate_per_s if limited_throughput(plan) else plan.predicted.get("requests_per_s")
    return float(rate) if isinstance(rate, int | float) else None


def limited_throughput(plan: ServingPlan) -> bool:
    """Whether its search looked for the highest rate within limits, which its workload then has."""
    return plan.provenance.get("objective") == "throughput" and bool(plan.workload.slo.limits)


def what_is_stated(plan: ServingPlan) -> str:
    """What kind of rate `stated_per_s` is."""
    if limited_throughput(plan):
        return "the highest within the limits"
    return "while it is full" if plan.provenance.get("objective") == "throughput" else "served at the rate asked for"


def searched_rate(plan: ServingPlan) -> str:
    """Of what kind the rate of a search for something else is; empty where the rate is what it looked for."""
    return "" if plan.provenance.get("objective", "throughput") == "throughput" else PLAYED


def evaluated_rate(plan: ServingPlan, predicted: Mapping[str, Any]) -> str:
    """Of what kind the rate of an evaluation is, and what the plan states. plan: as it was read."""
    return _beside(plan, evaluated_kind(plan, predicted))


def evaluated_kind(plan: ServingPlan, predicted: Mapping[str, Any]) -> str:
    """Where a rate is asked for a run's, else the steady state's."""
    asked = plan.workload.rate_per_s is not None or plan.workload.trace is not None
    return PLAYED if asked and "offered_per_s" in predicted else STEADY


def played_rate(plan: ServingPlan, load_changed: bool) -> str:
    """The same of a simulation; of another load the plan states nothing."""
    return PLAYED if load_changed else _beside(plan, PLAYED)


def _beside(plan: ServingPlan, kind: str) -> str:
    stated = stated_per_s(plan)
    return kind if stated is None else f"{kind}; the plan states {large(stated)} simulated, {what_is_stated(plan)}"
