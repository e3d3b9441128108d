"""`hetsched gpus`, `models` and `solvers`: what hetsched knows."""

import sys
from typing import Any

import click

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table.")


@click.command("gpus", short_help="List the GPUs of the catalogue.")
@JSON_OPTION
def gpus(as_json: bool) -> None:
    """List the GPUs that a cluster file can name, with their data sheets.

    Usual spellings are understood too, e.g. what nvidia-smi prints. TFLOPS are dense bf16; a GPU that is not listed can
    be spelled out in the cluster file.

    \b
    Example:
      hetsched gpus
    """
    from hetsched.catalog import gpu_kinds, known_gpu
    from hetsched.units import BYTES_PER_GIB, BYTES_PER_S_PER_GBYTES, FLOPS_PER_TFLOPS

    rows: list[dict[str, Any]] = []
    for kind in gpu_kinds():
        gpu = known_gpu(kind)
        if gpu is not None:
            rows.append(
                {
                    "kind": kind,
                    "memory_gib": gpu.memory_bytes / BYTES_PER_GIB,
                    "tflops": gpu.half_flops_per_s / FLOPS_PER_TFLOPS,
                    "tflops_fp32": gpu.single_flops_per_s / FLOPS_PER_TFLOPS,
                    "memory_gbytes_per_s": gpu.memory_bytes_per_s / BYTES_PER_S_PER_GBYTES,
                }
            )
    _show(rows, as_json)


@click.command("models", short_help="List the models of the catalogue.")
@JSON_OPTION
def models(as_json: bool) -> None:
    """List the models that --model can name; others can be given by their Hugging Face config.json.

    \b
    Example:
      hetsched models
    """
    from hetsched.catalog import find_model, model_names

    specs = [spec for name in model_names() if (spec := find_model(name)) is not None]
    rows = [
        {
            "name": spec.name,
            "parameters": spec.parameters,
            "layers": spec.num_layers,
            "hidden_size": spec.hidden_size,
            "max_positions": spec.max_positions,
        }
        for spec in specs
    ]
    _show(rows, as_json)


@click.command("solvers", short_help="List the solvers and the cost models.")
@JSON_OPTION
def solvers(as_json: bool) -> None:
    """List what --solver and --cost-model can name, of plan-train and of plan-serve.

    \b
    Example:
      hetsched solvers
    """
    from hetsched.cli.output import heading, say, say_json
    from hetsched.cost import COST_MODELS, SERVING_COST_MODELS
    from hetsched.report.text import bullet
    from hetsched.solvers import SOLVERS
    from hetsched.solvers.serving import SERVING_SOLVERS

    kinds: dict[str, tuple[str, dict[str, object]]] = {
        "solver": ("Solvers of training", dict(SOLVERS)),
        "cost model": ("Cost models of training", {name: make(1.0) for name, make in COST_MODELS.items()}),
        "serving solver": ("Solvers of serving", dict(SERVING_SOLVERS)),
        "serving cost model": ("Cost models of serving", {k: make(1.0) for k, make in SERVING_COST_MODELS.items()}),
    }
    rows = [
        {"kind": kind, "name": name, "does": _about(thing)}
        for kind, (_, things) in kinds.items()
        for name, thing in things.items()
    ]
    if as_json:
        say_json(rows)
        return
    for kind, (title, _) in kinds.items():
        say(heading(title))
        for row in rows:
            if row["kind"] == kind:
                say(bullet(row["does"], f"  {row['name']:<14}"))


def _about(thing: object) -> str:
    """The first sentence of the module that something's class is defined in."""
    first = (sys.modules[type(thing).__module__].__doc__ or "").strip().partition("\n\n")[0]
    return " ".join(first.split())


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    from hetsched.cli.output import say, say_json
    from hetsched.report.text import columns

    if as_json:
        say_json(rows)
    else:
        say(columns(list(rows[0]), [list(row.values()) for row in rows]))
