"""`hetsched probe`: measure this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hetsched.model import ModelSpec

POSITIVE = click.IntRange(1)


@click.command("probe", short_help="Measure this machine: how long a model's blocks take.")
@click.option("--compute", is_flag=True, required=True, help="Time the model's blocks in training.")
@click.option("--model", metavar="M", required=True, help="A catalogue name or a config.json.")
@click.option("--gpu", metavar="KIND", required=True, help="What the cluster file calls this GPU or CPU.")
@click.option("--seq-len", type=POSITIVE, help="Of the sequences.  [default: the model's, at most 4096]")
@click.option(
    "--micro-batch", "micro_batches", type=POSITIVE, multiple=True, help="Several may be given.  [default: 1, 2, 4]"
)
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), help="[default: fp32 on CPUs, bf16 on GPUs]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="What computes."
)
@click.option("--threads", type=POSITIVE, default=1, show_default=True, help="Of a CPU, as `run` uses.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it there.")
@click.option("-q", "--quiet", is_flag=True, help="Print no lines.")
def probe(
    compute: bool,
    model: str,
    gpu: str,
    seq_len: int | None,
    micro_batches: tuple[int, ...],
    dtype: str | None,
    device: str,
    threads: int,
    output: Path | None,
    quiet: bool,
) -> None:
    """Time the blocks of model M in training on one device of this machine.

    Prints a table, and writes a profile that a cluster file names under `profiles`; plans for M on GPUs of that KIND
    are then priced by these times. They hold for stages of one GPU. Needs torch: pip install "hetsched[executor]".

    \b
    Example:
      hetsched probe --compute --model gpt2 --gpu my-3090 -o my-3090.json
    """
    import json

    from hetsched.cli.output import check_writable, say
    from hetsched.executor import RunSettings
    from hetsched.executor.launch import require_torch
    from hetsched.files import write_text
    from hetsched.readers import read_model
    from hetsched.workload import TrainingJob

    if output is not None:
        check_writable(output)
    require_torch()
    from hetsched.executor.calibrate import measure_profile

    spec = read_model(model)
    job = TrainingJob(1, seq_len or min(spec.max_positions, 4096), 1, dtype or "bf16")

    def progress(size: int) -> None:
        if not quiet:
            click.echo(f"micro-batch {size} ...", err=True)

    settings = RunSettings(device=device, dtype=dtype, threads=threads)
    profile = measure_profile(spec, job, sorted(set(micro_batches or (1, 2, 4))), gpu, settings, progress)
    if output is not None:
        write_text(output, json.dumps(profile, indent=1) + "\n")
    if not quiet:
        say(_table(spec, profile))
        if output is not None:
            say(f"written: {output}")


def _table(spec: "ModelSpec", profile: dict[str, Any]) -> str:
    from hetsched.report.text import columns, seconds

    rows = [
        [entry["micro_batch"], part, *(seconds(value) for value in entry[f"{part}_s"])]
        for entry in profile["profiles"]
        for part in ("embedding", "block", "head")
    ]
    return f"{spec.name}, one device\n" + columns(["micro-batch", "part", "forward", "backward", "update"], rows)
