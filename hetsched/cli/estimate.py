"""`hetsched estimate`: one replica's prefill, per-token time, throughput and memory."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetsched.cli.options import MEMORY_FRACTION, Positive, memory_fraction_option, model_option, precision_options

if TYPE_CHECKING:
    from hetsched.cost.serving.estimate import Estimate

TOKENS = click.IntRange(1, 10**7)
MOST_ROWS = 400


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """`8`, or several as `1,8,32`: whole numbers from 1."""

    name = "n"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The numbers; a usage error where one is none."""
        words = [word.strip() for word in str(value).split(",")]
        numbers = [int(word) for word in words if word.isascii() and word.isdecimal() and len(word) < 10]
        if len(numbers) != len(words) or not all(1 <= number <= self.most for number in numbers):
            self.fail(f"{value!r} is not a number from 1 to {self.most}, or several as in 1,8,32.", param, ctx)
        return numbers


@click.command("estimate", short_help="One serving replica's times, throughput and memory.")
@model_option
@click.option("--gpu", metavar="G", help="The kind of its GPUs; of --cluster, where that has several.")
@click.option("--tp", type=Numbers(1024), default="1", show_default=True, help="Tensor-parallel degree, or several.")
@click.option("--pp", type=Numbers(1024), default="1", show_default=True, help="Pipeline stages, or several.")
@click.option("--batch", type=Numbers(100_000), default="1", show_default=True, help="Sequences, or several numbers.")
@click.option("--isl", type=TOKENS, default=1024, show_default=True, help="Tokens of each prompt.")
@click.option("--osl", type=TOKENS, default=128, show_default=True, help="Tokens of each output.")
@precision_options
@click.option("--chunked-prefill", is_flag=True, help="Prompts go along with decode steps, in the steady state.")
@click.option("--link-gbps", type=Positive(), help="Between its GPUs, one way.  [default: the kind's usual link]")
@click.option("--cluster", "cluster_path", type=click.Path(path_type=Path), help="Take links and profiles from there.")
@memory_fraction_option(MEMORY_FRACTION, "that may be used")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table.")
def estimate(
    model: str,
    gpu: str | None,
    tp: list[int],
    pp: list[int],
    batch: list[int],
    isl: int,
    osl: int,
    dtype: str,
    weight_bits: str,
    kv_bits: str,
    chunked_prefill: bool,
    link_gbps: float | None,
    cluster_path: Path | None,
    memory_fraction: float,
    as_json: bool,
) -> None:
    """Say what one serving replica of model M does: equal stages on GPUs of one kind.

    Prefill is of the whole batch of prompts; the time per token is the mean of the decode steps at that batch. The
    steady state is continuous batching with at most that many requests in flight. Several numbers for --tp, --pp or
    --batch, with commas, make a table. What does not fit is said, with every number filled in.

    \b
    Examples:
      hetsched estimate --model llama-3.1-8b --gpu h100_sxm --batch 32
      hetsched estimate --model llama-3.1-70b --gpu A100-SXM-80GB \\
          --tp 4,8 --batch 1,16,64 --isl 2048 --osl 256
    """
    from hetsched.catalog import find_gpu, known_gpu
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cost.serving.estimate import estimate as estimated
    from hetsched.cost.serving.placed import even_stages, kind_in, one_machine, with_link
    from hetsched.cost.serving.replica import replica_times
    from hetsched.errors import HetschedWarning
    from hetsched.precision import Precision
    from hetsched.readers import read_cluster, read_model
    from hetsched.report.estimate_table import estimate_table
    from hetsched.units import BYTES_PER_S_PER_GBPS

    if link_gbps is not None and cluster_path is not None:
        raise click.UsageError("--cluster has its own links: leave out --link-gbps.")
    if len(tp) * len(pp) * len(batch) > MOST_ROWS:
        raise click.UsageError(f"That would be a table of more than {MOST_ROWS} rows.")
    spec, precision = read_model(model), Precision(dtype, int(weight_bits), int(kv_bits))
    cluster = read_cluster(cluster_path) if cluster_path is not None else None
    known = None if gpu is None else known_gpu(gpu)
    if cluster is not None:
        given = kind_in(cluster, known.kind if known else gpu)
    elif gpu is not None:
        given = find_gpu(gpu, "--gpu")
    else:
        raise click.UsageError("Give --gpu, or a --cluster of one kind of GPU.")
    link = None if link_gbps is None else with_link(given.link, link_gbps * BYTES_PER_S_PER_GBPS)
    if isl + osl > spec.max_positions:
        warnings.warn(
            f"{isl + osl:,} tokens are more than the {spec.max_positions:,} positions of {spec.name}",
            HetschedWarning,
            stacklevel=2,
        )
    rows: list[tuple[int, int, Estimate]] = []
    for degree in tp:
        for depth in pp:
            on = cluster or one_machine(given, degree * depth, link)
            stages = even_stages(on, given, spec, degree, depth)
            times = replica_times(on, spec, stages, precision, memory_fraction)
            rows += [(degree, depth, estimated(times, size, isl, osl, chunked_prefill)) for size in batch]
    if not as_json:
        say(estimate_table(spec, given, rows, memory_fraction, emphasise=heading))
    elif len(rows) == 1:
        say_json(rows[0][2].to_json())
    else:
        say_json({"rows": [{"tp": t, "pp": p, "batch": row.batch, **row.to_json()} for t, p, row in rows]})
