"""Every serving plan of a few GPUs: each division into groups, role of each group and layout of each; the best of them.

Plans are ranked by the flow through prefill and decode replicas, and by what replicas that do both keep in simulation
by themselves; those near the best are simulated, and the best of these is the optimum that a search is held to.
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
from hetsched.solvers.serving.workshop import Draft, Group, Replica, Workshop
from hetsched.workload import ServingLoad
from tests.solvers.test_serving_layouts import KINDS, every_layout, model

NEAR, SIMULATED = 0.96, 10  # of the largest flow; plans that are simulated at most
PROMISING = 0.6  # of the best by the steady state: replicas that do both are played by themselves
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


def best_of_all(problem: ServingProblem, judge: Judge) -> Verdict | None:
    """The best plan by simulation, of those near the best by flow; None where none serves."""
    workshop = Workshop(problem, 0.92, None)
    phases = Phases(workshop)
    layouts = _Layouts(workshop, judge)
    found: list[tuple[float, Draft]] = []
    best = 0.0
    for groups in divisions(tuple(range(len(problem.cluster.devices)))):
        for roles in product(ROLES, repeat=len(groups)):
            options = [layouts.of(frozenset(group), role) for group, role in zip(groups, roles, strict=True)]
            if not all(options):
                continue
            for chosen in product(*options):
                if _bound(chosen) < best * NEAR:
                    continue
                flowing = phases.flowing(chosen)
                if flowing.value_per_s >= best * NEAR and (draft := phases.draft(flowing)) is not None:
                    found.append((flowing.value_per_s, draft))
                    best = max(best, flowing.value_per_s)
    found = [item for item in sorted(found, key=lambda item: -item[0]) if item[0] >= best * NEAR]
    verdict = None
    for _, draft in found[:SIMULATED]:
        seen = judge.verdict(draft)
        if seen is not None and (verdict is None or seen.value > verdict.value):
            verdict = seen
    return verdict


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


def _bound(chosen: Sequence[Replica]) -> float:
    """What could flow at most: neither side carries less."""
    sides = {role: sum(replica.rate_per_s for replica in chosen if replica.role == role) for role in ROLES}
    return min(sides["prefill"], sides["decode"]) + sides["both"]


class _Layouts:
    """All replicas of a group and role, the highest rate first; alike groups are worked out once."""

    def __init__(self, workshop: Workshop, judge: Judge) -> None:
        self.workshop, self.judge = workshop, judge
        self._known: dict[tuple[Group, str], list[Replica]] = {}

    def of(self, group: Group, role: str) -> list[Replica]:
        key = group, role
        if key not in self._known:
            self._known[key] = self._made(group, role)
        return self._known[key]

    def _made(self, group: Group, role: str) -> list[Replica]:
        if not self.workshop.could_hold(group):
            return []
        made = [self.workshop.made(stages, role) for stages in self._layouts(group)]
        made = [replica for replica in made if replica.rate_per_s > 0.0]
        if role == "both" and made:
            least = PROMISING * max(replica.rate_per_s for replica in made)
            promising = sorted((r for r in made if r.rate_per_s >= least), key=lambda r: -r.rate_per_s)[:SIMULATED]
            made = [replace(replica, rate_per_s=self.judge.rate_alone(replica)) for replica in promising]
            made = sorted(made, key=lambda replica: -replica.rate_per_s)[:2]
        return sorted(made, key=lambda replica: -replica.rate_per_s)

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
