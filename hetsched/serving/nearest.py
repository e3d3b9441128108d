"""Why no plan serves, and what comes nearest; and what limits one that does."""

from dataclasses import replace
from math import inf

import numpy as np

from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.errors import InfeasibleError
from hetsched.serving.judge import Judge, Verdict
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.workshop import Workshop
from hetsched.units import BYTES_PER_GIB, duration
from hetsched.workload import Slo

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "a whole request", "scale": "the SLO scale"}
MORE = 1.15  # times the rate: what breaks first there is what limits


def nothing_fits(workshop: Workshop) -> InfeasibleError:
    """The model does not fit all GPUs together, or what the budget pays for."""
    problem, cluster = workshop.problem, workshop.problem.cluster
    usable = sum(device.gpu.memory_bytes for device in cluster.devices) * workshop.memory_fraction
    needed = problem.model.parameters * problem.precision.weight_bytes
    apart = problem.mode == "disaggregated"
    message = (
        f"no {'prefill replica besides a decode replica' if apart else 'replica'} of {problem.model.name} fits "
        f"{cluster.name}: its weights take {needed / BYTES_PER_GIB:.0f} GiB{' in each' if apart else ''}, "
        f"{usable / BYTES_PER_GIB:.0f} GiB are usable on its {len(cluster.devices)} GPUs"
    )
    smaller = [
        f"--weight-bits {bits}"
        for bits in (8, 4)
        if not apart
        and bits < problem.options.weight_bits
        and _fits(workshop, replace(problem, options=replace(problem.options, weight_bits=bits)))
    ]
    hints = [f"with {smaller[0]} it fits"] if smaller else ["more GPUs, or larger ones"]
    if apart:
        hints.append("or --mode colocated")
    if problem.usd_per_hour is not None:
        hints.append(f"or a budget of more than ${problem.usd_per_hour:g} an hour")
    return InfeasibleError(message, hint=", ".join(hints))


def _fits(workshop: Workshop, problem: ServingProblem) -> bool:
    other = Workshop(problem, workshop.memory_fraction, None)
    return other.replica(frozenset(range(len(problem.cluster.devices)))) is not None


def slo_missed(problem: ServingProblem, nearest: Verdict, reference: ReplicaTimes | None) -> InfeasibleError:
    """Every plan misses the SLO: what the nearest one keeps."""
    missed = []
    for name, limit in problem.load.slo.limits.items():
        reached = nearest.run.reached(name, limit.percentile, reference)
        if reached == inf:
            missed.append("requests are rejected, as they have no room in a KV cache")
        elif not reached <= limit.value:
            missed.append(
                f"{NAMES[name]} is {_shown(name, reached)} at p{limit.percentile:g}, not {_shown(name, limit.value)}"
            )
    at = f"at {nearest.rate_per_s:g} requests/s" if nearest.rate_per_s else "even when hardly anything is asked"
    usd = "" if problem.usd_per_hour is None else f", for at most ${problem.usd_per_hour:g} an hour"
    what = "; ".join(dict.fromkeys(missed)) or "it does not keep up with the requests"
    keeps = "keeps the SLO" if problem.load.slo.limits else "keeps up"
    return InfeasibleError(
        f"no plan of {problem.model.name} on {problem.cluster.name} {keeps} {at}{usd}: in the nearest, {what}",
        hint=_ways_out(problem),
    )


def _ways_out(problem: ServingProblem) -> str:
    """What is worth trying where no plan keeps what is asked."""
    if problem.load.rate_per_s is None:  # hardly anything is asked: no other rate or number of GPUs helps
        return "larger limits or faster GPUs"
    found = ["larger limits"] if problem.load.slo.limits else []
    found += ["a lower --rate", "more or faster GPUs"]
    if problem.usd_per_hour is not None:
        found.append("a larger --budget-usd-per-hour")
    if problem.load.slo.limits:
        budget = " with --budget-usd-per-hour" if problem.usd_per_hour is None else ""  # offers are not rented without
        found.append(f"--objective attainment{budget} for the best there is")
    return f"{', '.join(found[:-1])}, or {found[-1]}"


def limited_by(judge: Judge, best: Verdict) -> str:
    """What keeps a plan from doing more: the limit that breaks first beyond, and the fullest replica."""
    slo, problem = judge.problem.load.slo, judge.problem
    beyond = (
        best.run
        if problem.objective != "throughput" or not slo.limits
        else judge.play(best.draft, MORE * best.rate_per_s)
    )
    shares = {name: beyond.attainment(Slo(**{name: limit}), judge.reference) for name, limit in slo.limits.items()}
    words = ""
    if shares and not judge.keeps_up(best.draft, beyond.requests.rate_per_s):
        words = f"it does {judge.most_per_s(best.draft):.3g} requests/s at most; "
    elif shares:
        worst = min(shares, key=lambda name: shares[name] - slo.limits[name].percentile / 100)
        rate = f" at {beyond.requests.rate_per_s:.3g} requests/s" if beyond is not best.run else ""
        words = f"{NAMES[worst]}: {shares[worst]:.1%} within its limit{rate}; "
    fullest = max(beyond.loads, key=lambda load: max(load.busy))
    stage = int(np.argmax(fullest.busy))
    pipeline = next(p for p in best.draft.plan.pipelines if p.name == fullest.name)
    device = problem.cluster.device(pipeline.stages[stage].devices[0])
    held = fullest.kv_peak_tokens / max(1, fullest.kv_capacity_tokens)
    return (
        f"{words}the busiest stage, {len(pipeline.stages[stage].devices)} × {device.gpu.kind} on {device.node} in "
        f"{fullest.name}, works {max(fullest.busy):.0%} of the time, and its KV cache is {held:.0%} full at most"
    )


def _shown(name: str, value: float) -> str:
    return f"{value:.3g}" if name == "scale" else duration(value)
