"""A training plan on its cluster: the team of each stage, what it works, and who uses which network at once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from hetsched.cluster import Cluster
from hetsched.cost.compute import StageWork, Worker, efficiency, stage_work
from hetsched.cost.hops import both_cross, hop_between
from hetsched.cost.memory import hidden_bytes
from hetsched.cost.network import Lanes, Team, team_all_reduce_s, team_of
from hetsched.cost.schedule import Hop, pace_of
from hetsched.cost.traffic import GradientGroup, gradient_groups, hop_bytes
from hetsched.model import ModelSpec
from hetsched.plan import Plan
from hetsched.workload import TrainingJob

GATHERED_WEIGHTS = 3  # the ZeRO stage that shards weights

Seat = tuple[int, int]  # (pipeline, stage)


@dataclass(frozen=True, eq=False)
class Placement:
    """Teams and workers, [pipeline][stage]; the gradient groups; and the lanes of what goes on at the same time.

    crossing_lanes: of activations and their gradients together, None to keep them apart. gradient_lanes: of each
    group's ring.
    """

    cluster: Cluster
    plan: Plan
    teams: list[list[Team]]
    workers: list[list[Worker]]
    groups: list[GradientGroup]
    rings: list[list[Seat]]  # of each group: its members in ring order
    forward_lanes: Lanes
    backward_lanes: Lanes
    crossing_lanes: Lanes | None
    gradient_lanes: list[Lanes]

    @property
    def in_parts(self) -> bool:
        """Whether hops go in parts (`transfer_s`): the bundled executor, which also overlaps, sends so."""
        return self.plan.options.overlap

    @cached_property
    def works(self) -> list[list[StageWork]]:
        """What each stage works on one micro-batch, without ZeRO 3's gathers."""
        plan = self.plan
        return [
            [
                stage_work(worker, plan.model, plan.workload, stage.layers, plan.options.recompute)
                for worker, stage in zip(workers, pipeline.stages, strict=True)
            ]
            for workers, pipeline in zip(self.workers, plan.pipelines, strict=True)
        ]

    def hops(self, pipeline: int) -> list[Hop]:
        """The links between a pipeline's stages, for one micro-batch's activations and their gradients."""
        sizes, none = hop_bytes(self.plan), Lanes()
        pairs = list(pairwise(self.teams[pipeline]))
        free = [
            hop_between(self.cluster, here, there, sizes, none, none, None, 0.0, self.in_parts) for here, there in pairs
        ]
        line = self.plan.pipelines[pipeline]
        cross = both_cross(self.plan.options, line.micro_batches, len(line.stages))
        lanes = self.forward_lanes, self.backward_lanes, self.crossing_lanes if cross else None
        pace_s = pace_of(self.works[pipeline], free)
        return [hop_between(self.cluster, here, there, sizes, *lanes, pace_s, self.in_parts) for here, there in pairs]

    def members(self, ring: list[Seat]) -> list[Team]:
        """The teams of a ring."""
        return [self.teams[p][s] for p, s in ring]


def place(cluster: Cluster, plan: Plan) -> Placement:
    """The plan's placement; HetschedError where it names a device that the cluster lacks."""
    teams = [[team_of(cluster, stage.devices) for stage in pipeline.stages] for pipeline in plan.pipelines]
    workers = [[worker_of(cluster, team, plan.model, plan.workload) for team in line] for line in teams]
    groups = gradient_groups(plan)
    ranks: dict[int, int] = {}
    for line in teams:
        for team in line:
            ranks.setdefault(team.node, len(ranks))
    rings = [sorted(group.members, key=lambda seat: ranks[teams[seat[0]][seat[1]].node]) for group in groups]
    flat, first = [team for line in teams for team in line], list(accumulate(map(len, teams), initial=0))
    numbered = [[first[p] + s for p, s in ring] for ring in rings]
    in_parts, zero = plan.options.overlap, plan.options.zero
    boundaries = [pair for line in teams for pair in pairwise(line)]
    back = [(there, here) for here, there in boundaries]
    return Placement(
        cluster,
        plan,
        teams,
        workers,
        groups,
        rings,
        Lanes.of(boundaries, in_parts),
        Lanes.of(back, in_parts),
        Lanes.of([*boundaries, *back], in_parts),
        gradient_lanes(
            numbered, [team.node for team in flat], [team.size for team in flat], zero, plan.model.tied_parameters > 0
        ),
    )


def worker_of(cluster: Cluster, team: Team, model: ModelSpec, job: TrainingJob) -> Worker:
    """What a team is as a worker: its slowest GPU at its degree, measured where there is a profile."""
    gpus = {id(gpu): gpu for gpu in (cluster.devices[device].gpu for device in team.devices)}.values()
    slowest = min(gpus, key=lambda gpu: gpu.flops_per_s(job.dtype) * efficiency(gpu))
    measured = cluster.measured.part_times(model, job, slowest.kind, team.size)
    if team.size == 1 or measured is not None:
        return Worker(slowest, team.size, 0.0, measured)
    return Worker(slowest, team.size, team_all_reduce_s(cluster, team, hidden_bytes(model, job)))


def gradient_lanes(
    rings: Sequence[Sequence[int]], nodes: Sequence[int], sizes: Sequence[int], zero: int, tied: bool
) -> list[Lanes]:
    """For each ring, the flows that all-reduces make while it goes round; tied: whether the last is a tied embedding's.

    rings: stages by number; nodes, sizes: of each stage's team. All stages reduce at the same time, each one group at a
    time; the tied embedding's ring comes after them. With ZeRO 3 weights are gathered too, when passes begin, so a
    stage may be asked for those of several groups.
    """
    if zero == GATHERED_WEIGHTS:
        return [_flows(rings, nodes, sizes, at_will=True)] * len(rings)
    blocks = len(rings) - 1 if tied and rings else len(rings)
    return [_flows(rings[:blocks], nodes, sizes)] * blocks + [_flows([ring], nodes, sizes) for ring in rings[blocks:]]


def _flows(rings: Iterable[Sequence[int]], nodes: Sequence[int], sizes: Sequence[int], at_will: bool = False) -> Lanes:
    """A stage counts once where it sends from and once where it receives, however many groups it has, with the most
    flows it ever makes; between two nodes there are no more than their stages that send, or receive, there. At will, it
    counts once for each node it sends to.
    """
    sends: dict[tuple[int, int], int] = {}
    receives: dict[tuple[int, int], int] = {}
    for a, b in {step for ring in rings for step in zip(ring, [*ring[1:], ring[0]], strict=True)}:
        i, j = nodes[a], nodes[b]
        if i != j:
            wide = min(sizes[a], sizes[b])
            if sends.get((a, j), 0) < wide:
                sends[a, j] = wide
            if receives.get((b, i), 0) < wide:
                receives[b, i] = wide
    lanes = Lanes()
    if at_will:
        for (a, j), wide in sends.items():
            lanes.add(nodes[a], j, wide)
        return lanes
    sent: dict[int, int] = {}
    received: dict[int, int] = {}
    for (a, j), wide in sends.items():
        sent[a] = max(wide, sent.get(a, 0))
        lanes.pairs[nodes[a], j] += wide
    entered: Counter[tuple[int, int]] = Counter()
    for (b, i), wide in receives.items():
        received[b] = max(wide, received.get(b, 0))
        entered[i, nodes[b]] += wide
    for pair, wide in entered.items():
        lanes.pairs[pair] = min(lanes.pairs[pair], wide)
    for a, wide in sent.items():
        lanes.out[nodes[a]] += wide
    for b, wide in received.items():
        lanes.into[nodes[b]] += wide
    return lanes
