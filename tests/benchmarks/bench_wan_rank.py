"""A rank of a plan in its node's namespace: what `run_plan` starts here."""

import os
import sys
from pathlib import Path

from bench_wan_network import namespace

from hetsched.executor.__main__ import read_plan

if __name__ == "__main__":
    plan = read_plan(Path(sys.argv[sys.argv.index("--plan") + 1]))
    nodes = list(plan.devices_by_node)
    places = [node for node, devices in plan.devices_by_node.items() for _ in devices]
    numbers = [int(place) for place in os.environ["WAN_NODES"].split(",")]  # of the plan's nodes, in its order
    where = namespace(numbers[nodes.index(places[int(os.environ["RANK"])])])
    os.execvp(
        "ip",
        ["ip", "netns", "exec", where, "nice", "-n", "-10", sys.executable, "-m", "hetsched.executor", *sys.argv[1:]],
    )  # noqa: S606
