"""`hetsched explain`: where each second and each byte of a plan goes."""

from pathlib import Path

import click

from hetsched.cli.options import memory_fraction_option, output_options


@click.command("explain", short_help="Say where each second and byte of a plan goes.")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--cluster",
    "cluster_path",
    type=click.Path(path_type=Path),
    metavar="CLUSTER",
    help="Explain it on this cluster.  [default: the one the plan names]",
)
@memory_fraction_option(None, "The share of a GPU's memory a plan may use.  [default: as the plan was made]")
@output_options
def explain(
    plan_path: Path, cluster_path: Path | None, memory_fraction: float | None, as_json: bool, quiet: bool
) -> None:
    """Say where each second and each byte of the training plan PLAN goes, and what limits it.

    By the roofline model: what each stage works, waits and sends, what fills its memory, and how long the iteration
    would be if the links, the bubble or the all-reduce cost nothing.

    \b
    Examples:
      hetsched explain plan.json
      hetsched explain by-hand.json --cluster home.yaml --json
    """
    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cost.explain import explain as explain_plan
    from hetsched.readers import read_plan
    from hetsched.report.explanation import explanation_text

    plan = read_plan(plan_path)
    _, share = pricing_of(plan, plan_path, None, memory_fraction)
    cluster = cluster_of(plan, plan_path, cluster_path)
    found = explain_plan(cluster, plan, share)
    if as_json:
        say_json(found.to_json())
    elif not quiet:
        say(explanation_text(found, plan, cluster.name, emphasise=heading))
