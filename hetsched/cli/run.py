"""`hetsched run`: train by a plan with the bundled executor, on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetsched.cli.options import Positive, plan_argument

if TYPE_CHECKING:
    from hetsched.executor import CheckReport, RunReport, StepReport
    from hetsched.plan import Plan

POSITIVE = click.IntRange(1)
FOLDER = click.Path(path_type=Path, file_okay=False)
LARGE_PARAMETERS = 100_000_000  # a model above this is not run on this machine unless --full-size says so
HIDDEN_SIZE, SEQ_LEN, VOCAB_SIZE = 64, 32, 256  # of a scaled model


@click.command("run", short_help="Train by a plan on this machine, one process a GPU of the plan.")
@plan_argument
@click.option(
    "--check",
    is_flag=True,
    help="Compare losses and all gradients with one process; exit 1 if they differ. It learns at 1e-4 at most.",
)
@click.option("--steps", type=POSITIVE, default=5, show_default=True, help="Training steps.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Train on it.  [default: a sample]")
@click.option("--full-size", is_flag=True, help="Never scale the model down.")
@click.option("--hidden-size", type=POSITIVE, help=f"Scale the model down to this.  [default: {HIDDEN_SIZE}]")
@click.option("--seq-len", type=POSITIVE, help=f"Likewise the sequences.  [default: {SEQ_LEN}]")
@click.option("--vocab-size", type=POSITIVE, help=f"Likewise the vocabulary.  [default: {VOCAB_SIZE}]")
@click.option(
    "--global-batch", type=POSITIVE, help="Likewise the batch.  [default: at most 4 micro-batches a pipeline]"
)
@click.option("--micro-batch", type=POSITIVE, help="Likewise the micro-batch.  [default: 1]")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp32", "fp64"]),
    help="Of the computation; fp64: a --check without rounding.  [default: fp32 on CPUs, the plan's on GPUs]",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="What computes."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the initial weights.")
@click.option("--learning-rate", type=Positive(), default=3e-4, show_default=True, help="Of AdamW.")
@click.option("--epoch-steps", type=POSITIVE, help="Repeat so many batches.  [default: new samples in every step]")
@click.option(
    "--quantise",
    type=click.Choice(["changes", "direct"]),
    default="changes",
    show_default=True,
    help="What a plan that compresses activations quantises: their changes since the last epoch (AQ-SGD), or "
    "themselves; always themselves without --epoch-steps.",
)
@click.option(
    "--cache-gib", type=Positive(), default=4.0, show_default=True, help="The most that a process keeps for --quantise."
)
@click.option(
    "--cache-folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Keep it in files there.  [default: in memory]",
)
@click.option("--checkpoint-to", type=FOLDER, metavar="DIR", help="Write checkpoints there, one at the end.")
@click.option("--checkpoint-every", type=POSITIVE, metavar="STEPS", help="And after so many steps.")
@click.option(
    "--resume-from",
    type=FOLDER,
    metavar="DIR",
    help="Go on from the latest checkpoint there, for --steps more; that of any plan for the model and batch.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True),
    metavar="DIR",
    help="Start from the safetensors files of a Hugging Face Llama, Mistral, Qwen or GPT-2.",
)
@click.option("--save-weights", type=FOLDER, metavar="DIR", help="Write the last checkpoint's weights there, likewise.")
@click.option("--timeout-s", type=Positive(), default=600.0, show_default=True, help="The longest the run may take.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the lines.")
@click.option("-q", "--quiet", is_flag=True, help="Print no lines.")
def run(
    plan_path: Path,
    check: bool,
    steps: int,
    text: Path | None,
    full_size: bool,
    hidden_size: int | None,
    seq_len: int | None,
    vocab_size: int | None,
    global_batch: int | None,
    micro_batch: int | None,
    dtype: str | None,
    device: str,
    seed: int,
    learning_rate: float,
    epoch_steps: int | None,
    quantise: str,
    cache_gib: float,
    cache_folder: Path | None,
    checkpoint_to: Path | None,
    checkpoint_every: int | None,
    resume_from: Path | None,
    weights: Path | None,
    save_weights: Path | None,
    timeout_s: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train by PLAN on this machine, with one process for each GPU of the plan.

    It is real training with the plan's pipelines, stages and batch shares. A model of more than 100 million parameters
    is scaled down, so that any plan can be tried on a laptop; so is a smaller one where a size is given. --check proves
    that the plan computes what one process would. Needs torch: pip install "hetsched[executor]".

    \b
    Example:
      hetsched run plan.json --check --steps 3
    """
    from hetsched.cli.group import show
    from hetsched.cli.output import say, say_json
    from hetsched.executor import RunSettings, check_plan, run_plan
    from hetsched.executor.launch import require_torch
    from hetsched.readers import read_plan

    sizes = {
        "hidden_size": hidden_size,
        "seq_len": seq_len,
        "vocab_size": vocab_size,
        "global_batch": global_batch,
        "micro_batch": micro_batch,
    }
    given = {name: size for name, size in sizes.items() if size is not None}
    if full_size and given:
        raise click.UsageError(f"--full-size and --{next(iter(given)).replace('_', '-')} exclude each other.")
    require_torch()
    plan = read_plan(plan_path)
    settings = RunSettings(
        steps=steps,
        seed=seed,
        dtype=dtype,
        learning_rate=learning_rate,
        text=text,
        device=device,
        timeout_s=timeout_s,
        epoch_steps=epoch_steps,
        quantise=quantise,
        cache_gib=cache_gib,
        cache_folder=cache_folder,
        checkpoint_to=checkpoint_to,
        checkpoint_every=checkpoint_every,
        resume_from=resume_from,
        weights=weights,
        save_weights=save_weights,
    )
    played = plan if full_size else _scaled(plan, given)
    lines = not (as_json or quiet)
    if lines:
        say(_announcement(plan, played))
    if lines and check:
        precision = "fp64" if dtype == "fp64" else "fp32"
        say(f"checked in {precision}, over 3 steps or more, at a learning rate of at most 1e-4")

    def on_step(step: "StepReport") -> None:
        if lines:
            say(f"  step {step.step + 1:>3}  loss {step.loss:.4f}  {step.iteration_s:.3f} s")

    report: CheckReport | None = None
    if check:
        report = check_plan(played, settings, on_step=on_step)
        measured = report.run
    else:
        measured = run_plan(played, settings, on_step=on_step)
    for warning in measured.warnings:
        show("warning", warning)
    if as_json:
        say_json(_document(plan, played, measured, report))
    elif lines:
        say(_summary(plan, played, measured))
        if report is not None:
            say(_verdict(report))
    if report is not None and not report.passed:
        show("error", f"the run differs from one process: {report.failures[0]}{_more(report)}")
        if dtype != "fp64":
            show("hint", "after the first step rounding can do that in fp32: --dtype fp64 tells it from a fault")
        click.get_current_context().exit(1)


def _scaled(plan: "Plan", given: dict[str, int]) -> "Plan":
    """The plan with a small model where sizes are given, or where the model is large."""
    from hetsched.executor import scaled_plan

    if not given and plan.model.parameters <= LARGE_PARAMETERS:
        return plan
    sizes: dict[str, Any] = {"hidden_size": HIDDEN_SIZE, "seq_len": SEQ_LEN, "vocab_size": VOCAB_SIZE, **given}
    return scaled_plan(plan, **sizes)


def _announcement(plan: "Plan", played: "Plan") -> str:
    processes = sum(len(pipeline.devices) for pipeline in played.pipelines)
    model, job = played.model, played.workload
    scaled = "" if played is plan else f" (scaled down from {plan.model.name}; the layers stay where the plan has them)"
    return (
        f"{processes} processes train {model.name}{scaled}:\n"
        f"  {model.num_layers} layers of hidden size {model.hidden_size}, {model.parameters:,} parameters, "
        f"{job.global_batch} sequences of {job.seq_len} tokens a step"
    )


def _sent_bytes(measured: "RunReport") -> dict[str, float]:
    """Bytes that all processes sent in the last iteration."""
    last = [steps[-1] for steps in measured.ranks]
    kinds = ("activation_bytes", "activation_grad_bytes", "grad_bytes")
    return {kind: sum(getattr(step, kind) for step in last) for kind in kinds}


def _summary(plan: "Plan", played: "Plan", measured: "RunReport") -> str:
    predicted = plan.predicted.get("iteration_s")
    lines = [
        f"measured   {measured.mean_iteration_s:.3f} s an iteration, {measured.tokens_per_s:,.0f} tokens/s "
        f"({measured.device}, {measured.dtype})"
    ]
    if isinstance(predicted, int | float):
        lines.append(f"predicted  {predicted:.3f} s an iteration{_caveat(plan, played, measured)}")
    return "\n".join(lines)


def _caveat(plan: "Plan", played: "Plan", measured: "RunReport") -> str:
    if played is not plan:
        return f" for {plan.model.name} in full, on the planned GPUs:\n           not to be compared with this run"
    if measured.device == "cpu":
        return " on the planned GPUs: not to be compared with\n           this run on CPUs"
    return " on the planned GPUs and network"


def _verdict(report: "CheckReport") -> str:
    verdict = "equal to one process" if report.passed else "NOT equal to one process"
    return (
        f"check      {verdict}: losses within {report.loss_difference:.1e}, "
        f"{report.copies} gradients within {report.gradient_difference:.1e}"
    )


def _more(report: "CheckReport") -> str:
    more = len(report.failures) - 1
    return f" (and {more} more)" if more else ""


def _document(plan: "Plan", played: "Plan", measured: "RunReport", report: "CheckReport | None") -> dict[str, Any]:
    document: dict[str, Any] = {
        "losses": list(measured.losses),
        "iteration_s": list(measured.iteration_s),
        "mean_iteration_s": measured.mean_iteration_s,
        "tokens_per_s": measured.tokens_per_s,
        "device": measured.device,
        "dtype": measured.dtype,
        "scaled_down": played is not plan,
        "sent_bytes": _sent_bytes(measured),
        "predicted_iteration_s": plan.predicted.get("iteration_s"),
    }
    if report is not None:
        document["check"] = {
            "passed": report.passed,
            "loss_difference": report.loss_difference,
            "gradient_difference": report.gradient_difference,
            "failures": list(report.failures),
        }
    return document
