"""`hetsched compare`: plans side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hetsched.cli.options import OneOf, cluster_option, cost_model_names, memory_fraction_option, output_options

if TYPE_CHECKING:
    from hetsched.plan import ServingPlan


@click.command("compare", short_help="Put plans side by side.")
@click.argument("plan_paths", metavar="PLAN...", type=click.Path(path_type=Path), nargs=-1, required=True)
@cluster_option("Price all of them", "those the plans name")
@click.option("--cost-model", type=OneOf(cost_model_names), help="What prices.  [default: as each plan was made]")
@memory_fraction_option()
@click.option("--same-load", is_flag=True, help="Play all serving plans on the workload of the first.")
@output_options
def compare(
    plan_paths: tuple[Path, ...],
    cluster_path: Path | None,
    cost_model: str | None,
    memory_fraction: float | None,
    same_load: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put the plans PLAN... side by side, each priced anew and held against the first.

    All are training plans, or all are serving plans; of these each is played on the requests of its own workload, or,
    with --same-load, on those of the first. Plans for different models, batches or clusters may stand together; a note
    says so.

    \b
    Examples:
      hetsched compare plan.json by-hand.json
      hetsched compare serve-*.json --same-load --json
    """
    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cost import COST_MODELS
    from hetsched.errors import HetschedError
    from hetsched.plan import Plan, ServingPlan
    from hetsched.readers import read_any_plan
    from hetsched.report.comparison import Compared, comparison_json, comparison_table

    plans = [read_any_plan(path) for path in plan_paths]
    serving = [plan for plan in plans if isinstance(plan, ServingPlan)]
    if serving and len(serving) < len(plans):
        kinds = {plan.kind: path.name for path, plan in zip(plan_paths, plans, strict=True)}
        raise HetschedError(
            f"{kinds['train']} is a training plan and {kinds['serve']} a serving plan", hint="compare plans of one kind"
        )
    if serving:
        _compare_serving(serving, plan_paths, cluster_path, memory_fraction, same_load, as_json, quiet)
        return
    stems = [path.stem for path in plan_paths]
    several = []
    training = [plan for plan in plans if isinstance(plan, Plan)]
    for path, plan in zip(plan_paths, training, strict=True):
        name, share = pricing_of(plan, path, cost_model, memory_fraction)
        cluster = cluster_of(plan, path, cluster_path)
        cost = COST_MODELS[name](share).price(cluster, plan)
        label = path.stem if stems.count(path.stem) == 1 else str(path)
        several.append(Compared(label, str(path), plan, cluster, name, cost))
    if as_json:
        say_json(comparison_json(several))
    elif not quiet:
        say(comparison_table(several, emphasise=heading))


def _compare_serving(
    plans: "list[ServingPlan]",
    paths: tuple[Path, ...],
    cluster_path: Path | None,
    memory_fraction: float | None,
    same_load: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from dataclasses import replace

    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cli.serving import evaluated
    from hetsched.report.serving_comparison import Served, serving_comparison_json, serving_comparison_table
    from hetsched.report.serving_rates import stated_per_s

    stems = [path.stem for path in paths]
    several = []
    for path, plan in zip(paths, plans, strict=True):
        _, share = pricing_of(plan, path, "roofline", memory_fraction)
        cluster = cluster_of(plan, path, cluster_path)
        played = replace(plan, workload=plans[0].workload) if same_load else plan
        folder = paths[0].parent if same_load else path.parent
        predicted = evaluated(cluster, played, folder, "roofline", share, quiet)
        label = path.stem if stems.count(path.stem) == 1 else str(path)
        stated = stated_per_s(plan) if played.workload == plan.workload else None
        several.append(Served(label, str(path), replace(played, predicted=predicted), cluster, stated))
    if as_json:
        say_json(serving_comparison_json(several))
    elif not quiet:
        say(serving_comparison_table(several, emphasise=heading))
