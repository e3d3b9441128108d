"""Starts a plan's ranks as processes of this machine, watches them, and gathers what they measured."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hetsched.errors import HetschedError
from hetsched.executor.limits import check_limits
from hetsched.executor.settings import CheckReport, RunReport, RunSettings, StepReport
from hetsched.files import read_text, write_text
from hetsched.plan import Compression, Plan

POLL_S = 0.05
GRACE_S = 0.3  # for the others to end too, so that the cause can be told from its consequences
SHOWN_LINES = 8
RANK_PROGRAM = (sys.executable, "-m", "hetsched.executor")
LEAST_CHECKED_STEPS = 3
HIGHEST_CHECKED_LEARNING_RATE = 1e-4


def run_plan(
    plan: Plan,
    settings: RunSettings | None = None,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    gradients_to: Path | None = None,
    program: Sequence[str] = RANK_PROGRAM,
) -> RunReport:
    """Train `plan` with one process a device on this machine.

    on_step: called with rank 0's report of each step as it ends. gradients_to: a folder where the ranks leave their
    gradients of the first and last step. program: what is started for each rank.
    Raises HetschedError where torch is missing, the plan can't be executed by this version, a rank ends early (with
    its device and its last words) or the time is up. Whatever happens, no process is left behind.
    """
    settings = settings or RunSettings()
    require_torch()
    warnings = check_limits(plan)
    devices = tuple(device for devices in plan.devices_by_node.values() for device in devices)
    with tempfile.TemporaryDirectory(prefix="hetsched-run-") as name:
        folder = Path(name)
        write_text(folder / "plan.json", json.dumps(plan.to_json()))
        command = [*program, *arguments(settings, folder, gradients_to)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(len(devices)):
                processes.append(_start(command, rank, len(devices), settings, folder))
            _watch(processes, devices, settings, folder, on_step)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        return _gather(plan, devices, folder, warnings)


def check_plan(
    plan: Plan,
    settings: RunSettings | None = None,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    program: Sequence[str] = RANK_PROGRAM,
) -> CheckReport:
    """Run `plan` for at least 3 steps and compare losses and all gradients with one process.

    In fp32, or in fp64 where that is asked for, with a millionth of the tolerances.
    The learning rate is at most 1e-4: much above it two equal runs that only add up in another order grow apart within
    ten steps, since AdamW turns the rounding of a tiny gradient into a full step.

    Raises what `run_plan` raises; a run that computes something else is a report with `failures`, not an exception.
    """
    if plan.options.compression != Compression():
        raise HetschedError(
            "run --check: the plan compresses messages, so it does not compute what one process does",
            hint="set the three bits under options.compression to 16 to check all else",
        )
    settings = settings or RunSettings()
    if settings.resume_from is not None or settings.weights is not None:
        raise HetschedError(
            "run --check: it compares with one process from the first step on",
            hint="check without a checkpoint or weights to start from",
        )
    settings = replace(
        settings,
        dtype="fp64" if settings.dtype == "fp64" else "fp32",
        steps=max(settings.steps, LEAST_CHECKED_STEPS),
        learning_rate=min(settings.learning_rate, HIGHEST_CHECKED_LEARNING_RATE),
    )
    with tempfile.TemporaryDirectory(prefix="hetsched-check-") as name:
        folder = Path(name)
        run = run_plan(plan, settings, on_step=on_step, gradients_to=folder, program=program)
        from hetsched.executor.check import compare

        return compare(plan, settings, run, folder)


def require_torch() -> None:
    """HetschedError that says how to install torch, where it is missing."""
    if importlib.util.find_spec("torch") is None:
        raise HetschedError("the executor needs torch", hint='pip install "hetsched[executor]"')


def arguments(settings: RunSettings, folder: Path, gradients_to: Path | None) -> list[str]:
    """The command line of a rank of a local run; `folder` holds the plan and takes what the ranks say."""
    options = {
        "--plan": folder / "plan.json",
        "--output": folder,
        "--init-method": f"file://{folder / 'store'}",
        "--steps": settings.steps,
        "--seed": settings.seed,
        "--dtype": settings.dtype,
        "--learning-rate": settings.learning_rate,
        "--text": settings.text,
        "--device": settings.device,
        "--timeout-s": settings.timeout_s,
        "--threads": settings.threads,
        "--epoch-steps": settings.epoch_steps,
        "--quantise": settings.quantise,
        "--cache-gib": settings.cache_gib,
        "--cache-folder": settings.cache_folder,
        "--checkpoint-to": settings.checkpoint_to,
        "--checkpoint-every": settings.checkpoint_every,
        "--resume-from": settings.resume_from,
        "--weights": settings.weights,
        "--save-weights": settings.save_weights,
        "--gradients-to": gradients_to,
    }
    options = {option: value.resolve() if isinstance(value, Path) else value for option, value in options.items()}
    given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    return [*given, "--end-with-stdin"]


def _start(
    command: Sequence[str], rank: int, world_size: int, settings: RunSettings, folder: Path
) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment.pop("HETSCHED_NODE", None)
    environment |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": str(settings.threads),
    }
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with open(folder / f"rank-{rank}.err", "wb") as errors:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,  # closed with this process, however it ends: the rank's sign to end too
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for this process, which ends the ranks
        )


def _watch(
    processes: Sequence[subprocess.Popen[bytes]],
    devices: Sequence[str],
    settings: RunSettings,
    folder: Path,
    on_step: Callable[[StepReport], None] | None,
) -> None:
    deadline = time.monotonic() + settings.timeout_s
    told = 0
    while True:
        codes = [process.poll() for process in processes]
        if on_step is not None:
            for step in _read_rank(folder, 0)[1][told:]:
                told += 1
                on_step(step)
        if any(codes):
            time.sleep(GRACE_S)
            raise _failure([process.poll() for process in processes], devices, folder)
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            late = [devices[rank] for rank, code in enumerate(codes) if code is None]
            raise HetschedError(
                f"run: not done after {settings.timeout_s:g} s; still running: {', '.join(late[:8])}",
                hint="give it more time, fewer steps or a smaller model",
            )
        time.sleep(POLL_S)


def _failure(codes: Sequence[int | None], devices: Sequence[str], folder: Path) -> HetschedError:
    """The error of the rank that failed first: its own message, else a signal, else what is no lost connection."""

    def consequence(rank: int) -> tuple[bool, bool, bool]:
        said = _last_words(folder, rank)
        return "error" not in _read_rank(folder, rank)[0], (codes[rank] or 0) > 0, "onnection" in said

    rank = min((rank for rank, code in enumerate(codes) if code), key=consequence)
    notes = _read_rank(folder, rank)[0]
    who, code = f"rank {rank} ({devices[rank]})", codes[rank] or 0
    if "error" in notes:
        return HetschedError(f"{who}: {notes['error']}", hint=str(notes.get("hint", "")))
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    said = _last_words(folder, rank)
    return HetschedError(
        f"run: {who} {how}" + (f"; it said last:\n{said}" if said else ""),
        hint="signal 9 is often the system out of memory: scale the model down" if code == -9 else "",
    )


def _last_words(folder: Path, rank: int) -> str:
    lines = (folder / f"rank-{rank}.err").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-SHOWN_LINES:])


def _read_rank(folder: Path, rank: int) -> tuple[dict[str, Any], list[StepReport]]:
    """What a rank has said so far: notes (`device`, `dtype`, `error`, `hint`) and its steps."""
    notes: dict[str, Any] = {}
    steps: list[StepReport] = []
    path = folder / f"rank-{rank}.jsonl"
    if path.exists():
        for line in read_text(path, "rank file").splitlines(keepends=True):
            if line.endswith("\n"):  # the last may be half written
                said = json.loads(line)
                if "step" in said:
                    steps.append(StepReport(**said))
                else:
                    notes |= said
    return notes, steps


def _gather(plan: Plan, devices: tuple[str, ...], folder: Path, warnings: tuple[str, ...]) -> RunReport:
    said = [_read_rank(folder, rank) for rank in range(len(devices))]
    ranks = tuple(tuple(steps) for _, steps in said)
    iteration_s = tuple(max(step.iteration_s for step in together) for together in zip(*ranks, strict=True))
    mean_s = max(fmean([step.iteration_s for step in steps[1:] or steps]) for steps in ranks)
    return RunReport(
        losses=tuple(step.loss for step in ranks[0]),
        iteration_s=iteration_s,
        mean_iteration_s=mean_s,
        tokens_per_s=plan.workload.tokens / mean_s,
        dtype=str(said[0][0]["dtype"]),
        device=str(said[0][0]["device"]),
        devices=devices,
        ranks=ranks,
        warnings=warnings,
    )
