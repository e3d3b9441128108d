"""`hetsched evaluate`: price any plan."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hetsched.cli.options import (
    OneOf,
    any_cost_model_names,
    cluster_option,
    memory_fraction_option,
    output_options,
    plan_argument,
)

SAME = 1e-6  # times as far apart as rounding brings two prices of one plan
ASKED = "objective", "budget_usd_per_hour", "fixed"  # of a plan's search: what its bound is on


@click.command("evaluate", short_help="Price any plan, also one written by hand.")
@plan_argument
@cluster_option("Price it")
@click.option("--cost-model", type=OneOf(any_cost_model_names), help="What prices.  [default: as the plan was made]")
@memory_fraction_option()
@output_options
def evaluate(
    plan_path: Path,
    cluster_path: Path | None,
    cost_model: str | None,
    memory_fraction: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Price PLAN, a plan file of hetsched or one written by hand.

    Of a training plan it prints how long an iteration takes and why, and how full the GPUs are; of a serving plan what
    it can serve in a steady state, and the latencies of a short simulation of its workload. A plan that does not fit is
    priced too, and said not to fit; that is no failure. Of one that fits, the roofline also says what no plan can beat:
    as the plan's search stated it, or worked out for the whole cluster. With --json it prints the plan's `predicted`
    object anew.

    \b
    Examples:
      hetsched evaluate plan.json
      hetsched evaluate by-hand.json --cluster home.yaml --json
    """
    from dataclasses import replace

    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cost import COST_MODELS
    from hetsched.finish import bound_for, prediction, simulated_s
    from hetsched.plan import ServingPlan
    from hetsched.readers import read_any_plan
    from hetsched.report.training_table import training_table

    plan = read_any_plan(plan_path)
    name, share = pricing_of(plan, plan_path, cost_model, memory_fraction)
    cluster = cluster_of(plan, plan_path, cluster_path)
    if isinstance(plan, ServingPlan):
        from hetsched.cli.serving import evaluate_serving

        evaluate_serving(cluster, plan, plan_path.parent, name, share, as_json, quiet)
        return
    models = {other: make(share) for other, make in COST_MODELS.items()}
    model = models.pop(name)
    cost = model.price(cluster, plan)
    predicted = prediction(cluster, plan, cost, models) | simulated_s(cluster, plan, name)
    as_made = cluster_path is None and (cost_model, memory_fraction) == (None, None)
    stated = stated_bound(plan.predicted, cost.iteration_s) if as_made else {}
    predicted |= stated or bound_for(cluster, plan, cost, model)
    if as_json:
        say_json(predicted)
    elif not quiet:
        asked = {key: plan.provenance[key] for key in ASKED if key in plan.provenance} if stated else {}
        provenance = {"cost_model": name, "memory_fraction": share, **asked}
        priced = replace(plan, predicted=predicted, provenance=provenance)
        say(training_table(priced, cluster, emphasise=heading))


def stated_bound(stated: Mapping[str, Any], iteration_s: float) -> dict[str, Any]:
    """The bound that a plan's search stated, while the plan takes as long as stated: one edited since may be of another
    problem. Nothing where it contradicts itself.
    """
    bound_s, then_s = stated.get("lower_bound_iteration_s"), stated.get("iteration_s")
    if not (isinstance(bound_s, int | float) and isinstance(then_s, int | float)):
        return {}
    if not (math.isclose(then_s, iteration_s, rel_tol=SAME) and 0 <= bound_s <= iteration_s * (1 + SAME)):
        return {}
    return {key: value for key, value in stated.items() if key.startswith("lower_bound_")}
