"""The executor against `torch.distributed.pipelining`: `python -m tests.benchmarks.bench_overhead`.

One pipeline of two stages of one device, 1F1B. The same processes train it both ways, a step each in turn
(`bench_overhead_rank`), so that both meet the same machine. Prints what steps take, and the median ratio of a step to
the step before it. Losses must be equal.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from hetsched.executor import RunSettings, run_plan
from hetsched.model import ModelSpec
from hetsched.plan import Pipeline, Plan, Stage
from hetsched.workload import TrainingJob
from tests.benchmarks.bench_overhead_rank import TIMES_TO

MODEL = ModelSpec.from_json(
    {
        "name": "small-llama",
        "num_layers": 4,
        "hidden_size": 256,
        "num_heads": 4,
        "num_kv_heads": 4,
        "ffn_size": 512,
        "vocab_size": 256,
        "max_positions": 128,
    }
)
JOB = TrainingJob(global_batch=16, seq_len=128, micro_batch=2, dtype="fp32")
PLAN = Plan(MODEL, JOB, (Pipeline("p0", (Stage((0, 2), ("n0/0",)), Stage((2, 4), ("n1/0",))), 8),))
WARM, KEYS = 4, ("ours_s", "torch_s")
RANK = (sys.executable, "-m", "tests.benchmarks.bench_overhead_rank")


def measure(steps: int) -> list[tuple[float, float]]:
    """(seconds of the executor, of torch) of each step, on the slower rank; AssertionError where losses differ."""
    settings = RunSettings(steps=WARM + steps + 1, device="cpu", dtype="fp32", timeout_s=3600)
    with tempfile.TemporaryDirectory() as name:
        os.environ[TIMES_TO] = name
        report = run_plan(PLAN, settings, program=RANK)
        ranks = [json.loads((Path(name) / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    apart = [abs(own - other) for own, other in zip(report.losses, ranks[1]["losses"], strict=True)]
    if max(apart) > 1e-3:
        raise AssertionError(f"losses differ by up to {max(apart)}")
    ours, alone = ([max(both) for both in zip(*(rank[key] for rank in ranks), strict=True)] for key in KEYS)
    return list(zip(ours, alone, strict=False))[WARM:]  # the executor's last step has no end


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of each")
    found = measure(parser.parse_args().steps)
    ours, alone = (statistics.median(times) for times in zip(*found, strict=True))
    low, middle, high = statistics.quantiles([own / other for own, other in found], n=4)
    sys.stdout.write(f"a step: the executor {ours * 1e3:.1f} ms, torch alone {alone * 1e3:.1f} ms (medians)\n")
    sys.stdout.write(f"the executor takes {middle:.3f} times as long (half of all pairs {low:.3f} to {high:.3f})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
