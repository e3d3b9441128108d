"""One rank: `python -m hetsched.executor --plan plan.json`, started by `run_plan` here and by torchrun elsewhere.

The rank comes from RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, the meeting point from MASTER_ADDR and
MASTER_PORT. HETSCHED_NODE, where it is set, must be the plan's node of this rank. Rank 0 writes each step to stdout as
a JSON line; with --output every rank writes its own to DIR/rank-R.jsonl.
"""

import argparse
import datetime
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hetsched.errors import HetschedError
from hetsched.executor.launch import require_torch
from hetsched.executor.limits import check_limits
from hetsched.executor.settings import DEVICES, QUANTISED, RunSettings, StepReport
from hetsched.files import make_folder, read_text, write_text
from hetsched.plan import Plan

Say = Callable[[dict[str, Any]], None]


def main(words: Sequence[str] | None = None) -> int:
    """Run this process's rank; returns the exit code."""
    given = _parser().parse_args(words)
    if given.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    say = _sayer(given.output)
    try:
        _run(given, say)
    except HetschedError as error:
        say({"error": error.message, "hint": error.hint})
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return error.exit_code
    return 0


def _run(given: argparse.Namespace, say: Say) -> None:
    settings = RunSettings(
        steps=given.steps,
        seed=given.seed,
        dtype=given.dtype,
        learning_rate=given.learning_rate,
        text=given.text,
        device=given.device,
        timeout_s=given.timeout_s,
        threads=given.threads,
        epoch_steps=given.epoch_steps,
        quantise=given.quantise,
        cache_gib=given.cache_gib,
        cache_folder=given.cache_folder,
        checkpoint_to=given.checkpoint_to,
        checkpoint_every=given.checkpoint_every,
        resume_from=given.resume_from,
        weights=given.weights,
        save_weights=given.save_weights,
    )
    plan = read_plan(given.plan)
    rank, world_size = _whole("RANK"), _whole("WORLD_SIZE")
    check_place(plan, rank, world_size, os.environ.get("HETSCHED_NODE"))
    for warning in check_limits(plan):
        say({"warning": warning})
    for folder in (settings.checkpoint_to, settings.save_weights):
        if folder is not None:
            make_folder(folder)
    require_torch()
    import torch
    import torch.distributed as dist

    from hetsched.executor.train import choose_target, train

    torch.set_num_threads(settings.threads)
    target = choose_target(plan, settings, _whole("LOCAL_RANK"), _whole("LOCAL_WORLD_SIZE"))
    if target.device.type == "cuda":
        torch.cuda.set_device(target.device)
    say({"device": target.device.type, "dtype": target.dtype_name})
    dist.init_process_group(
        target.backend,
        init_method=given.init_method,
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=settings.timeout_s),
    )

    def report(step: StepReport) -> None:
        say(asdict(step))

    train(plan, settings, target, report, given.gradients_to)
    dist.destroy_process_group()


def read_plan(path: Path) -> Plan:
    """The plan in a JSON file that names its model in full; HetschedError where it is none."""
    try:
        return Plan.from_json(json.loads(read_text(path, "plan")), str(path))
    except json.JSONDecodeError as error:
        raise HetschedError(f"plan {path} is no JSON: {error}", hint="write it with hetsched plan-train -o") from None


def check_place(plan: Plan, rank: int, world_size: int, node: str | None) -> None:
    """HetschedError where the processes that were started are not those of the plan. `node`: where this one stands."""
    nodes = plan.devices_by_node
    places = [name for name, devices in nodes.items() for _ in devices]
    if world_size != len(places):
        raise HetschedError(
            f"run: {world_size} processes were started, the plan has {len(places)} devices",
            hint="start one for each: " + ", ".join(f"{len(d)} on {name}" for name, d in list(nodes.items())[:8]),
        )
    if node is not None and node != places[rank]:
        raise HetschedError(
            f"run: rank {rank} stands on node {node}, the plan has it on {places[rank]}",
            hint="give the nodes the node ranks of the exported scripts",
        )


def _whole(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise HetschedError(
            f"run: the environment has {name}={value!r}, expected a whole number",
            hint="start ranks with torchrun, or with hetsched run",
        )
    return int(value)


def _sayer(output: Path | None) -> Say:
    rank = os.environ.get("RANK", "0")
    path = None if output is None else output / f"rank-{rank}.jsonl"
    if path is not None:
        write_text(path, "")

    def say(what: dict[str, Any]) -> None:
        line = json.dumps(what) + "\n"
        if path is not None:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(line)
        if rank == "0":
            sys.stdout.write(line)
            sys.stdout.flush()

    return say


def _end_with_stdin() -> None:
    while os.read(0, 4096):  # not sys.stdin, which would be locked when the interpreter ends
        pass
    os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hetsched.executor", description="One rank of a training plan.")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", help="bf16, fp32 or fp64; default: fp32 on CPUs, the plan's on GPUs")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--text", type=Path, help="a text file to train on; default: a bundled sample")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--timeout-s", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=1, help="of torch, per process")
    parser.add_argument("--epoch-steps", type=int, help="repeat so many batches; default: new samples in every step")
    parser.add_argument(
        "--quantise", choices=QUANTISED, default="changes", help="of activations in plans that compress"
    )
    parser.add_argument("--cache-gib", type=float, default=4.0, help="the most that a rank keeps of activations")
    parser.add_argument("--cache-folder", type=Path, metavar="DIR", help="keep them in files there, not in memory")
    parser.add_argument("--checkpoint-to", type=Path, metavar="DIR", help="write checkpoints there, one at the end")
    parser.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="and after so many steps")
    parser.add_argument("--resume-from", type=Path, metavar="DIR", help="go on from the latest checkpoint there")
    parser.add_argument("--weights", type=Path, help="a Hugging Face folder, or safetensors file, to start from")
    parser.add_argument("--save-weights", type=Path, metavar="DIR", help="write the last checkpoint's there likewise")
    parser.add_argument("--init-method", default="env://", help="default: meet at MASTER_ADDR:MASTER_PORT")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write rank-R.jsonl there")
    parser.add_argument("--gradients-to", type=Path, metavar="DIR", help="write gradients there, first and last step")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when stdin is closed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
