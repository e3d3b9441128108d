"""`hetsched plan-train`: search for a training plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetsched.cli.options import (
    DTYPES,
    MEMORY_FRACTION,
    CompressionBits,
    OneOf,
    Positive,
    cost_model_names,
    memory_fraction_option,
    model_option,
    output_options,
    search_options,
    write_plan_option,
)

if TYPE_CHECKING:
    from hetsched.plan import Compression

GLOBAL_BATCH = 512
LONGEST_SEQ_LEN = 4096
POSITIVE = click.IntRange(1)


@click.command("plan-train", short_help="Search for a training plan.")
@click.argument("cluster_path", metavar="CLUSTER", type=click.Path(path_type=Path))
@model_option
@write_plan_option
@click.option(
    "--global-batch",
    type=click.IntRange(1, 10**6),
    metavar="N",
    help=f"Sequences in an iteration.  [default: {GLOBAL_BATCH}]",
)
@click.option(
    "--micro-batch", type=POSITIVE, metavar="N", help="Sequences at a time; a power of two is searched otherwise."
)
@click.option(
    "--seq-len", type=POSITIVE, metavar="N", help=f"Tokens in one.  [default: the model's, at most {LONGEST_SEQ_LEN}]"
)
@click.option("--replicas", type=POSITIVE, metavar="D", help="Fix the number of pipelines; searched otherwise.")
@click.option("--stages", type=POSITIVE, metavar="P", help="Fix the stages of a pipeline; searched otherwise.")
@click.option("--dtype", type=DTYPES, default="bf16", show_default=True, help="Of weights.")
@click.option("--schedule", type=click.Choice(["1f1b", "gpipe"]), help="Of the pipelines; searched otherwise.")
@click.option("--recompute/--no-recompute", default=None, help="Recompute activations; searched otherwise.")
@click.option("--zero", type=click.IntRange(0, 3), help="ZeRO stage; the least that memory and speed allow otherwise.")
@click.option(
    "--compression",
    type=CompressionBits(),
    help="Bits on the wire, one number or three as in 4,8,8: activations, their gradients, gradients of weights.  "
    "[default: off]",
)
@click.option(
    "--objective", type=click.Choice(["time", "cost"]), default="time", show_default=True, help="What should be least."
)
@click.option("--budget-usd-per-hour", type=Positive(), metavar="USD", help="Use only nodes that this pays for.")
@memory_fraction_option(MEMORY_FRACTION)
@click.option("--cost-model", type=OneOf(cost_model_names), default="roofline", show_default=True, help="What prices.")
@search_options
@output_options
def plan_train(
    cluster_path: Path,
    model: str,
    output: Path | None,
    global_batch: int | None,
    micro_batch: int | None,
    seq_len: int | None,
    replicas: int | None,
    stages: int | None,
    dtype: str,
    schedule: str | None,
    recompute: bool | None,
    zero: int | None,
    compression: "Compression | None",
    objective: str,
    budget_usd_per_hour: float | None,
    memory_fraction: float,
    cost_model: str,
    solver: str,
    seed: int,
    max_seconds: float | None,
    max_steps: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Search for the best plan to train model M on the GPUs of CLUSTER, a YAML file.

    Prints the plan: what stands where, how long an iteration takes and why, and how much better that is than what one
    would start without a planner. With -o it is written for `evaluate`, `export` and `run`; without, no file is.

    With neither --max-seconds nor --max-steps the search has a fixed, repeatable number of steps. Exits 3 where no plan
    fits, and says which limit is broken, on which GPU, and by how much.

    \b
    Examples:
      hetsched plan-train cluster_specs/home-office.yaml --model gpt2
      hetsched plan-train cluster_specs/dtfm-worldwide.yaml --model gpt3-xl \\
          --replicas 8 --stages 8 --seed 1 -o plan.json
    """
    from hetsched.budget import require_prices
    from hetsched.cli.driver import SearchSettings, compare, search
    from hetsched.cli.inputs import reference_to
    from hetsched.cli.output import check_writable, heading, say, say_json
    from hetsched.cost import COST_MODELS
    from hetsched.finish import bounded, finished_plan
    from hetsched.plan import Compression
    from hetsched.problem import Choices, Problem
    from hetsched.readers import read_cluster, read_model, write_plan
    from hetsched.report.training_table import training_table
    from hetsched.workload import TrainingJob

    if output is not None:
        check_writable(output, cluster_path, Path(model))
    cluster, spec = read_cluster(cluster_path), read_model(model)
    if objective == "cost":
        require_prices(cluster, "--objective cost")
    job = TrainingJob(
        global_batch=global_batch or GLOBAL_BATCH,
        seq_len=seq_len or min(spec.max_positions, LONGEST_SEQ_LEN),
        micro_batch=micro_batch or 1,
        dtype=dtype,
    )
    choices = Choices(
        replicas=replicas,
        stages=stages,
        micro_batch=micro_batch,
        schedule=schedule,
        recompute=recompute,
        zero=zero,
        compression=compression or Compression(),
        published_batch=global_batch is None,
    )
    reference = reference_to(cluster, cluster_path, output)
    problem = Problem(cluster, spec, job, choices, objective)
    priced_by = COST_MODELS[cost_model](memory_fraction)
    settings = SearchSettings(solver, priced_by, seed, max_seconds, max_steps, quiet)
    problem, result = search(problem, settings, budget_usd_per_hour)
    kept: dict[str, Any] = {"objective": objective, "memory_fraction": priced_by.memory_fraction}
    if budget_usd_per_hour is not None:
        kept["budget_usd_per_hour"] = budget_usd_per_hour
    if choices.fixed:
        kept["fixed"] = choices.fixed
    plan = finished_plan(
        problem,
        bounded(problem, priced_by, result),
        reference,
        cost_model=cost_model,
        others={name: make(memory_fraction) for name, make in COST_MODELS.items() if name != cost_model},
        baselines=compare(problem, settings),
        provenance=kept,
    )
    if output is not None:
        write_plan(plan, output)
    if as_json:
        say_json(plan.to_json())
    elif not quiet:
        say(training_table(plan, cluster, emphasise=heading))
        if output is not None:
            say(f"\nwritten to {output}")
