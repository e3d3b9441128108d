"""Figures of disaggregated serving, in HexGen-2's shape of setting (arXiv 2502.07903). Fixed work; run by hand:

    python tests/benchmarks/bench_disaggregated.py table [seeds] [model] [class]
    python tests/benchmarks/bench_disaggregated.py exact [instances]
    python tests/benchmarks/bench_disaggregated.py scale [gpus ...]

`table`: requests of the Azure traces of 2023 (conversation and code together) by HexGen-2's four classes, OPT-30B and
Llama-2-70B. Throughput: requests/s with all requests at once, while replicas are full. Mean latency: of a whole request
at 70 % of the least throughput of the row, so that all systems see the same load.
`exact`: the whole search against every plan (mode, groups, layouts) of instances of up to six GPUs.
`scale`: CPU seconds of `--mode disaggregated` on mixed clusters of 64 and 320 GPUs in three regions, and what a search
of ten times as many steps finds beyond.
"""

import sys
import time
from pathlib import Path

import numpy as np

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.readers import read_cluster, read_model, read_trace
from hetsched.requests import CLASSES, Requests
from hetsched.serving.choice import mode_of
from hetsched.serving.judge import Judge, Verdict
from hetsched.serving.search import ServingResult, plan_serving
from hetsched.serving_problem import ServingProblem
from hetsched.workload import ServingLoad, TraceUse

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.serving.exhaustive import best_of_all, instance

SPECS = Path(__file__).parents[2] / "cluster_specs"
MODELS = ("opt-30b", "llama-2-70b")
TRACES = ("azure-2023-conv", "azure-2023-code")
LIGHT = 0.7  # of the least throughput: the load at which latencies are compared
FRACTION = 0.92


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def azure(longest: int) -> Requests:
    """Both traces' lengths, arrivals left aside."""
    found = [read_trace(name).within(longest) for name in TRACES]
    inputs, outputs = (
        np.concatenate([getattr(each, name) for each in found]) for name in ("input_tokens", "output_tokens")
    )
    return Requests(np.arange(len(inputs), dtype=float), inputs, outputs, "Azure 2023, conversation and code")


def problem_of(cluster: str, model: str, requests: Requests, mode: str) -> ServingProblem:
    load = ServingLoad(trace=TraceUse(TRACES[0]), dtype="fp16")
    return ServingProblem(read_cluster(SPECS / f"{cluster}.yaml"), read_model(model), load, requests, mode=mode)


def solved(problem: ServingProblem, seed: int) -> ServingResult:
    return plan_serving(problem, None, FRACTION, None, seed=seed)


def mean_latency_s(judge: Judge, verdict: Verdict, rate_per_s: float) -> float:
    return float(np.nanmean(judge.play(verdict.draft, rate_per_s).e2e_s))


def row(model: str, name: str, seed: int) -> None:
    """One model and class: all systems, then what ours gains."""
    requests = azure(min(4096, read_model(model).max_positions)).of_class(name)
    found: dict[str, tuple[ServingProblem, Verdict | None, float]] = {}
    for system, cluster, mode in (
        ("ours, mixed", "hexgen2-mixed", "auto"),
        ("ours, 8 H100", "hexgen2-8xh100", "auto"),
        ("ours, 70 %", "hexgen2-70-percent", "auto"),
    ):
        problem = problem_of(cluster, model, requests, mode)
        began = time.perf_counter()
        result = solved(problem, seed)
        seconds = time.perf_counter() - began
        found[system] = problem, result.best, seconds
        where = system.split(", ")[1]
        for baseline, verdict in result.baselines.items():
            found[f"{baseline}, {where}"] = problem, verdict, 0.0
        genetic = result.modes.get("colocated")
        found[f"genetic co-located, {where}"] = problem, genetic, 0.0
    rates = {system: verdict.rate_per_s for system, (_, verdict, _) in found.items() if verdict is not None}
    light = LIGHT * min(rates.values())
    say(
        f"{model} {name}, seed {seed}: prompts of {requests.mean_input_tokens:.0f}, outputs of "
        f"{requests.mean_output_tokens:.0f} tokens; latency at {light:.2f} requests/s"
    )
    for system, (problem, verdict, seconds) in found.items():
        if verdict is None:
            say(f"  {system:28s} none fits")
            continue
        latency_s = mean_latency_s(Judge(problem, None, seed=seed), verdict, light)
        roles = [pipeline.role for pipeline in verdict.draft.plan.pipelines]
        counts = ", ".join(f"{roles.count(role)} {role}" for role in ("prefill", "decode", "both") if role in roles)
        took = f", planned in {seconds:.0f} s" if seconds else ""
        kind = mode_of(verdict.draft.plan)
        say(f"  {system:28s} {verdict.rate_per_s:7.2f}/s {latency_s:6.2f} s  {kind}: {counts}{took}")
    ours = rates["ours, mixed"]
    rivals = [rates[s] for s in rates if s.endswith(", mixed") and not s.startswith("ours")]
    say(
        f"  ours on mixed: {ours / rates['distserve, 8 H100']:.2f} x distserve on 8 H100, "
        f"{ours / max(rivals):.2f} x the best baseline on the same GPUs; "
        f"on 70 %: {rates['ours, 70 %'] / rates['distserve, 8 H100']:.2f} x"
    )


def table(words: list[str]) -> None:
    seeds = int(words[0]) if words else 3
    models = words[1:2] or list(MODELS)
    for seed in range(seeds):
        for model in models:
            for name in words[2:3] or CLASSES:
                row(model, name, seed)


def exact(words: list[str]) -> None:
    gaps = []
    for seed in range(100, 100 + int(words[0]) if words else 130):
        problem = instance(seed, 6)
        judge = Judge(problem, None)
        optimum, played = best_of_all(problem, judge)
        if optimum is None:
            continue
        found = judge.verdict(solved(problem, 0).best.draft)  # the very same judge
        rate = 0.0 if found is None else found.rate_per_s
        gaps.append(1.0 - rate / optimum.rate_per_s)
        kinds = mode_of(optimum.draft.plan), "nothing" if found is None else mode_of(found.draft.plan)
        say(
            f"instance {seed}: {len(problem.cluster.devices)} GPUs, {kinds[0]}, best of {played} that were simulated, "
            f"found as {kinds[1]}, gap {gaps[-1]:.3f}"
        )
    within = sum(gap <= 0.03 for gap in gaps)
    say(f"{len(gaps)} instances: {within} within 3 %, worst {max(gaps):.3f}, {-min(gaps):.3f} above at most")


def mixed_cluster(gpus: int) -> Cluster:
    """Machines of 8 H100, 8 A100, 4 L40 and 4 A6000 in turn, in three regions: 100 Gbit/s inside, 10 between."""
    kinds = (("H100-SXM-80GB", 8), ("A100-SXM-80GB", 8), ("L40-48GB", 4), ("RTX-A6000-48GB", 4))
    nodes: list[Node] = []
    while sum(len(node.gpus) for node in nodes) < gpus:
        kind, count = kinds[len(nodes) % 4]
        nodes.append(Node(f"n{len(nodes)}", f"r{len(nodes) % 3}", (find_gpu(kind, "benchmark"),) * count))
    near = np.array([[a.region == b.region for b in nodes] for a in nodes])
    bandwidth, latency = np.where(near, 12.5e9, 1.25e9), np.where(near, 5e-5, 5e-3)
    for k, node in enumerate(nodes):
        link = node.gpus[0].link
        if link is not None:
            bandwidth[k, k], latency[k, k] = link.bandwidth_bytes_per_s, link.latency_s
    return Cluster(f"mixed-{gpus}", tuple(nodes), Network(bandwidth, latency))


def scale(words: list[str]) -> None:
    requests = azure(4096).of_class("HPHD")
    for gpus in [int(word) for word in words] or [64, 320]:
        load = ServingLoad(trace=TraceUse(TRACES[0]), dtype="fp16")
        problem = ServingProblem(mixed_cluster(gpus), read_model("llama-2-70b"), load, requests, mode="disaggregated")
        rates = []
        for times in (1.0, 10.0):
            began = time.process_time()
            result = plan_serving(problem, None, FRACTION, None, share=times)
            rates.append(result.best.rate_per_s)
            say(
                f"{gpus} GPUs, {result.steps} steps: {rates[-1]:.2f} requests/s, "
                f"{time.process_time() - began:.0f} CPU-s"
            )
        say(f"  ten times as many steps: {rates[1] / rates[0]:.3f} x")


if __name__ == "__main__":
    {"table": table, "exact": exact, "scale": scale}[sys.argv[1] if len(sys.argv) > 1 else "table"](sys.argv[2:])
