"""A division of the GPUs into groups and phases, put together of groups that are known: an integer programme.

Groups of machines that are alike are one design. How many of each design to make, in which phase, so that most requests
flow, is HexGen-2's first phase with all GPUs at once in place of its partition and search of ratios (Jiang et al. 2025,
ICLR, arXiv 2502.07903, section 3.2). KV between regions takes what their machines can send; inside a region it is free
here, and the flow (`hetsched.cost.serving.flow`) has the last word.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array

from hetsched.algorithms.integer_programme import least
from hetsched.cluster import Floats
from hetsched.cost.serving.kv_transfer import kv_bytes_per_token
from hetsched.solvers.serving.flow_moves import State, canonical
from hetsched.solvers.serving.phases import USABLE, Phases
from hetsched.solvers.serving.workshop import Group

MOST_DESIGNS = 400  # of a role, those of most requests a second for their memory
GAP, MOST_NODES = 2e-3, 200  # of the programme: distance to its bound, and nodes of its tree

Part = tuple[int, str, int]  # GPUs of one machine: its class, their kind and number
Key = tuple[Part, ...]
Machines = dict[tuple[int, str], list[list[int]]]  # by class and kind: the GPUs of each


def composed(phases: Phases, roles: Sequence[str]) -> State:
    """Groups and their roles, of all that are known and of single machines; GPUs of no group stand with their machine.

    Empty where nothing serves.
    """
    machines = _machines(phases)
    rates = _rates(phases, machines, roles)
    if not rates:
        return ()
    counts = _counts(phases, machines, rates)
    return _placed(machines, [design for design, count in zip(rates, counts, strict=True) for _ in range(count)])


def _machines(phases: Phases) -> Machines:
    workshop = phases.workshop
    cluster, classes = workshop.problem.cluster, workshop.inventory.node_class
    by_node: dict[tuple[int, str], list[int]] = {}
    for device, node in enumerate(cluster.node_numbers):
        by_node.setdefault((node, cluster.devices[device].gpu.kind), []).append(device)
    found: Machines = {}
    for (node, kind), devices in by_node.items():
        found.setdefault((classes[node], kind), []).append(devices)
    return found


def _rates(phases: Phases, machines: Machines, roles: Sequence[str]) -> dict[tuple[Key, str], float]:
    """Requests a second of each design in each role."""
    key_of = phases.workshop.inventory.key
    for alike in machines.values():
        for devices in alike[:1]:
            for size in {*(2**k for k in range(len(devices).bit_length())), len(devices)}:
                for role in roles:
                    phases.replica(frozenset(devices[:size]), role)
    found: dict[str, dict[Key, tuple[float, float]]] = {role: {} for role in roles}
    for group, replica in phases.known():
        if replica.role in found:
            held = sum(phases.workshop.memory_bytes(device) for device in group)
            found[replica.role].setdefault(key_of(sorted(group)), (replica.rate_per_s / held, replica.rate_per_s))
    return {
        (key, role): rate
        for role, rates in found.items()
        for key, (_, rate) in sorted(rates.items(), key=lambda item: (-item[1][0], item[0]))[:MOST_DESIGNS]
    }


def _counts(phases: Phases, machines: Machines, rates: Mapping[tuple[Key, str], float]) -> list[int]:
    """How many of each design. Variables: those numbers, then the flow from each region to each."""
    regions, carried = _between_regions(phases)
    across, designs = len(regions), len(rates)
    entries: list[tuple[int, int, float]] = []
    highs: list[float] = []
    for (number, kind), alike in machines.items():  # GPUs; and no two parts of more than half in one machine
        size = len(alike[0])
        for weigh, room in ((_all, size * len(alike)), (_more_than_half(size), len(alike))):
            for column, (key, _) in enumerate(rates):
                weight = sum(weigh(count) for at, what, count in key if (at, what) == (number, kind))
                if weight:
                    entries.append((len(highs), column, float(weight)))
            highs.append(float(room))
    first = len(highs)  # what leaves a region's prefill replicas, and what comes to its decode replicas
    place = {region: position for position, region in enumerate(regions)}
    nodes = phases.workshop.problem.cluster.nodes
    worth = np.zeros(designs)
    for column, ((key, role), rate) in enumerate(rates.items()):
        if role == "both":
            worth[column] = rate
        else:
            row = first + place[nodes[key[0][0]].region] + (across if role == "decode" else 0)
            entries.append((row, column, -rate))
    for i in range(across):
        for j in range(across):
            column = designs + i * across + j
            entries += [(first + i, column, 1.0), (first + across + j, column, 1.0)]
    highs += [0.0] * (2 * across)
    rows, columns, values = zip(*entries, strict=True)
    matrix = coo_array((values, (rows, columns)), shape=(len(highs), designs + across**2)).toarray()
    high = np.concatenate([np.full(designs, np.inf), carried.ravel()])
    costs = -np.concatenate([worth, np.ones(across**2)])
    found = least(
        costs, matrix, np.array(highs), np.zeros(len(high)), high, gap=GAP, whole=designs, most_nodes=MOST_NODES
    )
    return [0] * designs if found is None else [int(count) for count in found[:designs]]


def _all(count: int) -> int:
    return count


def _more_than_half(size: int) -> Callable[[int], int]:
    return lambda count: int(count > size / 2)


def _between_regions(phases: Phases) -> tuple[list[str], Floats]:
    """(regions, (regions, regions) requests a second whose KV goes from one to another): infinite inside a region."""
    problem = phases.workshop.problem
    cluster, model = problem.cluster, problem.model
    regions = list(dict.fromkeys(node.region for node in cluster.nodes))
    held = {region: [k for k, node in enumerate(cluster.nodes) if node.region == region] for region in regions}
    kv_bytes = phases.workshop.traffic.input_tokens * kv_bytes_per_token(model, problem.precision, model.num_layers)
    carried = np.full((len(regions), len(regions)), np.inf)
    for i, a in enumerate(regions):
        for j, b in enumerate(regions):
            if i != j:
                links = cluster.network.bandwidth_bytes_per_s[np.ix_(held[a], held[b])]
                carried[i, j] = min(links.shape) * float(np.median(links)) / kv_bytes * USABLE
    return regions, carried


def _placed(machines: Machines, designs: Iterable[tuple[Key, str]]) -> State:
    """The designs on machines, the largest parts first; those that find no room are left out."""
    left = {place: [list(devices) for devices in alike] for place, alike in machines.items()}
    found: list[tuple[Group, str]] = []
    for key, role in sorted(designs, key=lambda design: -max(count for *_, count in design[0])):
        taken: list[tuple[list[int], int]] = []
        for number, kind, count in sorted(key, key=lambda part: -part[2]):
            free = [m for m in left[number, kind] if len(m) >= count and all(m is not other for other, _ in taken)]
            if free:
                taken.append((min(free, key=len), count))
        if len(taken) == len(key):
            found.append((frozenset(device for machine, count in taken for device in machine[:count]), role))
            for machine, count in taken:
                del machine[:count]
    rest = [(frozenset(machine), "prefill") for alike in left.values() for machine in alike]
    return canonical([*found, *rest])
