"""Shell scripts that start a training plan with torchrun, one for each node.

Unequal numbers of processes a node need static rendezvous: there ranks are cumulative in node-rank order, which is the
order of `Plan.devices_by_node` and so the executor's own. With the c10d back end rank order is a race.
"""

import json
import re
import shlex
from dataclasses import asdict

from hetsched.errors import HetschedError
from hetsched.plan import WIRE_BITS, Plan

PORT = 29500


def export_torchrun(plan: Plan, *, steps: int = 100, port: int = PORT) -> dict[str, str]:
    """{file name: content}: `launch-<node>.sh` for each node, `plan.json` and `README.txt`.

    The scripts are POSIX sh. They take MASTER_ADDR (default: the first node's name) and MASTER_PORT (default: `port`)
    from the environment, and pass further options on to the executor. Raises HetschedError for a plan that the bundled
    executor of this version can't run.
    """
    _refuse(plan)
    nodes = plan.devices_by_node
    names = _file_names(tuple(nodes))
    files = {"plan.json": json.dumps(plan.to_json(), indent=2) + "\n"}
    for number, (node, devices) in enumerate(nodes.items()):
        options = f"--nnodes {len(nodes)} --node-rank {number} --nproc-per-node {len(devices)}"
        files[names[node]] = _script(options, node, devices, master=next(iter(nodes)), port=port, steps=steps)
    files["README.txt"] = _readme(plan, names)
    return files


def _refuse(plan: Plan) -> None:
    if plan.model.num_experts:
        raise HetschedError(
            f"export to torchrun: {plan.model.name} is a mixture of experts, which the bundled executor of this "
            "version does not run",
            hint="use a dense model",
        )
    for name, bits in asdict(plan.options.compression).items():
        if bits not in WIRE_BITS:
            raise HetschedError(
                f"export to torchrun: {name} is {bits}, and the bundled executor compresses to 2 to 8 bits",
                hint="plan with 2 to 8 bits, or without compression",
            )


def _script(options: str, node: str, devices: tuple[str, ...], *, master: str, port: int, steps: int) -> str:
    indices = ",".join(device.rpartition("/")[2] for device in devices)
    return f"""#!/bin/sh
# Options given here go to the executor: see python -m hetsched.executor --help
set -eu
cd "$(dirname "$0")"
if [ -z "${{MASTER_ADDR:-}}" ]; then
    MASTER_ADDR={shlex.quote(master)}
fi
if [ -z "${{MASTER_PORT:-}}" ]; then
    MASTER_PORT={port}
fi
HETSCHED_NODE={shlex.quote(node)}
CUDA_VISIBLE_DEVICES={indices}
export HETSCHED_NODE CUDA_VISIBLE_DEVICES
exec torchrun {options} --rdzv-backend static \\
    --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" \\
    -m hetsched.executor --plan plan.json --steps {steps} "$@"
"""


def _file_names(nodes: tuple[str, ...]) -> dict[str, str]:
    """A file name for each node: letters, digits, dots, dashes, underscores; numbered where two would be equal."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for number, node in enumerate(nodes):
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", node)
        name = f"launch-{plain}.sh"
        if name.lower() in taken:
            name = f"launch-{plain}-node{number}.sh"
        taken.add(name.lower())
        names[node] = name
    return names


def _readme(plan: Plan, names: dict[str, str]) -> str:
    devices = plan.devices_by_node
    table = "\n".join(f"  {name}  on {_line(node)}  ({len(devices[node])} of its GPUs)" for node, name in names.items())
    return f"""Training {_line(plan.model.name)} by the plan in plan.json, with torchrun.

Every node needs hetsched with its executor (pip install "hetsched[executor]") and this folder.
Start all of these at about the same time, each on its own node:

{table}

MASTER_ADDR and MASTER_PORT say where the processes meet: the address of the first node above (default: its name) and
a free port there. Set them alike on all nodes. The first node's script prints a JSON line for each training step.
Options of the executor may be added to all scripts alike, e.g. --steps 1000 --text corpus.txt.
"""


def _line(text: str) -> str:
    return " ".join(text.split())
