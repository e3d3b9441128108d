"""`hetsched explain`: where each second and each byte of a plan goes."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hetsched.cli.options import cluster_option, memory_fraction_option, output_options, plan_argument

if TYPE_CHECKING:
    from hetsched.cluster import Cluster
    from hetsched.plan import ServingPlan


@click.command("explain", short_help="Say where each second and byte of a plan goes.")
@plan_argument
@cluster_option("Explain it")
@memory_fraction_option()
@output_options
def explain(
    plan_path: Path, cluster_path: Path | None, memory_fraction: float | None, as_json: bool, quiet: bool
) -> None:
    """Say where each second and each byte of PLAN goes, and what limits it.

    By the roofline model. Of a training plan: what each stage works, waits and sends, what fills its memory, and how
    long the iteration would be if the links, the bubble or the all-reduce cost nothing. Of a serving plan: what a
    prompt and a decode step take on each stage and why, the KV cache's room, how requests flow, what limits each
    replica, and what one more GPU of each kind would bring.

    \b
    Examples:
      hetsched explain plan.json
      hetsched explain by-hand.json --cluster home.yaml --json
    """
    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cost.explain import explain as explain_plan
    from hetsched.plan import ServingPlan
    from hetsched.readers import read_any_plan
    from hetsched.report.explanation import explanation_text

    plan = read_any_plan(plan_path)
    _, share = pricing_of(plan, plan_path, None, memory_fraction)
    cluster = cluster_of(plan, plan_path, cluster_path)
    if isinstance(plan, ServingPlan):
        _explain_serving(cluster, plan, plan_path.parent, share, as_json, quiet)
        return
    found = explain_plan(cluster, plan, share)
    if as_json:
        say_json(found.to_json())
    elif not quiet:
        say(explanation_text(found, plan, cluster.name, emphasise=heading))


def _explain_serving(
    cluster: "Cluster", plan: "ServingPlan", folder: Path, share: float, as_json: bool, quiet: bool
) -> None:
    from dataclasses import replace

    from hetsched.cli.output import heading, say, say_json
    from hetsched.cli.serving import EVALUATED
    from hetsched.cli.serving_load import Drawing, reference_of, requests_of
    from hetsched.cost.serving.explain import explain_serving
    from hetsched.cost.serving.steady import Traffic
    from hetsched.report.serving_explanation import serving_explanation_text
    from hetsched.serving.growth import one_more

    requests = requests_of(plan.workload, plan.model, folder, Drawing(EVALUATED))
    found = explain_serving(cluster, plan, share, Traffic.of_requests(requests))
    reference = reference_of(plan, plan.workload.slo)
    found = replace(found, growth=one_more(cluster, plan, requests, share, reference))
    if as_json:
        say_json(found.to_json())
    elif not quiet:
        say(serving_explanation_text(found, plan, cluster.name, emphasise=heading))
