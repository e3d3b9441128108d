"""A router in front of the replicas of a serving plan: nginx, which shares requests by weight, in turn.

Its weighted round robin is the smooth one that `hetsched simulate --routing shares` plays. It hands no request on, so
where prefill and decode stand apart there is for each route of the plan a router that knows of both behind it
(`hetsched.exporters.handover`), and nginx shares the requests among these.
"""

import json
import re
from functools import reduce
from math import gcd

from hetsched.errors import HetschedError
from hetsched.exporters.handover import LOCAL, addresses, handover_script, route_table, routes_of
from hetsched.plan import ServingPipeline, ServingPlan

PORT = 8000  # of the first replica on a node; the next has the next
LISTEN = 8080
PARTS = 10_000  # into which shares are divided
HOST = re.compile(r"[A-Za-z0-9._-]+")


def export_nginx(plan: ServingPlan, *, port: int = PORT, listen: int = LISTEN) -> dict[str, str]:
    """{file name: content}: `nginx.conf`, `plan.json` and `README.txt`; with prefill and decode apart `handover.sh`.

    A replica is at the node of its first GPU. Raises HetschedError for node names that are no host names.
    """
    check_hosts(plan)
    address = addresses(plan, port)
    shares = plan.shares(None)
    routes = routes_of(plan)
    targets = [(address[p.name], shares.get(p.name, 0.0)) for p in plan.pipelines if p.role == "both"]
    targets += [(f"{LOCAL}:{route.port}", route.share) for route in routes]
    weights = _weights([share for _, share in targets])
    servers = [
        f"        server {target} {f'weight={weight}' if weight else 'down'} max_fails=3 fail_timeout=10s;"
        for (target, _), weight in zip(targets, weights, strict=True)
    ]
    table = [f"  {address[pipeline.name]}  {_words(pipeline, shares)}" for pipeline in plan.pipelines]
    return {
        "nginx.conf": _configuration(servers, listen),
        **({"handover.sh": handover_script(plan, address)} if routes else {}),
        "plan.json": json.dumps(plan.to_json(), indent=2) + "\n",
        "README.txt": _readme(table, listen, route_table(plan)),
    }


def _words(pipeline: ServingPipeline, shares: dict[str, float]) -> str:
    """What a replica does, and on which GPUs."""
    share = f"{shares.get(pipeline.name, 0.0):.1%} of the requests"
    does = {"both": share, "prefill": f"prefill of {share}", "decode": "decode"}[pipeline.role]
    degrees = " + ".join(str(stage.tensor_parallel) for stage in pipeline.stages)
    gpus = f"{degrees} GPU{'s' * (len(pipeline.devices) > 1)}: {', '.join(pipeline.devices)}"
    return f"{pipeline.name}: {does}, at most {pipeline.max_batch} at once, {gpus}"


def check_hosts(plan: ServingPlan) -> None:
    """Raises HetschedError where a node has a name that no host can have."""
    for node in plan.devices_by_node:
        if not HOST.fullmatch(node):
            raise HetschedError(
                f"export: the node {node!r} has no name that a host can have",
                hint="rename it in the cluster file: letters, digits, dots, dashes",
            )


def _weights(shares: list[float]) -> list[int]:
    """Whole numbers in the proportion of the shares, in `PARTS`; those that are not 0 get one at least."""
    parts = [max(1, round(share * PARTS)) if share > 0 else 0 for share in shares]
    common = reduce(gcd, parts)
    return [part // common for part in parts]


def _configuration(servers: list[str], listen: int) -> str:
    lines = "\n".join(servers)
    return f"""# nginx -c "$PWD/nginx.conf" -g "daemon off;"
worker_processes auto;
events {{
    worker_connections 8192;
}}
http {{
    access_log off;
    upstream replicas {{
        zone replicas 256k;  # all workers take turns together
{lines}
        keepalive 64;
    }}
    server {{
        listen {listen};
        client_max_body_size 64m;
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;  # tokens are passed on as they come
            proxy_read_timeout 3600s;
        }}
    }}
}}
"""


def _readme(table: list[str], listen: int, routes: list[str]) -> str:
    replicas = "\n".join(table)
    handed = "\n".join(routes)
    apart = f"""
Prefill and decode stand apart. SGLang's router and vLLM's choose a prefill and a decode server independently of one
another and know no weights, so with one router for all servers the plan's routes would not be kept. Here each route has
a router of its own, which knows one server of each kind; nginx shares the requests among these, and so the share of
each pair is kept:

{handed}

handover.sh starts them all on the machine of nginx, and stops them when it ends. PD_ROUTER=sglang (the default; pip
install sglang-router, for servers of SGLang) or PD_ROUTER=vllm (pip install vllm-router, for servers of vLLM):

  PD_ROUTER=sglang sh handover.sh
"""
    return f"""A router for the replicas in plan.json: nginx shares the requests by the plan's weights, in turn.

Start a server of the model for each of these, on the GPUs named, at that address:

{replicas}
{apart if routes else ""}
Then start the router and send requests to port {listen}:

  nginx -c "$PWD/nginx.conf" -g "daemon off;"

Addresses are the names of the nodes in the cluster file; change them in the files where the machines have others.
"""
