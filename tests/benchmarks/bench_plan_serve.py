"""Figures of `plan-serve`: HexGen's setting, and Helix's 24 machines. Fixed work; run by hand:

    python tests/benchmarks/bench_plan_serve.py [rates|scales|alone|helix] [seeds]

HexGen (arXiv 2311.11514): Llama-2-70B, prompts of 512 tokens, outputs of 32, 64 and 128, on hexgen-58 and on its rival
at the same price. `rates`: the highest rate at which 99 % of the requests are within 5 times the reference latency;
`scales`: the smallest multiple that 99 % keep at 4 requests/s. `alone`: the rates of engines without batching. The
paper's claim (up to twice the rate of 16 A100s) holds in kind for `alone` (1.3 to 1.7 times, seed 0) and not for
`rates`, where prompts count most and wait for all-reduces over PCI Express (0.55 to 0.83 times, three seeds). Helix
(arXiv 2406.01566): output tokens/s with all requests at once, of the Azure conversation trace without prompts over
2,048 and outputs over 1,024 tokens.
"""

import sys
import time
from math import inf
from pathlib import Path

import numpy as np

from hetsched.catalog import find_gpu
from hetsched.cost.serving.reference import REFERENCE_GPU, reference_replica
from hetsched.readers import read_cluster, read_model, read_trace
from hetsched.requests import Requests, sampled
from hetsched.serving.judge import Judge
from hetsched.serving.search import ServingResult, plan_serving
from hetsched.serving_problem import MOST_BATCH, ServingProblem
from hetsched.solvers.serving import SERVING_SOLVERS
from hetsched.solvers.serving.workshop import Workshop
from hetsched.workload import Limit, ServingLoad, Slo, TraceUse

SPECS = Path(__file__).parents[2] / "cluster_specs"
MODEL = read_model("llama-2-70b")
REFERENCE = reference_replica(find_gpu(REFERENCE_GPU, "benchmark"), MODEL)
SCALE, RATE = 5.0, 4.0
MOST_TIGHTER = 4
CLUSTERS, OUTPUTS = ("hexgen-58", "hexgen-16xa100"), (32, 64, 128)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def solved(
    cluster: str,
    load: ServingLoad,
    requests: Requests,
    objective: str,
    seed: int,
    solver: str,
    most_batch: int = MOST_BATCH,
) -> ServingResult:
    spec = read_cluster(SPECS / f"{cluster}.yaml")
    problem = ServingProblem(spec, MODEL, load, requests, objective=objective, mode="colocated", most_batch=most_batch)
    return plan_serving(problem, SERVING_SOLVERS[solver], 0.92, REFERENCE, seed=seed)


def smallest_scales(cluster: str, osl: int, seed: int) -> tuple[float, float, float]:
    """(smallest SLO scale that the search's plan keeps, the baseline's, most CPU seconds of a plan).

    The limit that a search is given becomes tighter, to what its best plan keeps, as long as that is worth a hundredth.
    """
    limit, mine, theirs, longest = SCALE, inf, inf, 0.0
    for _ in range(MOST_TIGHTER):
        load = ServingLoad(512, osl, RATE, dtype="fp16", slo=Slo(scale=Limit(limit)))
        requests = sampled(load, 1000, np.random.default_rng(seed), MODEL.max_positions)
        began = time.process_time()
        result = solved(cluster, load, requests, "attainment", seed, "genetic")
        longest = max(longest, time.process_time() - began)
        before = mine
        mine = min(mine, result.best.run.reached("scale", 99.0, REFERENCE))
        if result.baseline is not None:
            theirs = min(theirs, result.baseline.run.reached("scale", 99.0, REFERENCE))
        limit = min(mine, theirs)
        if mine > before * 0.99:
            break
    return mine, theirs, longest


def highest_rates(cluster: str, osl: int, seed: int, most_batch: int = MOST_BATCH) -> tuple[float, float, float]:
    """(requests/s of the search's plan, of the baseline's, CPU seconds of the plan)."""
    load = ServingLoad(512, osl, dtype="fp16", slo=Slo(scale=Limit(SCALE)))
    requests = sampled(load, 1000, np.random.default_rng(seed), MODEL.max_positions)
    began = time.process_time()
    result = solved(cluster, load, requests, "throughput", seed, "genetic", most_batch)
    seconds = time.process_time() - began
    return result.best.rate_per_s, 0.0 if result.baseline is None else result.baseline.rate_per_s, seconds


def rates(seeds: int) -> None:
    for seed in range(seeds):
        for osl in OUTPUTS:
            for cluster in CLUSTERS:
                mine, theirs, seconds = highest_rates(cluster, osl, seed)
                which = f"seed {seed} output {osl:3d}  {cluster:16s}"
                say(f"{which} rate {mine:6.2f} uniform {theirs:6.2f} {seconds:4.0f} s")


def scales(seeds: int) -> None:
    for seed in range(seeds):
        for osl in OUTPUTS:
            for cluster in CLUSTERS:
                mine, theirs, longest = smallest_scales(cluster, osl, seed)
                which = f"seed {seed} output {osl:3d}  {cluster:16s}"
                say(f"{which} scale {mine:5.2f} uniform {theirs:5.2f}, at most {longest:.0f} s a plan")


def alone(seeds: int) -> None:
    """As an engine without batching: a stage works on one request at a time."""
    for seed in range(seeds):
        for osl in OUTPUTS:
            for cluster in CLUSTERS:
                mine, theirs, _ = highest_rates(cluster, osl, seed, most_batch=1)
                say(f"seed {seed} output {osl:3d}  {cluster:16s} one at a time {mine:6.2f} uniform {theirs:6.2f}")


def helix(seeds: int) -> None:
    use = TraceUse("azure-2023-conv", max_input_tokens=2048, max_output_tokens=1024)
    requests = read_trace(use.trace).used(use)
    load = ServingLoad(trace=use, dtype="fp16")
    cluster = read_cluster(SPECS / "a100-l4-t4-24.yaml")
    problem = ServingProblem(cluster, MODEL, load, requests)
    workshop = Workshop(problem, 0.92, None)
    chain = workshop.layouts.busiest(range(24), 256.0, 16.0)
    for seed in range(seeds):
        began = time.process_time()
        result = solved("a100-l4-t4-24", load, requests, "throughput", seed, "genetic")
        seconds = time.process_time() - began
        single = (
            None
            if chain is None
            else Judge(problem, None, seed=seed).verdict(workshop.assembled([workshop.made(chain)]))
        )
        for name, verdict in (("genetic", result.best), ("one chain", single), ("uniform", result.baseline)):
            if verdict is not None:
                tokens = verdict.rate_per_s * requests.mean_output_tokens
                say(f"{name:12s} {tokens:7.0f} tokens/s, {len(verdict.draft.replicas)} replicas, {seconds:.1f} s")


BENCHES = {"helix": helix, "rates": rates, "scales": scales, "alone": alone}

if __name__ == "__main__":
    wanted = sys.argv[1:2] or list(BENCHES)
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    for name in wanted:
        BENCHES[name](repeats)
