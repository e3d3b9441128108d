"""What hands requests on from prefill to decode servers: for each route of a plan a router that knows but these two.

SGLang's router and vLLM's choose the prefill and the decode server of a request each by itself, without weights. One
that has one of each has no choice, so that a route's share is kept by whoever shares requests among the routers. They
hold no state but the requests under way.
"""

from dataclasses import dataclass

from hetsched.plan import ServingPlan

LOCAL = "127.0.0.1"
FIRST_PORT, FIRST_METRICS_PORT = 9000, 29000  # of the routers, on the machine where all of them run
FIRST_BOOTSTRAP_PORT = 8998  # of the first prefill server on a node: where SGLang's decode servers meet it
# Of a script: what it started ends when it does.
ENDS_TOGETHER = """pids=
stop() {
    trap - INT TERM EXIT
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap stop INT TERM EXIT
"""


@dataclass(frozen=True, slots=True)
class Handover:
    """A route with a router of its own; share: of all requests."""

    source: str
    target: str
    share: float
    port: int
    metrics_port: int


def routes_of(plan: ServingPlan) -> list[Handover]:
    """The routes from prefill replicas that carry something, in the plan's order."""
    entry = plan.shares(None)
    found = [
        (route.source, route.target, entry.get(route.source, 0.0) * route.share)
        for route in plan.routes
        if route.source is not None
    ]
    return [
        Handover(source, target, share, FIRST_PORT + k, FIRST_METRICS_PORT + k)
        for k, (source, target, share) in enumerate(row for row in found if row[2] > 0.0)
    ]


def addresses(plan: ServingPlan, port: int) -> dict[str, str]:
    """{pipeline: host:port}: the node of its first GPU; ports from `port` on, for each node."""
    return {name: f"{node}:{port + number}" for name, (node, number) in _places(plan).items()}


def bootstrap_ports(plan: ServingPlan) -> dict[str, int]:
    """{prefill pipeline: port}: unequal on each node."""
    places = _places(plan)
    return {p.name: FIRST_BOOTSTRAP_PORT + places[p.name][1] for p in plan.pipelines if p.role == "prefill"}


def _places(plan: ServingPlan) -> dict[str, tuple[str, int]]:
    """{pipeline: (node of its first GPU, how many pipelines before it start there)}."""
    used: dict[str, int] = {}
    found = {}
    for pipeline in plan.pipelines:
        node = pipeline.devices[0].rpartition("/")[0]
        found[pipeline.name] = node, used.get(node, 0)
        used[node] = used.get(node, 0) + 1
    return found


def route_table(plan: ServingPlan) -> list[str]:
    """A line for each route."""
    return [
        f"  {LOCAL}:{route.port}  {route.source} -> {route.target}  {route.share:.2%} of the requests"
        for route in routes_of(plan)
    ]


def handover_script(plan: ServingPlan, address: dict[str, str]) -> str:
    """A POSIX shell script that starts all routers and waits for them."""
    bootstrap = bootstrap_ports(plan)
    calls = "\n".join(
        f"route {route.port} {route.metrics_port} http://{address[route.source]} {bootstrap[route.source]} "
        f"http://{address[route.target]}  # {route.source} -> {route.target}, {route.share:.2%}"
        for route in routes_of(plan)
    )
    return f"""#!/bin/sh
# A router for each route of the plan. PD_ROUTER=sglang or PD_ROUTER=vllm says whose servers they are in front of.
set -eu
PD_ROUTER="${{PD_ROUTER:-sglang}}"
{ENDS_TOGETHER}
# port, port of its figures, prefill server, its bootstrap port, decode server
route() {{
    case "$PD_ROUTER" in
    sglang)
        python3 -m sglang_router.launch_router --pd-disaggregation --policy round_robin --host {LOCAL} --port "$1" \\
            --prometheus-port "$2" --prefill "$3" "$4" --decode "$5" &
        ;;
    vllm)
        vllm-router --vllm-pd-disaggregation --kv-connector nixl --policy round_robin --host {LOCAL} --port "$1" \\
            --prometheus-port "$2" --intra-node-data-parallel-size 1 --prefill "$3" --decode "$5" &
        ;;
    *)
        echo "PD_ROUTER is $PD_ROUTER: use sglang or vllm" >&2
        exit 2
        ;;
    esac
    pids="$pids $!"
}}

{calls}
wait
"""
