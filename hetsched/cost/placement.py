"""A training plan on its cluster: the team of each stage, what it works, and who uses which network at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from hetsched.cluster import Cluster
from hetsched.cost.compute import StageWork, Worker, efficiency, stage_work
from hetsched.cost.hops import hops_of, link_between
from hetsched.cost.memory import hidden_bytes
from hetsched.cost.network import Lanes, Team, team_all_reduce_s, team_of
from hetsched.cost.schedule import Hop
from hetsched.cost.traffic import GATHERED_WEIGHTS, GradientGroup, gradient_groups, hop_bytes
from hetsched.cost.workers import worker_at
from hetsched.model import ModelSpec
from hetsched.plan import Plan
from hetsched.workload import TrainingJob

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
        """Whether hops go in parts (`transfer_s`): the bundled executor, whose messages also overlap, sends so."""
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

    def hops(self, pipeline: int, work: Sequence[StageWork] | None = None) -> list[Hop]:
        """The links between a pipeline's stages, for one micro-batch's activations and their gradients.

        work: what its stages work, as `works` where it is left out.
        """
        sizes, line = hop_bytes(self.plan), self.plan.pipelines[pipeline]
        links = [
            link_between(
                self.cluster,
                here,
                there,
                sizes,
                self.forward_lanes,
                self.backward_lanes,
                self.crossing_lanes,
                self.in_parts,
            )
            for here, there in pairwise(self.teams[pipeline])
        ]
        return hops_of(links, work or self.works[pipeline], line.micro_batches, self.plan.options)

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
    all_reduce_s = team_all_reduce_s(cluster, team, hidden_bytes(model, job))
    return worker_at(cluster.measured, slowest, team.size, all_reduce_s, model, job)


def gradient_lanes(
    rings: Sequence[Sequence[int]], nodes: Sequence[int], sizes: Sequence[int], zero: int, tied: bool
) -> list[Lanes]:
    """For each ring, the flows that all-reduces make while it goes round; tied: whether the last is a tied embedding's.

    rings: stages by number, in the order in which blocks are reduced; nodes, sizes: of each stage's team. A stage
    reduces one group at a time, so rings of one stage are never under way at once, all others may be; the tied
    embedding's comes after them. With ZeRO 3 weights are gathered too, when passes begin, so a stage may be asked for
    those of several groups.
    """
    if zero == GATHERED_WEIGHTS:
        return [_at_will(rings, nodes, sizes)] * len(rings)
    blocks = len(rings) - 1 if tied and rings else len(rings)
    return [_at_once(rings[:blocks], nodes, sizes)] * blocks + [
        _at_once([ring], nodes, sizes) for ring in rings[blocks:]
    ]


def _at_will(rings: Iterable[Sequence[int]], nodes: Sequence[int], sizes: Sequence[int]) -> Lanes:
    """A stage counts once for each node that it sends to, with the most flows it ever makes there."""
    sends: dict[tuple[int, int], int] = {}
    for a, b in {step for ring in rings for step in _around(ring)}:
        if nodes[a] != nodes[b]:
            sends[a, nodes[b]] = max(sends.get((a, nodes[b]), 0), min(sizes[a], sizes[b]))
    lanes = Lanes()
    for (a, j), wide in sends.items():
        lanes.add(nodes[a], j, wide)
    return lanes


def _at_once(rings: Sequence[Sequence[int]], nodes: Sequence[int], sizes: Sequence[int]) -> Lanes:
    """The most flows that rings without a common stage make on each way; a ring leaves and enters a node once."""
    out: dict[int, list[tuple[int, int]]] = {}
    into: dict[int, list[tuple[int, int]]] = {}
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    last: dict[int, int] = {}  # ring of each stage
    for number, ring in enumerate(rings):
        for a, b in _around(ring):
            last[a] = number
            i, j = nodes[a], nodes[b]
            if i != j:
                flows = number, min(sizes[a], sizes[b])
                out.setdefault(i, []).append(flows)
                into.setdefault(j, []).append(flows)
                pairs.setdefault((i, j), []).append(flows)
    # Stages hold blocks in a row, so a ring and the next ones have common stages up to one, and none after that.
    apart = [1 + max([last[stage] for stage in ring]) for ring in rings]
    return Lanes(
        {node: _most_at_once(flows, apart) for node, flows in out.items()},
        {node: _most_at_once(flows, apart) for node, flows in into.items()},
        {pair: _most_at_once(flows, apart) for pair, flows in pairs.items()},
    )


def _most_at_once(flows: Sequence[tuple[int, int]], apart: Sequence[int]) -> int:
    """The most flows of rings that can be under way at once; flows: (ring, how many) in the order of the rings.

    apart: for each ring, the first after it without a common stage. Longest path, from the last ring on.
    """
    most = [0] * (len(flows) + 1)
    behind = len(flows)
    for k in range(len(flows) - 1, -1, -1):
        ring, own = flows[k]
        while behind > k + 1 and flows[behind - 1][0] >= apart[ring]:
            behind -= 1
        most[k] = max(most[k + 1], own + most[behind])
    return most[0]


def _around(ring: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(ring, [*ring[1:], ring[0]], strict=True)
