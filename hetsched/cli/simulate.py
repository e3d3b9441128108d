"""`hetsched simulate`: play a plan event by event."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hetsched.cli.options import memory_fraction_option, output_options

if TYPE_CHECKING:
    from hetsched.cluster import Cluster
    from hetsched.plan import Plan

ROUNDING = 1e-9  # relative: two times that differ by less are the same


@click.command("simulate", short_help="Play a plan event by event.")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--cluster",
    "cluster_path",
    type=click.Path(path_type=Path),
    metavar="CLUSTER",
    help="Play it on this cluster.  [default: the one the plan names]",
)
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what happens when there, for Perfetto or chrome://tracing.",
)
@memory_fraction_option(None, "The share of a GPU's memory a plan may use.  [default: as the plan was made]")
@output_options
def simulate(
    plan_path: Path,
    cluster_path: Path | None,
    timeline: Path | None,
    memory_fraction: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Play one iteration of the training plan PLAN, event by event.

    Passes, messages, all-reduces and optimiser steps happen one after another, and transfers share the networks of
    nodes for as long as they meet there. Prints how long that takes, what the cost model says, and what each stage
    does. Where no two transfers ever meet, both must agree, and the output says so (exact: true). With --json it
    prints the plan's `predicted` object anew, from the simulation.

    \b
    Examples:
      hetsched simulate plan.json
      hetsched simulate plan.json --timeline timeline.json
    """
    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import check_writable
    from hetsched.readers import read_plan

    if timeline is not None:
        check_writable(timeline, plan_path, *([cluster_path] if cluster_path is not None else []))
    plan = read_plan(plan_path)
    _, share = pricing_of(plan, plan_path, None, memory_fraction)
    _play_training(plan, cluster_of(plan, plan_path, cluster_path), share, timeline, as_json, quiet)


def _play_training(
    plan: "Plan", cluster: "Cluster", memory_fraction: float, timeline: Path | None, as_json: bool, quiet: bool
) -> None:
    from hetsched.cli.output import ProgressLine, heading, say, say_json
    from hetsched.cost import COST_MODELS
    from hetsched.cost.training import play_iteration
    from hetsched.files import write_text
    from hetsched.finish import prediction
    from hetsched.report.simulation_table import simulation_table
    from hetsched.simulate.timeline import chrome_trace
    from hetsched.simulate.training import simulate_iteration, simulated_cost

    model = play_iteration(cluster, plan)
    with ProgressLine("simulate", quiet) as line:
        played = simulate_iteration(cluster, plan, record=timeline is not None, watch=line.part)
        apart_s = None
        if not played.exact and played.iteration_s > model.seconds * (1 + ROUNDING):
            apart_s = simulate_iteration(cluster, plan, kinds_apart=True, watch=line.part).iteration_s
    if timeline is not None:
        write_text(timeline, chrome_trace(played))
    if as_json:
        cost = simulated_cost(played, model, memory_fraction, apart_s)
        others = {name: make(memory_fraction) for name, make in COST_MODELS.items()}
        say_json(prediction(cluster, plan, cost, others))
    elif not quiet:
        say(simulation_table(played, model.seconds, apart_s, emphasise=heading))
        if timeline is not None:
            say(f"\nwritten to {timeline}: {len(played.events):,} events; open it in https://ui.perfetto.dev")
