"""Replicas that prefill, decode or do both, the KV routes between them, and plans of them by the largest flow.

Prefill groups take their latency-best layouts or others of that Pareto set, decode groups their throughput-best
(HexGen-2, arXiv 2502.07903, section 3.2), whichever keeps the higher rate. Groups of machines that are alike share all
that was worked out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hetsched.cost.serving.flow import KvNetwork, KvUse, Wire, kv_use
from hetsched.cost.serving.kv_transfer import kv_parts
from hetsched.plan import Route, ServingPipeline, ServingPlan, Stage
from hetsched.solvers.serving.layouts import Layouts
from hetsched.solvers.serving.workshop import COARSE, Draft, Group, Replica, Workshop

# (requests in flight, groups that take turns)
FEW, DECODE_BATCHES = (2.0, 1.0), ((16.0, 1.0), (64.0, 2.0), (256.0, 4.0))
USABLE = 0.75  # of a link's time: KV queues without end on one that is always busy, and holds up its prefill replica
LEAST_SHARE = 1e-4  # of the requests: less is not worth a route
NAMES = {"prefill": "p", "decode": "d", "both": "r"}

Place = tuple[tuple[int, int], int, int]  # a stage's blocks, its node (or first GPU) and its degree


@dataclass(frozen=True, eq=False)
class Flowing:
    """Replicas of a plan and the largest flow through them: what it is worth, and what is full."""

    prefills: tuple[Replica, ...]
    decodes: tuple[Replica, ...]
    both: tuple[Replica, ...]
    network: KvNetwork

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All of them."""
        return (*self.prefills, *self.decodes, *self.both)

    @property
    def roles(self) -> frozenset[str]:
        """Those that its replicas have."""
        return frozenset(replica.role for replica in self.replicas)

    @property
    def value_per_s(self) -> float:
        """Requests a second."""
        return self.network.flow[0] + sum(replica.rate_per_s for replica in self.both)


class Phases:
    """Makes replicas by role, and plans, for a workshop's problem."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        problem, traffic = workshop.problem, workshop.traffic
        shared = problem.precision, workshop.memory_fraction
        prompts = replace(traffic, output_tokens=0.0)
        self._prompts = Layouts(workshop.inventory, problem.model, prompts, *shared, prompts=workshop.prompts)
        self._tokens = Layouts(workshop.inventory, problem.model, traffic, *shared, prefills=False)
        self._found: dict[tuple[str, Group], Replica | None] = {}
        self._made: dict[tuple[object, ...], list[tuple[Replica, list[int]]]] = {}  # of groups that are alike: layouts
        self._alike: dict[tuple[object, ...], tuple[Replica, list[int]] | None] = {}  # the best of these
        self._lessons = workshop.lessons
        self._places: dict[Replica, int] = {}  # numbers of `_known_places`
        self._known_places: dict[tuple[Place, ...], int] = {}
        self._ways: dict[tuple[int, int], KvUse] = {}
        self._patterns: dict[tuple[object, ...], tuple[KvUse, list[int]]] = {}

    def replica(self, group: Group, role: str) -> Replica | None:
        """The group's best replica of a role, None where it keeps no rate."""
        key = role, group
        if self._lessons != self.workshop.lessons:
            self._lessons = self.workshop.lessons
            self._found.clear()
            self._alike.clear()
        if key not in self._found:
            self._found[key] = self._best(group, role)
        return self._found[key]

    @property
    def tried(self) -> int:
        """How many groups and roles were looked at so far."""
        return len(self._found)

    def known(self) -> list[tuple[Group, Replica]]:
        """Groups with the replicas that were made of them so far."""
        return [(group, replica) for (_, group), replica in self._found.items() if replica is not None]

    def _best(self, group: Group, role: str) -> Replica | None:
        workshop = self.workshop
        if not workshop.could_hold(group):
            return None
        if role == "both":
            found = workshop.replica(group)
        else:
            order = self._order(group)
            known = (role, workshop.inventory.key(order))
            if known not in self._alike:
                if known not in self._made:
                    self._made[known] = self._worked_out(order, role)
                made = [(workshop.corrected(replica), places) for replica, places in self._made[known]]
                self._alike[known] = max(made, key=lambda each: each[0].rate_per_s, default=None)
            found = self._moved(self._alike[known], order)
        if found is None or found.rate_per_s <= 0.0:
            return None
        return found

    def _order(self, group: Group) -> list[int]:
        """The group's GPUs so that those of groups which are alike stand at equal places."""
        cluster, classes = self.workshop.problem.cluster, self.workshop.inventory.node_class
        machines: dict[tuple[int, str], list[int]] = {}
        for device in sorted(group):
            machines.setdefault((cluster.node_numbers[device], cluster.devices[device].gpu.kind), []).append(device)
        rows = sorted((classes[node], kind, len(devices), node) for (node, kind), devices in machines.items())
        return [device for _, kind, _, node in rows for device in machines[node, kind]]

    def _moved(self, known: tuple[Replica, list[int]] | None, order: Sequence[int]) -> Replica | None:
        """The replica that was worked out for a group that is alike, on this one's GPUs."""
        if known is None:
            return None
        best, places = known
        names = iter([self.workshop.problem.cluster.devices[order[place]].name for place in places])
        stages = tuple(Stage(stage.layers, tuple(next(names) for _ in stage.devices)) for stage in best.stages)
        return replace(best, stages=stages)

    def _worked_out(self, devices: Sequence[int], role: str) -> list[tuple[Replica, list[int]]]:
        """Replicas of these GPUs, and the places of their stages' GPUs among them."""
        if role == "prefill":
            found = [*self._prompts.pareto(devices, *FEW, COARSE), self._prompts.busiest(devices, *FEW)]
        else:
            found = [self._tokens.busiest(devices, *batch) for batch in DECODE_BATCHES]
            found.append(self._tokens.quickest(devices, *DECODE_BATCHES[0]))
        layouts = {tuple(stages): None for stages in found if stages is not None}
        if not layouts:
            single = (self._prompts if role == "prefill" else self._tokens).quickest(devices, 1.0)
            layouts = {tuple(single): None} if single is not None else {}
        place = {self.workshop.problem.cluster.devices[device].name: k for k, device in enumerate(devices)}
        return [
            (self.workshop.made(stages, role), [place[name] for stage in stages for name in stage.devices])
            for stages in layouts
        ]

    def way(self, source: Replica, target: Replica) -> KvUse:
        """The KV route between two replicas, a request taking so much more of it that `USABLE` of it is all of it."""
        key = self._place(source), self._place(target)
        found = self._ways.get(key)
        if found is None:
            found = self._ways[key] = self._like(source, target)
        return found

    def _like(self, source: Replica, target: Replica) -> KvUse:
        """As between two that are alike, where that is known: on nodes of the same classes."""
        problem, inventory = self.workshop.problem, self.workshop.inventory
        pattern = len(source.stages), inventory.pattern((*source.stages, *target.stages))
        nodes = inventory.nodes((*source.stages, *target.stages))
        if pattern not in self._patterns:
            parts = kv_parts(problem.cluster, problem.model, problem.precision, source.stages, target.stages)
            use = kv_use(problem.cluster, parts, self.workshop.traffic.input_tokens)
            wires = tuple((wire, seconds / USABLE) for wire, seconds in use.wires)
            use = replace(use, busy_s=use.busy_s / USABLE, wires=wires)
            self._patterns[pattern] = use, nodes
            return use
        use, before = self._patterns[pattern]
        now: dict[int | None, int | None] = {None: None, **dict(zip(before, nodes, strict=True))}
        return replace(use, wires=tuple((Wire(now[w.source], now[w.target]), s) for w, s in use.wires))

    def _place(self, replica: Replica) -> int:
        """Equal for replicas between which and others KV routes are the same."""
        known = self._places.get(replica)
        if known is None:
            cluster = self.workshop.problem.cluster
            nodes, own = cluster.node_numbers, bool(cluster.network.per_device)
            first = [cluster.position(stage.devices[0]) for stage in replica.stages]
            place = tuple(
                (stage.layers, device if own else nodes[device], len(stage.devices))
                for stage, device in zip(replica.stages, first, strict=True)
            )
            known = self._places[replica] = self._known_places.setdefault(place, len(self._known_places))
        return known

    def flowing(self, replicas: Sequence[Replica]) -> Flowing:
        """The flow through these replicas."""
        sides = {role: tuple(r for r in replicas if r.role == role) for role in NAMES}
        prefills, decodes = sides["prefill"], sides["decode"]
        ways = {(i, j): self.way(p, d) for i, p in enumerate(prefills) for j, d in enumerate(decodes)}
        supply, demand = (np.array([r.rate_per_s for r in side]) for side in (prefills, decodes))
        return Flowing(prefills, decodes, sides["both"], KvNetwork(supply, demand, ways))

    def draft(self, flowing: Flowing) -> Draft | None:
        """The plan of a flow, with its shares, without replicas that it leaves idle; None where nothing flows."""
        network, value = flowing.network, flowing.value_per_s
        if value <= 0.0:
            return None
        carried: dict[tuple[Replica, Replica], float] = {}
        for (i, j), flow in zip(network.ways, network.levelled(), strict=True):
            if flow > LEAST_SHARE * value:
                carried[flowing.prefills[i], flowing.decodes[j]] = float(flow)
        rates: dict[Replica, float] = {replica: replica.rate_per_s for replica in flowing.both}
        for (source, _), flow in carried.items():
            rates[source] = rates.get(source, 0.0) + flow
        return self.assembled(rates, carried, value)

    def assembled(
        self, rates: dict[Replica, float], carried: dict[tuple[Replica, Replica], float], value: float
    ) -> Draft:
        """The plan in which entry replicas get requests at these rates, and pass them on so."""
        problem = self.workshop.problem
        targets = dict.fromkeys(target for _, target in carried)
        entries = sorted(rates, key=lambda replica: (replica.role == "both", -rates[replica]))
        name: dict[Replica, str] = {}
        counts = dict.fromkeys(NAMES, 0)
        for replica in (*entries, *targets):
            name[replica] = f"{NAMES[replica.role]}{counts[replica.role]}"
            counts[replica.role] += 1
        pipelines = tuple(ServingPipeline(name[r], r.stages, r.max_batch, r.role) for r in name)
        routes = [
            Route(None, name[r], share) for r, share in zip(entries, _shares([rates[r] for r in entries]), strict=True)
        ]
        for source in entries:
            if source.role == "prefill":
                ends = [(target, flow) for (s, target), flow in carried.items() if s is source]
                shares = _shares([flow for _, flow in ends])
                routes += [Route(name[source], name[t], share) for (t, _), share in zip(ends, shares, strict=True)]
        plan = ServingPlan(problem.model, problem.load, pipelines, tuple(routes), problem.options)
        return Draft(plan, tuple(name), value)


def _shares(amounts: Sequence[float]) -> list[float]:
    """Parts of 1."""
    whole = sum(amounts)
    shares = [amount / whole for amount in amounts]
    shares[-1] = max(0.0, 1.0 - sum(shares[:-1]))
    return shares
