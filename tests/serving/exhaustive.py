"""Every serving plan of a few GPUs: each division into groups, role of each group and layout of each; the best of them.

All are rated by the judge that rates a search's, in the order of what they could do at most: what the replicas of the
weaker phase, and those that do both, do by themselves in simulation, links free. A plan hardly does more than that (see
`BEYOND`), so those that could do less than the best one did are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.plan import Stage
from hetsched.requests import sampled
from hetsched.serving.judge import Judge, Verdict
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.phases import Phases
from hetsched.solvers.serving.workshop import Group, Replica, Workshop
from hetsched.workload import ServingLoad
from tests.solvers.test_serving_layouts import KINDS, every_layout, model

BEYOND = 1.1  # times what its replicas do by themselves that a plan is allowed to do: other requests, other lengths
ROLES = ("prefill", "decode", "both")


def instance(seed: int, most: int, blocks: int = 3) -> ServingProblem:
    """2 to `most` GPUs of four kinds in up to three machines, on a network on which KV caches may be slow."""
    rng = np.random.default_rng(seed)
    total, counts = int(rng.integers(2, most + 1)), list[int]()
    while sum(counts) < total:
        left = total - sum(counts)
        counts.append(left if len(counts) == 2 else int(rng.integers(1, min(4, left) + 1)))
    nodes = tuple(
        Node(f"n{k}", "r", (find_gpu(str(kind), "test"),) * count)
        for k, (kind, count) in enumerate(zip(rng.choice(KINDS, len(counts)), counts, strict=True))
    )
    size = len(nodes), len(nodes)
    bandwidth = np.exp(rng.uniform(17, 23, size))
    np.fill_diagonal(bandwidth, 12e9)
    cluster = Cluster(f"random-{seed}", nodes, Network(bandwidth, rng.uniform(1e-5, 2e-3, size)))
    load = ServingLoad(int(rng.choice([100, 300, 1200])), int(rng.choice([20, 100, 300])), isl_sigma=0.5, osl_sigma=0.5)
    spec = model(blocks)
    requests = sampled(load, 1000, np.random.default_rng(seed), spec.max_positions)
    return ServingProblem(cluster, spec, load, requests, most_batch=128)


def best_of_all(problem: ServingProblem, judge: Judge, beyond: float = BEYOND) -> tuple[Verdict | None, int]:
    """(the best plan by simulation, None where none serves; how many were simulated).

    A plan's requests are shared by the largest flow of what its replicas do by the steady state, and in simulation.
    """
    workshop = Workshop(problem, 0.92, None)
    phases, plans = Phases(workshop), every_plan(workshop, judge)
    best, played = None, 0
    for bound_per_s, replicas in sorted(plans, key=lambda plan: -plan[0]):
        if best is not None and bound_per_s * beyond < best.rate_per_s:
            break
        measured = [replace(replica, rate_per_s=judge.rate_alone(replica)) for replica in replicas]
        drafts = [phases.draft(phases.flowing(each)) for each in (replicas, measured)]
        for plan in {(d.plan.pipelines, d.plan.routes): d for d in drafts if d is not None}.values():
            verdict, played = judge.verdict(plan), played + 1
            if verdict is not None and (best is None or verdict.value > best.value):
                best = verdict
    return best, played


def every_plan(workshop: Workshop, judge: Judge) -> list[tuple[float, list[Replica]]]:
    """(requests a second that it does at most, its replicas) of each plan, one of those that are alike."""
    layouts, found = _Layouts(workshop), dict[tuple[object, ...], tuple[float, list[Replica]]]()
    for groups in divisions(tuple(range(len(workshop.problem.cluster.devices)))):
        for roles in product(ROLES, repeat=len(groups)):
            if not roles or ("prefill" in roles) != ("decode" in roles):
                continue
            options = [layouts.of(frozenset(group), role) for group, role in zip(groups, roles, strict=True)]
            for chosen in product(*options):
                replicas = sorted(chosen, key=lambda replica: (replica.role, layouts.pattern(replica)))
                stages = [stage for replica in replicas for stage in replica.stages]
                alike = tuple((replica.role, len(replica.stages)) for replica in replicas)
                key = alike, workshop.inventory.pattern(stages)
                if key not in found:
                    found[key] = _bound(replicas, judge), replicas
    return list(found.values())


def divisions(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """All divisions of the items, or of some of them, into groups."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for others in divisions(rest):
        yield others  # without the first
        yield [(first,), *others]
        for k, group in enumerate(others):
            yield [*others[:k], (first, *group), *others[k + 1 :]]


def _bound(replicas: Sequence[Replica], judge: Judge) -> float:
    """What could flow at most: neither side carries less."""
    sides = {role: sum(judge.rate_alone(replica) for replica in replicas if replica.role == role) for role in ROLES}
    return min(sides["prefill"], sides["decode"]) + sides["both"]


class _Layouts:
    """All replicas of a group and role."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self._known: dict[tuple[Group, str], list[Replica]] = {}
        self._patterns: dict[tuple[Stage, ...], tuple[object, ...]] = {}

    def of(self, group: Group, role: str) -> list[Replica]:
        key = group, role
        if key not in self._known:
            stages = self._layouts(group) if self.workshop.could_hold(group) else ()
            made = [self.workshop.made(each, role) for each in stages]
            self._known[key] = [replica for replica in made if replica.rate_per_s > 0.0]
        return self._known[key]

    def pattern(self, replica: Replica) -> tuple[object, ...]:
        """What the replica is, but for its GPUs' names; then these."""
        if replica.stages not in self._patterns:
            names = tuple(stage.devices for stage in replica.stages)
            self._patterns[replica.stages] = (self.workshop.inventory.pattern(replica.stages), names)
        return self._patterns[replica.stages]

    def _layouts(self, group: Group) -> Iterator[list[Stage]]:
        """Every chain on exactly these GPUs."""
        cluster, spec = self.workshop.problem.cluster, self.workshop.problem.model
        names = {cluster.devices[device].name for device in group}
        nodes, numbers = [], []
        for k, node in enumerate(cluster.nodes):
            kept = [f"{node.name}/{i}" for i in range(len(node.gpus)) if f"{node.name}/{i}" in names]
            if kept:
                nodes.append(Node(node.name, node.region, (node.gpus[0],) * len(kept)))
                numbers.append(k)
        network = cluster.network
        part = Cluster(
            "part",
            tuple(nodes),
            Network(
                network.bandwidth_bytes_per_s[np.ix_(numbers, numbers)], network.latency_s[np.ix_(numbers, numbers)]
            ),
        )
        real = {
            f"{node.name}/{place}": name
            for node in nodes
            for place, name in enumerate(sorted(n for n in names if n.startswith(f"{node.name}/")))
        }
        for stages in every_layout(part, spec.num_layers, spec):
            if sum(len(stage.devices) for stage in stages) == len(names):
                yield [replace(stage, devices=tuple(real[name] for name in stage.devices)) for stage in stages]
