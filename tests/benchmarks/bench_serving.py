"""Ten replicas of Llama-2-13B serve the Azure conversation trace: requests simulated a second on one core.

    python tests/benchmarks/bench_serving.py [requests]

Four replicas on two A100-80GB, three on two RTX-3090 in two stages, three on four V100 in two stages of two; at a light
and at a heavy load, co-located by the plan's shares and least loaded, and with prefill and decode apart.
"""

import sys
from time import process_time

import numpy as np

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.plan import Route, ServingOptions, ServingPipeline, ServingPlan, Stage, equal_routes
from hetsched.readers import read_trace
from hetsched.simulate.serving.run import Settings, simulate_serving
from hetsched.workload import ServingLoad, TraceUse

REQUESTS = 10_000
KINDS = ("A100-SXM-80GB", "RTX-3090-24GB", "V100-SXM2-16GB")
COUNTS = (2, 2, 4)
SHARES = (4, 1, 1)
CASES = (  # name, requests/s, routing, chunked prefill, whether prefill and decode are apart
    ("light, by shares", 2.0, "shares", 0, False),
    ("heavy, by shares", 15.0, "shares", 0, False),
    ("heavy, least loaded", 15.0, "least-loaded", 0, False),
    ("heavy, chunked prefill", 15.0, "shares", 512, False),
    ("apart, by shares", 3.0, "shares", 0, True),
)


def main() -> None:
    """Print a line for each case."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    use = TraceUse("azure-2023-conv", max_input_tokens=2048, max_output_tokens=1024)
    trace = read_trace(use.trace).used(use).first(count)
    cluster = ten_nodes()
    for name, rate, routing, chunk, apart in CASES:
        plan, requests = ten_replicas(chunk, apart), trace.at_rate(rate)
        start = process_time()
        run = simulate_serving(cluster, plan, requests, Settings(routing))
        taken_s = process_time() - start
        steps = sum(load.steps for load in run.loads)
        print(  # noqa: T201
            f"{name:<24} {len(requests) / taken_s:>8,.0f} requests/s  {taken_s:6.2f} s  {steps:>9,} steps  "
            f"TTFT {run.ttft_s.mean() * 1e3:6.0f} ms  TPOT {np.nanmean(run.tpot_s) * 1e3:5.1f} ms"
        )


def ten_nodes() -> Cluster:
    """A node a replica; 10 Gbit/s between any two."""
    nodes = tuple(
        Node(f"n{k}", "here", (find_gpu(KINDS[k % 3], "benchmark"),) * COUNTS[k % 3], usd_per_hour=1.0)
        for k in range(10)
    )
    bandwidth, latency = np.full((10, 10), 1.25e9), np.full((10, 10), 5e-4)
    np.fill_diagonal(bandwidth, 5e10)
    np.fill_diagonal(latency, 5e-6)
    return Cluster("ten", nodes, Network(bandwidth, latency))


def ten_replicas(chunk: int, apart: bool) -> ServingPlan:
    """The plan; apart: the first three prefill, the others decode."""
    model = find_model("llama-2-13b")
    assert model is not None
    blocks, pipelines = model.num_layers, []
    for k in range(10):
        names = [f"n{k}/{index}" for index in range(COUNTS[k % 3])]
        half = len(names) // 2
        stages: tuple[Stage, ...] = (Stage((0, blocks), tuple(names)),)
        if k % 3:
            stages = (Stage((0, blocks // 2), tuple(names[:half])), Stage((blocks // 2, blocks), tuple(names[half:])))
        role = "both" if not apart else "prefill" if k < 3 else "decode"
        pipelines.append(ServingPipeline(f"r{k}", stages, 64, role))
    shares = [SHARES[k % 3] for k in range(10)]
    routes = tuple(Route(None, f"r{k}", share / sum(shares)) for k, share in enumerate(shares))
    return ServingPlan(
        model,
        ServingLoad(),
        tuple(pipelines),
        equal_routes(pipelines) if apart else routes,
        ServingOptions(chunked_prefill_tokens=chunk),
    )


if __name__ == "__main__":
    main()
