"""`hetsched simulate`: play a plan event by event."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetsched.cli.options import cluster_option, memory_fraction_option, output_options, plan_argument
from hetsched.cli.serving_load import ARRIVALS, LOAD_KEYS, MOST_REQUESTS, load_options

if TYPE_CHECKING:
    from hetsched.cluster import Cluster
    from hetsched.plan import Plan
    from hetsched.simulate.serving.result import ServingRun

ROUNDING = 1e-9  # relative: two times that differ by less are the same


@click.command("simulate", short_help="Play a plan event by event.")
@plan_argument
@cluster_option("Play it")
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what happens when there, for Perfetto or chrome://tracing.",
)
@memory_fraction_option()
@load_options
@click.option(
    "--requests",
    type=click.IntRange(1, MOST_REQUESTS),
    metavar="N",
    help="So many.  [default: all of a trace, else 1000]",
)
@click.option(
    "--arrivals",
    type=click.Choice(ARRIVALS),
    default=ARRIVALS[0],
    show_default=True,
    help="As in the trace, or drawn from it at random.",
)
@click.option(
    "--routing",
    type=click.Choice(["shares", "random", "least-loaded"]),
    default="shares",
    show_default=True,
    help="In turn or by chance by the plan's shares, or to the least loaded for its share.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Equal seeds, equal runs.")
@click.option("--find-rate", is_flag=True, help="Find the highest rate at which the limits hold, and play that.")
@click.option("--request", type=click.IntRange(0), metavar="N", help="Show this request's life, counted from 0.")
@output_options
def simulate(
    plan_path: Path,
    cluster_path: Path | None,
    timeline: Path | None,
    memory_fraction: float | None,
    requests: int | None,
    arrivals: str,
    routing: str,
    seed: int,
    find_rate: bool,
    request: int | None,
    as_json: bool,
    quiet: bool,
    **load: Any,
) -> None:
    """Play PLAN event by event.

    A training plan: one iteration. Passes, messages, all-reduces and optimiser steps happen one after another, and
    transfers share the networks of nodes for as long as they meet there. Prints how long that takes, what the cost
    model says, and what each stage does. Where no two transfers ever meet, both must agree, and the output says so
    (exact: true).

    A serving plan: requests arrive, wait, are batched step by step, and leave. They are those of the plan's workload,
    unless options say otherwise. Prints times to the first token, per output token and of whole requests, how many keep
    the limits, and what each replica does. The options from --rate on are for serving plans.

    With --json it prints the plan's `predicted` object anew, from the simulation.

    \b
    Examples:
      hetsched simulate plan.json --timeline timeline.json
      hetsched simulate serve.json --trace azure-2023-conv --rate 4 --seed 1
    """
    from hetsched.cli.inputs import cluster_of, pricing_of
    from hetsched.cli.output import check_writable
    from hetsched.plan import Plan
    from hetsched.readers import read_any_plan

    if timeline is not None:
        check_writable(timeline, plan_path, *([cluster_path] if cluster_path is not None else []))
    plan = read_any_plan(plan_path)
    _, share = pricing_of(plan, plan_path, None, memory_fraction)
    cluster = cluster_of(plan, plan_path, cluster_path)
    if isinstance(plan, Plan):
        given = [key for key in LOAD_KEYS if load[key] is not None]
        others = (("requests", requests), ("request", request), ("find-rate", find_rate or None))
        given += [key for key, value in others if value is not None]
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is for serving plans, {plan_path.name} is none.")
        _play_training(plan, cluster, share, timeline, as_json, quiet)
        return
    if timeline is not None and request is None:
        raise click.UsageError("--timeline of a serving plan shows one request's life: add --request N.")
    from dataclasses import replace

    from hetsched.cli.serving import Player
    from hetsched.cli.serving_load import Drawing, load_of
    from hetsched.errors import InfeasibleError
    from hetsched.report.serving_rates import played_rate
    from hetsched.simulate.serving.run import Settings

    wanted, drawing = load_of(load, plan.workload), Drawing(requests, seed, arrivals)
    player = Player(cluster, plan, plan_path.parent, drawing, share, quiet, Settings(routing, seed, request))
    if find_rate:
        rate = player.highest_rate(wanted)
        if not rate:
            raise InfeasibleError(f"{plan_path.name} keeps its limits at no rate", hint="loosen the limits")
        wanted = replace(wanted, rate_per_s=rate)
    run, predicted = player.played(wanted)
    if find_rate:
        predicted = {**predicted, "highest_rate_per_s": rate}
    kind = played_rate(plan, wanted != plan.workload)
    _show_serving(run, predicted, cluster.name, kind, request, timeline, as_json, quiet)


def _show_serving(
    run: "ServingRun",
    predicted: dict[str, Any],
    cluster: str,
    rate: str,
    request: int | None,
    timeline: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from hetsched.cli.output import heading, say, say_json
    from hetsched.files import write_text
    from hetsched.report.serving_simulation import request_life, request_trace, serving_simulation_table

    if timeline is not None and request is not None:
        write_text(timeline, request_trace(run, request))
    if as_json:
        if request is not None:
            predicted = {**predicted, "moments": [moment._asdict() for moment in run.moments]}
        say_json(predicted)
    elif not quiet:
        say(serving_simulation_table(run, predicted, cluster, rate, emphasise=heading))
        if request is not None:
            say("\n" + request_life(run, request, emphasise=heading))
        if timeline is not None:
            say(f"\nwritten to {timeline}; open it in https://ui.perfetto.dev")


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
