"""A router in front of the replicas of a serving plan: nginx, which shares requests by weight, in turn.

Its weighted round robin is the smooth one that `hetsched simulate --routing shares` plays.
"""

import json
import re
from functools import reduce
from math import gcd

from hetsched.errors import HetschedError
from hetsched.plan import ServingPlan

PORT = 8000  # of the first replica on a node; the next has the next
LISTEN = 8080
PARTS = 1000  # into which shares are divided
HOST = re.compile(r"[A-Za-z0-9._-]+")


def export_nginx(plan: ServingPlan, *, port: int = PORT, listen: int = LISTEN) -> dict[str, str]:
    """{file name: content}: `nginx.conf`, `plan.json` and `README.txt`.

    A replica is at the node of its first GPU. Raises HetschedError for a plan with prefill and decode apart, whose
    second hand nginx can't play, and for node names that are no host names.
    """
    _refuse(plan)
    used: dict[str, int] = {}
    shares = plan.shares(None)
    weights = _weights([shares[pipeline.name] for pipeline in plan.pipelines])
    servers, table = [], []
    for pipeline, weight in zip(plan.pipelines, weights, strict=True):
        node = pipeline.devices[0].rpartition("/")[0]
        address = f"{node}:{port + used.get(node, 0)}"
        used[node] = used.get(node, 0) + 1
        state = f"weight={weight}" if weight else "down"
        servers.append(f"        server {address} {state} max_fails=3 fail_timeout=10s;")
        degrees = " + ".join(str(stage.tensor_parallel) for stage in pipeline.stages)
        table.append(
            f"  {address}  {shares[pipeline.name]:.1%} of the requests, at most {pipeline.max_batch} at once, "
            f"{degrees} GPU{'s' * (len(pipeline.devices) > 1)}: {', '.join(pipeline.devices)}"
        )
    return {
        "nginx.conf": _configuration(servers, listen),
        "plan.json": json.dumps(plan.to_json(), indent=2) + "\n",
        "README.txt": _readme(table, listen),
    }


def _refuse(plan: ServingPlan) -> None:
    if plan.disaggregated:
        raise HetschedError(
            "export to nginx: the plan has prefill and decode apart, and nginx hands no request on",
            hint='use a router that knows of both, e.g. SGLang\'s, or a plan whose pipelines all have the role "both"',
        )
    for node in plan.devices_by_node:
        if not HOST.fullmatch(node):
            raise HetschedError(
                f"export to nginx: the node {node!r} has no name that a host can have",
                hint="rename it in the cluster file: letters, digits, dots, dashes",
            )


def _weights(shares: list[float]) -> list[int]:
    """Whole numbers in the proportion of the shares, in thousandths of which those that are not 0 get one at least."""
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


def _readme(table: list[str], listen: int) -> str:
    replicas = "\n".join(table)
    return f"""A router for the replicas in plan.json: nginx shares the requests by the plan's weights, in turn.

Start a server of the model for each of these, on the GPUs named, at that address:

{replicas}

Then start the router and send requests to port {listen}:

  nginx -c "$PWD/nginx.conf" -g "daemon off;"

Addresses are the names of the nodes in the cluster file; change them in nginx.conf where the machines have others.
"""
