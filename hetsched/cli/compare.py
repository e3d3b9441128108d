"""`hetsched compare`: plans side by side."""

from pathlib import Path

import click

from hetsched.cli.options import OneOf, cost_model_names, memory_fraction_option, output_options


@click.command("compare", short_help="Put plans side by side.")
@click.argument("plan_paths", metavar="PLAN...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--cluster",
    "cluster_path",
    type=click.Path(path_type=Path),
    metavar="CLUSTER",
    help="Price all of them on this cluster.  [default: those the plans name]",
)
@click.option("--cost-model", type=OneOf(cost_model_names), help="What prices.  [default: as each plan was made]")
@memory_fraction_option(None, "The share of a GPU's memory a plan may use.  [default: as each was made]")
@output_options
def compare(
    plan_paths: tuple[Path, ...],
    cluster_path: Path | None,
    cost_model: str | None,
    memory_fraction: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put the training plans PLAN... side by side, each priced anew and held against the first.

    Plans for different models, batches or clusters may stand together; a note says so.

    \b
    Examples:
      hetsched compare plan.json by-hand.json
      hetsched compare seed-*.json --cost-model roofline --json
    """
    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cost import COST_MODELS
    from hetsched.readers import read_plan
    from hetsched.report.comparison import Compared, comparison_json, comparison_table

    stems = [path.stem for path in plan_paths]
    several = []
    for path in plan_paths:
        plan = read_plan(path)
        name, share = pricing_of(plan, path, cost_model, memory_fraction)
        cluster = cluster_of(plan, path, cluster_path)
        cost = COST_MODELS[name](share).price(cluster, plan)
        label = path.stem if stems.count(path.stem) == 1 else str(path)
        several.append(Compared(label, str(path), plan, cluster, name, cost))
    if as_json:
        say_json(comparison_json(several))
    elif not quiet:
        say(comparison_table(several, emphasise=heading))
