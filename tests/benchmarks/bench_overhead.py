"""The executor against `torch.distributed.pipelining`: `python -m tests.benchmarks.bench_overhead`.

One pipeline of two stages of one device, 1F1B, trained by the executor and by a program of torch's own parts
(`bench_overhead_rank`), in turn; which is first changes from pair to pair. Prints the median iteration of each run, and
the ratio of each pair. Losses must be equal.
"""

import argparse
import statistics
import sys

from hetsched.executor import RunSettings, run_plan
from hetsched.model import ModelSpec
from hetsched.plan import Pipeline, Plan, Stage
from hetsched.workload import TrainingJob
from tests.benchmarks.bench_overhead_rank import OURS

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
WARM = 3
RANK = (sys.executable, "-m", "tests.benchmarks.bench_overhead_rank")


def measure(ours: bool, steps: int) -> tuple[float, list[float]]:
    """Median seconds of an iteration on the slower rank, and the losses."""
    settings = RunSettings(steps=WARM + steps, device="cpu", dtype="fp32")
    report = run_plan(PLAN, settings, program=(*RANK, OURS) if ours else RANK)
    median = max(statistics.median(step.iteration_s for step in steps[WARM:]) for steps in report.ranks)
    return median, [step.loss for step in report.ranks[-1]]


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="counted of each run")
    given = parser.parse_args()
    ratios = []
    sys.stdout.write("pair   executor  pipelining   ratio\n")
    for pair in range(given.pairs):
        order = (True, False) if pair % 2 == 0 else (False, True)
        found = {ours: measure(ours, given.steps) for ours in order}
        (own_s, own), (torch_s, other) = found[True], found[False]
        if max(abs(a - b) for a, b in zip(own, other, strict=True)) > 1e-3:
            raise AssertionError(f"losses differ: {own} and {other}")
        ratios.append(own_s / torch_s)
        sys.stdout.write(f"{pair + 1:>4} {own_s * 1e3:8.1f} ms {torch_s * 1e3:8.1f} ms {ratios[-1]:7.3f}\n")
        sys.stdout.flush()
    sys.stdout.write(f"the executor takes {statistics.median(ratios):.3f} times as long (median of pairs)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
