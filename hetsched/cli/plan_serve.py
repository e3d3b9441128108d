"""`hetsched plan-serve`: search for a serving plan."""

import warnings
from pathlib import Path
from typing import Any

import click

from hetsched.cli.options import (
    MEMORY_FRACTION,
    Positive,
    memory_fraction_option,
    model_option,
    output_options,
    precision_options,
    serving_search_options,
    write_plan_option,
)
from hetsched.cli.serving_load import load_options


@click.command("plan-serve", short_help="Search for a serving plan.")
@click.argument("cluster_path", metavar="[CLUSTER]", required=False, type=click.Path(path_type=Path))
@model_option
@write_plan_option
@click.option(
    "--mode",
    type=click.Choice(["auto", "colocated", "disaggregated"]),
    default="auto",
    show_default=True,
    help="Whether replicas prefill and decode, or each does one of both; auto: what simulates best.",
)
@load_options
@precision_options
@click.option(
    "--chunked-prefill", type=click.IntRange(1), metavar="N", help="Prompts in chunks, N tokens a step with decode."
)
@click.option(
    "--objective",
    type=click.Choice(["throughput", "attainment", "cost"]),
    default="throughput",
    show_default=True,
    help="The highest rate within the limits; most requests within them, or least money, at --rate.",
)
@click.option("--budget-usd-per-hour", type=Positive(), metavar="USD", help="Nodes in use may cost at most so much.")
@click.option("--offers", type=click.Path(path_type=Path), metavar="FILE", help="What may be rented, besides CLUSTER.")
@memory_fraction_option(MEMORY_FRACTION)
@serving_search_options
@output_options
def plan_serve(
    cluster_path: Path | None,
    model: str,
    output: Path | None,
    mode: str,
    dtype: str,
    weight_bits: str,
    kv_bits: str,
    chunked_prefill: int | None,
    objective: str,
    budget_usd_per_hour: float | None,
    offers: Path | None,
    memory_fraction: float,
    solver: str,
    seed: int,
    max_seconds: float | None,
    max_steps: int | None,
    as_json: bool,
    quiet: bool,
    **load: Any,
) -> None:
    """Search for the best way to serve model M on the GPUs of CLUSTER, a YAML file.

    With --offers some of them are to be rented: FILE is a cluster file with `offers`, nodes with a price each of which
    is `available` so many times. What to rent is decided with the plan, never over the budget.

    Decides which GPUs make which replicas, what these do (prefill, decode or both), how each is split, and which share
    of the requests it gets. Prints which GPUs serve what, how many requests keep the limits, what limits the plan, why
    its mode wins, and the gain over equal replicas on each node and over equal prefill and decode replicas. Figures are
    of the request simulator. With -o the plan is written for `simulate` and `evaluate`.

    Where nothing fits, or nothing keeps the limits, it exits 3 and says what comes nearest.

    \b
    Examples:
      hetsched plan-serve cluster_specs/hexgen-58.yaml --model llama-2-70b \\
          --isl 512 --osl 64 --slo-scale 5
      hetsched plan-serve cluster_specs/a100-l4-t4-24.yaml --dtype fp16 \\
          --model llama-2-70b --trace azure-2023-conv -o plan.json
      hetsched plan-serve cluster_specs/hexgen2-mixed.yaml --dtype fp16 \\
          --model llama-2-70b --isl 1024 --osl 256 --mode disaggregated
      hetsched plan-serve --offers cluster_specs/offers-gcp.yaml \\
          --model llama-2-13b --rate 5 --slo-ttft-ms 1000 --objective cost
    """
    from functools import partial

    from hetsched.catalog import find_gpu
    from hetsched.cli.inputs import reference_to
    from hetsched.cli.output import ProgressLine, check_writable, heading, say, say_json
    from hetsched.cli.serving_load import Drawing, load_of, requests_of
    from hetsched.cost.serving.reference import REFERENCE_GPU, reference_replica
    from hetsched.errors import HetschedError, HetschedWarning
    from hetsched.plan import ServingOptions
    from hetsched.readers import read_cluster, read_model, write_plan
    from hetsched.report.serving_gain import serving_gain
    from hetsched.report.serving_table import serving_table
    from hetsched.serving.finish import finished_serving_plan
    from hetsched.serving.renting import planned
    from hetsched.serving.search import USUAL, plan_serving
    from hetsched.serving_problem import ServingProblem
    from hetsched.solvers.serving import SERVING_SOLVERS
    from hetsched.workload import ServingLoad

    if solver != "auto" and mode == ("colocated" if SERVING_SOLVERS[solver].apart else "disaggregated"):
        raise HetschedError(
            f"--solver {solver} makes no {mode} plans", hint=f"--mode auto, or one of: {', '.join(USUAL[mode])}"
        )
    if offers is not None and budget_usd_per_hour is None and objective != "cost":
        raise HetschedError("--offers: how much may be spent?", hint=_money(objective))
    cluster_path, offers = _inputs(cluster_path, offers)
    if output is not None:
        check_writable(output, cluster_path, Path(model), *([] if offers is None else [offers]))
    cluster, spec = read_cluster(cluster_path, offers), read_model(model)
    if objective == "throughput" and load["rate"] is not None:
        load["rate"] = None
        warnings.warn(
            "--rate is for --objective attainment or cost: throughput looks for the highest",
            HetschedWarning,
            stacklevel=2,
        )
    wanted = load_of(load, ServingLoad(dtype=dtype))
    options = ServingOptions(int(weight_bits), int(kv_bits), chunked_prefill or 0)
    requests = requests_of(wanted, spec, Path(), Drawing(seed=seed))
    problem = ServingProblem(cluster, spec, wanted, requests, options, objective, budget_usd_per_hour, mode=mode)
    reference = None
    if wanted.slo.scale is not None:
        reference = reference_replica(find_gpu(REFERENCE_GPU, "SLO scale"), spec, problem.precision)
    with ProgressLine(solver, quiet, "steps") as line:
        plan_one = partial(
            plan_serving,
            solver=None if solver == "auto" else SERVING_SOLVERS[solver],
            memory_fraction=memory_fraction,
            reference=reference,
            seed=seed,
            max_steps=max_steps,
            max_seconds=max_seconds,
            watch=line.part,
        )
        result = planned(problem, plan_one, memory_fraction, reference, seed=seed)
    named = reference_to(cluster, cluster_path, output, offers)
    plan = finished_serving_plan(problem, result, reference, memory_fraction, named)
    if output is not None:
        write_plan(plan, output)
    if as_json:
        say_json(plan.to_json())
    elif not quiet:
        say(serving_table(plan, cluster, emphasise=heading))
        say(serving_gain(plan, emphasise=heading))
        if output is not None:
            say(f"\nwritten to {output}")


def _money(objective: str) -> str:
    """What says how much may be spent on offers."""
    return "--budget-usd-per-hour USD" + (", or --objective cost at a --rate" if objective == "throughput" else "")


def _inputs(cluster_path: Path | None, offers: Path | None) -> tuple[Path, Path | None]:
    """The cluster's file and that of offers besides; offers alone are a cluster."""
    if cluster_path is not None:
        return cluster_path, offers
    if offers is None:
        raise click.UsageError("Missing argument 'CLUSTER', or the option '--offers'.")
    return offers, None
