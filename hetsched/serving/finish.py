"""From a search's result to the serving plan that is written: its figures, the baseline, and where it comes from."""

from dataclasses import replace
from math import isfinite
from typing import Any

from hetsched import __version__
from hetsched.cost.serving.plan_cost import price_serving
from hetsched.cost.serving.reference import alone
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.cost.serving.steady import Traffic
from hetsched.plan import ClusterReference, ServingPlan
from hetsched.serving.choice import compared
from hetsched.serving.judge import Judge, Verdict
from hetsched.serving.nearest import limited_by
from hetsched.serving.search import ServingResult
from hetsched.serving_problem import ServingProblem
from hetsched.simulate.serving.prediction import prediction
from hetsched.units import SECONDS_PER_HOUR, TOKENS_PER_MILLION


def finished_serving_plan(
    problem: ServingProblem,
    result: ServingResult,
    reference: ReplicaTimes | None,
    memory_fraction: float,
    cluster_reference: ClusterReference,
) -> ServingPlan:
    """The best plan with everything that stands in a plan file; its workload's rate is the one it was found for."""
    best, cluster = result.best, problem.cluster
    load = problem.load
    if problem.objective == "throughput" and load.slo.limits:
        load = replace(load, rate_per_s=best.rate_per_s)
    plan = replace(best.draft.plan, workload=load)
    cost = price_serving(cluster, plan, memory_fraction, Traffic.of_requests(problem.requests))
    predicted = prediction(cluster, cost, best.run, reference)
    if problem.objective == "throughput":
        predicted |= _lasting(best.rate_per_s, problem.requests.mean_output_tokens, best.usd_per_hour)
    judge = Judge(problem, reference, seed=result.seed)
    predicted["limited_by"] = limited_by(judge, best)
    predicted["baselines"] = {
        name: None if verdict is None else _baseline(judge, verdict) for name, verdict in result.baselines.items()
    }
    predicted["modes"] = compared(judge, result.modes, memory_fraction)
    if reference is not None:
        mean = (problem.requests.mean_input_tokens, problem.requests.mean_output_tokens)
        predicted["reference_e2e_ms"] = float(alone(reference, *mean)[1]) * 1e3
    return replace(
        plan,
        cluster=cluster_reference,
        devices=cluster.device_facts(name for pipeline in plan.pipelines for name in pipeline.devices),
        predicted=_finite(predicted),
        provenance={
            "solver": result.solver,
            "seed": result.seed,
            "cost_model": "roofline",
            "memory_fraction": memory_fraction,
            "objective": problem.objective,
            "mode": problem.mode,
            "wall_s": result.seconds,
            "candidates": result.steps,
            "version": __version__,
            **({} if problem.usd_per_hour is None else {"budget_usd_per_hour": problem.usd_per_hour}),
        },
    )


def _lasting(rate_per_s: float, output_tokens: float, usd_per_hour: float | None) -> dict[str, float | None]:
    """Figures of a rate that goes on, without a run's filling and draining."""
    tokens_per_s = rate_per_s * output_tokens
    usd = None
    if usd_per_hour is not None and tokens_per_s:
        usd = usd_per_hour / SECONDS_PER_HOUR / tokens_per_s * TOKENS_PER_MILLION
    return {"requests_per_s": rate_per_s, "output_tokens_per_s": tokens_per_s, "usd_per_million_tokens": usd}


def _baseline(judge: Judge, verdict: Verdict) -> dict[str, Any]:
    """What the baseline reaches, by the same objective."""
    slo = judge.problem.load.slo
    return {
        "requests_per_s": verdict.rate_per_s,
        "output_tokens_per_s": verdict.rate_per_s * judge.problem.requests.mean_output_tokens,
        "slo_attainment": verdict.run.attainment(slo, judge.reference),
        "usd_per_hour": verdict.usd_per_hour,
        "keeps_slo": verdict.keeps,
        "replicas": len(verdict.draft.replicas),
        "gpus": sum(len(pipeline.devices) for pipeline in verdict.draft.plan.pipelines),
    }


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
