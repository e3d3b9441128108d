"""Where replicas are made of groups of GPUs, and plans of replicas. What was worked out once is kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.cost.serving.steady import SteadyReplica, Traffic
from hetsched.plan import Route, ServingPipeline, ServingPlan, Stage
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.layouts import Layouts
from hetsched.solvers.serving.pools import Inventory
from hetsched.solvers.serving.variants import variants
from hetsched.solvers.serving.worth import Worth

Group = frozenset[int]

BATCHES = ((4.0, 1.0), (48.0, 4.0))  # (requests in flight, groups that take turns) that layouts are made for
MOST = (256.0, 4.0)  # where a replica is to hold so many, it has more GPUs than the quickest one needs
COARSE = 0.4  # from one layout of a Pareto set to the next, a stage works so much less
MOST_STATES = 600  # of a group of a search; `pipeline-dp` by itself has more
SPARE = 1.1  # a plan for a rate is made for so much more, and the simulator says what it needs


@dataclass(frozen=True, eq=False)
class Replica:
    """Stages, what they take, and the rate at which they keep the SLO by the steady state.

    role: as of a plan's pipeline; a prefill replica's rate is of prompts, a decode replica's of the tokens after.
    """

    stages: tuple[Stage, ...]
    times: ReplicaTimes
    max_batch: int
    rate_per_s: float
    role: str = "both"


@dataclass(frozen=True, eq=False)
class Draft:
    """A plan and its score by the steady state: larger is better."""

    plan: ServingPlan
    replicas: tuple[Replica, ...]
    score: float


class Workshop:
    """Makes replicas and plans for a problem."""

    def __init__(
        self,
        problem: ServingProblem,
        memory_fraction: float,
        reference: ReplicaTimes | None,
        starts: Sequence[Sequence[Group]] = (),
    ) -> None:
        """starts: divisions of the GPUs that a search may begin from, besides its own."""
        self.problem, self.memory_fraction, self.starts = problem, memory_fraction, starts
        self.inventory = Inventory(problem.cluster, MOST_STATES)
        self.traffic = Traffic.of_requests(problem.requests)
        self.worth = Worth(problem.requests, problem.load.slo, reference)
        self.prompts = max(1.0, problem.options.max_prefill_tokens // self.traffic.input_tokens)  # of a step, at most
        shared = problem.precision, memory_fraction
        self.layouts = Layouts(self.inventory, problem.model, self.traffic, *shared, prompts=self.prompts)
        self.scored: dict[tuple[Group, ...], None] = {}  # divisions that a search came across
        self.lessons = 0  # how often rates of replicas for one phase were learnt
        self._learnt: dict[tuple[str, tuple[Any, ...]], float] = {}  # what share of the steady state's rate they keep
        self._usual: dict[tuple[str, int], float] = {}  # by role and number of stages
        self._trust: dict[int, float] = {}
        self._made: dict[Group, list[Replica]] = {}
        self._patterns: dict[tuple[object, ...], Replica] = {}
        self._known: dict[Group, Replica | None] = {}
        self._alike: dict[tuple[tuple[int, str, int], ...], float] = {}
        weights = problem.model.parameters * problem.precision.weight_bytes
        self._least_bytes = weights / memory_fraction
        self._bytes = [device.gpu.memory_bytes for device in problem.cluster.devices]

    def trust(self, shares: Mapping[int, float]) -> None:
        """From now on take so much of what the steady state says of replicas, by their number of stages.

        A number that is not there has the share of the next smaller one that is.
        """
        self._trust = dict(shares)
        self._known.clear()
        self._alike.clear()

    def learn(self, rates: Iterable[tuple[Replica, float]]) -> None:
        """From now on take these rates, in requests a second, for replicas for one phase and all that are alike.

        Others of as many stages are taken to keep as much of the steady state's rate as those that are known.
        """
        for replica, rate_per_s in rates:
            steady = self.made(replica.stages, replica.role).rate_per_s
            if replica.role != "both" and steady > 0.0:
                self._learnt[replica.role, self.inventory.pattern(replica.stages)] = rate_per_s / steady
        seen: dict[tuple[str, int], list[float]] = {}
        for (role, pattern), share in self._learnt.items():
            seen.setdefault((role, len(pattern)), []).append(share)
        self._usual = {key: float(np.median(shares)) for key, shares in seen.items()}
        self.lessons += 1

    def corrected(self, replica: Replica) -> Replica:
        """A replica for one phase, by what was learnt; one of more stages than were seen is as those."""
        if not self._learnt:
            return replica
        share = self._learnt.get((replica.role, self.inventory.pattern(replica.stages)))
        if share is None:
            depths = [depth for role, depth in self._usual if role == replica.role and depth <= len(replica.stages)]
            share = self._usual[replica.role, max(depths)] if depths else 1.0
        return replace(replica, rate_per_s=replica.rate_per_s * share)

    def share_prompts(self, share: float) -> None:
        """From now on let prefill have so much of a limit on whole requests, and decode the rest."""
        self.worth = replace(self.worth, prompt_share=share)
        self._patterns.clear()

    @property
    def trusts(self) -> bool:
        """Whether what the steady state says was measured."""
        return bool(self._trust)

    def _trusted(self, replica: Replica) -> Replica:
        below = [depth for depth in self._trust if depth <= len(replica.stages)]
        return replace(replica, rate_per_s=replica.rate_per_s * self._trust[max(below)]) if below else replica

    def known_groups(self) -> list[Group]:
        """Those whose replica keeps some rate."""
        return [group for group in self._known if self.rate_of(group) > 0.0]

    def rate_of(self, group: Group) -> float:
        """The rate that the group's best replica keeps; that of a group which is alike, where that is known."""
        key = self.inventory.key(sorted(group))
        if key not in self._alike:
            replica = self.replica(group)
            self._alike[key] = 0.0 if replica is None else replica.rate_per_s
        return self._alike[key]

    def replica(self, group: Group) -> Replica | None:
        """The group's best replica: of the coarse Pareto sets for few and for many requests in flight."""
        if group not in self._known:
            self._known[group] = self._best(group)
        return self._known[group]

    def layouts_of(self, replica: Replica) -> list[Replica]:
        """The replica and others of the same GPUs, with rates as far as they are trusted: near what was worked out."""
        problem = self.problem
        group = frozenset(problem.cluster.position(name) for stage in replica.stages for name in stage.devices)
        known = dict.fromkeys(each.stages for each in (replica, *self._made.get(group, ())))
        found = dict.fromkeys(near for stages in known for near in variants(problem.cluster, problem.model, stages))
        made = [self.made(stages, replica.role) for stages in found]
        return [self._trusted(each) for each in made if each.rate_per_s > 0.0]

    def could_hold_evenly(self, degree: int, depth: int) -> bool:
        """Whether so many of the largest GPUs could hold the model's weights."""
        return degree * depth * max(self._bytes) >= self._least_bytes

    def could_hold_times(self, devices: Iterable[int], count: int) -> bool:
        """Whether their memory could hold the model's weights so many times."""
        return sum(self._bytes[device] for device in devices) >= count * self._least_bytes

    def memory_bytes(self, device: int) -> float:
        """Of a GPU."""
        return float(self._bytes[device])

    def holds_a_request(self, replica: Replica) -> bool:
        """Whether its KV cache has room for a mean request."""
        return replica.times.largest_batch(self.traffic.input_tokens + self.traffic.output_tokens) >= 1

    def could_hold(self, group: Iterable[int]) -> bool:
        """Whether the group's memory could hold the model's weights at all."""
        return sum(self._bytes[device] for device in group) >= self._least_bytes

    def _best(self, group: Group) -> Replica | None:
        if group not in self._made:
            self._made[group] = self._worked_out(group) if self.could_hold(group) else []
        return max(map(self._trusted, self._made[group]), key=lambda replica: replica.rate_per_s, default=None)

    def _worked_out(self, group: Group) -> list[Replica]:
        return [self.made(stages) for stages in self.candidates(group)]

    def candidates(self, group: Group) -> list[list[Stage]]:
        """The layouts of a group that are tried: the quickest for few requests, and some of the set for many."""
        devices = sorted(group)
        few, many = BATCHES
        found = [self.layouts.quickest(devices, *few), *self.layouts.pareto(devices, *many, COARSE)]
        found.append(self.layouts.busiest(devices, *MOST))  # of little memory, or where the coarse set ends too soon
        if not any(found):
            found = [self.layouts.quickest(devices, 1.0)]
        return [list(stages) for stages in dict.fromkeys(tuple(each) for each in found if each is not None)]

    def made(self, stages: Sequence[Stage], role: str = "both") -> Replica:
        """The replica of these stages; those that are alike share all that was worked out, `times` the very same."""
        key = role, self.inventory.pattern(stages)
        known = self._patterns.get(key)
        if known is None:
            known = self._patterns[key] = self._priced(stages, role)
        return replace(known, stages=tuple(stages))

    def _priced(self, stages: Sequence[Stage], role: str) -> Replica:
        problem = self.problem
        times = replica_times(problem.cluster, problem.model, stages, problem.precision, self.memory_fraction)
        steady = SteadyReplica(
            times,
            self.traffic if role != "prefill" else replace(self.traffic, output_tokens=1.0),
            problem.most_batch * len(stages),
            problem.options.chunked_prefill_tokens > 0,
            problem.options.max_prefill_tokens,
            role != "decode",
            role != "prefill",
        )
        return Replica(tuple(stages), times, max(1, steady.largest_batch), self.worth.rate_per_s(steady), role)

    # ---- plans

    def chosen(self, groups: Iterable[Group]) -> list[Group]:
        """Of these groups those to use: all that serve, or for least money the cheapest that serve the rate."""
        problem = self.problem
        useful = [group for group in groups if self.rate_of(group) > 0.0]
        if problem.objective != "cost":
            return useful
        wanted = (problem.load.rate_per_s or 0.0) * SPARE
        kept: list[Group] = []
        finished: list[list[Group]] = []
        rate = 0.0
        left = set(useful)
        while left and rate < wanted:
            before = self._usd(kept)
            priced = [(self._usd([*kept, group]), sorted(group), group) for group in left]
            enough = [row for row in priced if rate + self.rate_of(row[2]) >= wanted]
            if enough:
                finished.append([*kept, min(enough)[2]])
            *_, best = max((self.rate_of(g) / max(usd - before, 1e-9), order, g) for usd, order, g in priced)
            kept.append(best)
            left.discard(best)
            rate += self.rate_of(best)
        plans = [self._pruned(groups, wanted) for groups in (*finished, kept)]
        return min(plans, key=self._usd) if rate >= wanted else plans[-1]

    def _pruned(self, kept: list[Group], wanted: float) -> list[Group]:
        """Without the groups that the rate does not need, the dearest first."""
        for group in sorted(kept, key=self.rate_of):
            rest = [other for other in kept if other is not group]
            if sum(self.rate_of(other) for other in rest) >= wanted and self._usd(rest) < self._usd(kept):
                kept = rest
        return kept

    def score(self, groups: Sequence[Group]) -> float:
        """Larger is better: the rate kept; for least cost, the money where the rate is met."""
        self.scored[tuple(groups)] = None
        kept = self.chosen(groups)
        rate = sum(self.rate_of(group) for group in kept)
        if self.problem.objective != "cost":
            return rate
        wanted = (self.problem.load.rate_per_s or 0.0) * SPARE
        return 1.0 / (1.0 + self._usd(kept)) if rate >= wanted else rate / wanted - 1.0

    def draft(self, groups: Sequence[Group]) -> Draft | None:
        """The plan of these groups, requests shared by the rates they keep; None where none of them serves."""
        replicas = [self.replica(group) for group in self.chosen(groups)]
        kept = sorted((r for r in replicas if r is not None), key=lambda r: -r.rate_per_s)
        return self.assembled(kept, self.score(groups)) if kept else None

    def assembled(self, replicas: Sequence[Replica], score: float | None = None, even: bool = False) -> Draft:
        """A plan of these replicas, requests shared evenly, or by the rates they keep: without those that keep none."""
        even = even or not any(replica.rate_per_s for replica in replicas)
        replicas = [replica for replica in replicas if even or replica.rate_per_s > 0.0]
        rates = [replica.rate_per_s for replica in replicas]
        whole = min(rates) * len(rates) if even else sum(rates)
        shares = [1.0 / len(rates) if even else rate / whole for rate in rates]
        pipelines = tuple(
            ServingPipeline(f"r{number}", replica.stages, replica.max_batch) for number, replica in enumerate(replicas)
        )
        shares[-1] = 1.0 - sum(shares[:-1])
        routes = tuple(
            Route(None, pipe.name, share) for pipe, share in zip(pipelines, shares, strict=True) if share > 0
        )
        problem = self.problem
        plan = ServingPlan(problem.model, problem.load, pipelines, routes, problem.options)
        return Draft(plan, tuple(replicas), whole if score is None else score)

    def usd_of(self, replicas: Iterable[Replica]) -> float:
        """Dollars an hour of the nodes that they use."""
        position = self.problem.cluster.position
        names = [name for replica in replicas for stage in replica.stages for name in stage.devices]
        return self._usd([frozenset(position(name) for name in names)])

    def _usd(self, groups: Iterable[Group]) -> float:
        cluster = self.problem.cluster
        nodes = {cluster.node_numbers[device] for group in groups for device in group}
        return sum(cluster.nodes[node].usd_per_hour or 0.0 for node in nodes)
