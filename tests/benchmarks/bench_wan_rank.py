"""A rank of a plan in its node's namespace, on an emulated device: what `run_plan` starts here.

The processor computes every pass as always, but a pass takes as long as PARTS says: the device is as fast as that,
whatever else this machine does. (That is why PARTS are about twice what one core needs.) How fast it is is measured, by
what `hetsched probe --compute` runs: with --probe FILE this program writes the profile of the bench's model.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hetsched.executor.__main__ import main, read_plan
from tests.benchmarks.bench_wan_network import namespace

PARTS = {  # [forward, backward, update] in s
    "embedding_s": [0.001, 0.001, 0.0],
    "block_s": [0.010, 0.016, 0.0],
    "head_s": [0.004, 0.006, 0.0],
}
INSIDE, PROBE = "--inside", "--probe"
PRIORITY = 10  # real-time: before what else runs here, and after the network


def enter_and_start(words: list[str]) -> None:
    """Become this program in the namespace of the rank's node."""
    plan = read_plan(Path(words[words.index("--plan") + 1]))
    nodes = list(plan.devices_by_node)
    places = [node for node, devices in plan.devices_by_node.items() for _ in devices]
    numbers = [int(place) for place in os.environ["WAN_NODES"].split(",")]  # of the plan's nodes, in its order
    where = namespace(numbers[nodes.index(places[int(os.environ["RANK"])])])
    first = ["ip", "netns", "exec", where]
    os.execvp("ip", [*first, sys.executable, "-m", "tests.benchmarks.bench_wan_rank", INSIDE, *words])  # noqa: S606


def emulate_the_device() -> None:
    """Let a stage's passes take what PARTS says."""
    import torch

    from hetsched.executor.model import Transformer

    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    held: list[float] = []  # how long a backward pass of this rank's stage takes

    def pass_s(stage: Any, which: int) -> float:
        parts = [("block_s", len(stage.blocks)), ("embedding_s", stage.embedding is not None)]
        parts.append(("head_s", stage.head is not None))
        return sum(PARTS[part][which] * count for part, count in parts)

    def paced(right: Callable[..., Any], seconds: Callable[..., float]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            end = time.perf_counter() + seconds(*given)
            found = right(*given, **named)
            time.sleep(max(end - time.perf_counter(), 0.0))
            return found

        return call

    def forward_s(stage: Any, *_: Any) -> float:
        held[:] = [pass_s(stage, 1)]
        return pass_s(stage, 0)

    Transformer.forward = paced(Transformer.forward, forward_s)  # type: ignore[method-assign]
    torch.autograd.backward = paced(torch.autograd.backward, lambda *_: held[0])


def probe(path: Path) -> None:
    """Write the emulated device's profile."""
    from hetsched.executor import RunSettings
    from hetsched.executor.calibrate import measure_profile
    from hetsched.files import write_text
    from tests.benchmarks.bench_wan import JOB, KIND, MODEL

    emulate_the_device()
    profile = measure_profile(MODEL, JOB, [JOB.micro_batch], KIND, RunSettings(device="cpu", dtype=JOB.dtype))
    write_text(path, json.dumps(profile))


if __name__ == "__main__":
    if sys.argv[1] == PROBE:
        probe(Path(sys.argv[2]))
    elif sys.argv[1] == INSIDE:
        emulate_the_device()
        sys.exit(main(sys.argv[2:]))
    else:
        enter_and_start(sys.argv[1:])
