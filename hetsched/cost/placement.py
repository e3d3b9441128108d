"""A training plan on its cluster: the team of each stage, what it works, and who uses which network at once."""

from dataclasses import dataclass
from itertools import pairwise

from hetsched.cluster import Cluster
from hetsched.cost.compute import StageWork, Worker, efficiency, stage_work
from hetsched.cost.memory import hidden_bytes
from hetsched.cost.network import Lanes, Team, team_all_reduce_s, team_of, transfer_s, width
from hetsched.cost.schedule import Hop
from hetsched.cost.traffic import GradientGroup, gradient_groups, hop_bytes
from hetsched.model import ModelSpec
from hetsched.plan import Plan
from hetsched.workload import TrainingJob

GATHERED_WEIGHTS = 3  # the ZeRO stage that shards weights

Seat = tuple[int, int]  # (pipeline, stage)


@dataclass(frozen=True, eq=False)
class Placement:
    """Teams and workers, [pipeline][stage]; the gradient groups; and the lanes of what goes on at the same time.

    gradient_lanes: of each group's ring.
    """

    cluster: Cluster
    plan: Plan
    teams: list[list[Team]]
    workers: list[list[Worker]]
    groups: list[GradientGroup]
    rings: list[list[Seat]]  # of each group: its members in ring order
    forward_lanes: Lanes
    backward_lanes: Lanes
    gradient_lanes: list[Lanes]

    @property
    def in_parts(self) -> bool:
        """Whether hops go in parts (`transfer_s`): the bundled executor, which also overlaps, sends so."""
        return self.plan.options.overlap

    def works(self) -> list[list[StageWork]]:
        """What each stage works on one micro-batch."""
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
        forward, backward = hop_bytes(self.plan)
        teams = self.teams[pipeline]
        return [
            Hop(
                *transfer_s(self.cluster, here, there, forward, self.forward_lanes, self.in_parts),
                *transfer_s(self.cluster, there, here, backward, self.backward_lanes, self.in_parts),
            )
            for here, there in pairwise(teams)
        ]

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
    in_parts = plan.options.overlap
    boundaries = [pair for line in teams for pair in pairwise(line)]
    return Placement(
        cluster,
        plan,
        teams,
        workers,
        groups,
        rings,
        Lanes.of(boundaries, in_parts),
        Lanes.of(((there, here) for here, there in boundaries), in_parts),
        gradient_lanes(teams, rings, plan.options.zero, plan.model.tied_parameters > 0),
    )


def worker_of(cluster: Cluster, team: Team, model: ModelSpec, job: TrainingJob) -> Worker:
    """What a team is as a worker: its slowest GPU at its degree, measured where there is a profile."""
    gpus = {id(gpu): gpu for gpu in (cluster.devices[device].gpu for device in team.devices)}.values()
    slowest = min(gpus, key=lambda gpu: gpu.flops_per_s(job.dtype) * efficiency(gpu))
    measured = cluster.measured.part_times(model, job, slowest.kind, team.size)
    if team.size == 1 or measured is not None:
        return Worker(slowest, team.size, 0.0, measured)
    return Worker(slowest, team.size, team_all_reduce_s(cluster, team, hidden_bytes(model, job)))


def gradient_lanes(teams: list[list[Team]], rings: list[list[Seat]], zero: int, tied: bool) -> list[Lanes]:
    """For each ring, the flows that all-reduces make while it goes round; tied: whether the last is a tied embedding's.

    All stages reduce at the same time, each one group at a time; the tied embedding's ring comes after them. With
    ZeRO 3 weights are gathered too, when passes begin, so a stage may be asked for those of several groups.
    """
    if zero == GATHERED_WEIGHTS:
        return [_flows_at_will(teams, rings)] * len(rings)
    blocks = len(rings) - 1 if tied and rings else len(rings)
    return [_flows_in_turn(teams, rings[:blocks])] * blocks + [_flows_in_turn(teams, [ring]) for ring in rings[blocks:]]


def _flows_in_turn(teams: list[list[Team]], rings: list[list[Seat]]) -> Lanes:
    """A stage counts once where it sends from and once where it receives, however many groups it has, with the most
    flows it ever makes; between two nodes there are no more than their stages that send, or receive, there.
    """
    sent: dict[tuple[int, Seat], int] = {}
    received: dict[tuple[int, Seat], int] = {}
    between: dict[tuple[int, int], tuple[dict[Seat, int], dict[Seat, int]]] = {}
    for ring in rings:
        for here, there in zip(ring, [*ring[1:], ring[0]], strict=True):
            source, target = teams[here[0]][here[1]], teams[there[0]][there[1]]
            i, j = source.node, target.node
            if i != j:
                wide = width(source, target)
                senders, receivers = between.setdefault((i, j), ({}, {}))
                for seats, seat in ((senders, here), (receivers, there)):
                    seats[seat] = max(wide, seats.get(seat, 0))
                sent[i, here] = max(wide, sent.get((i, here), 0))
                received[j, there] = max(wide, received.get((j, there), 0))
    lanes = Lanes()
    for (i, _), wide in sent.items():
        lanes.out[i] += wide
    for (j, _), wide in received.items():
        lanes.into[j] += wide
    for pair, (senders, receivers) in between.items():
        lanes.pairs[pair] = min(sum(senders.values()), sum(receivers.values()))
    return lanes


def _flows_at_will(teams: list[list[Team]], rings: list[list[Seat]]) -> Lanes:
    """A stage counts once for each node it sends to; of several teams there, the one it makes the most flows to."""
    flows: dict[tuple[Seat, int], tuple[Team, Team]] = {}
    for ring in rings:
        for here, there in zip(ring, [*ring[1:], ring[0]], strict=True):
            source, target = teams[here[0]][here[1]], teams[there[0]][there[1]]
            key = here, target.node
            if source.node != target.node and (key not in flows or width(source, target) > width(*flows[key])):
                flows[key] = source, target
    return Lanes.of(flows.values())
