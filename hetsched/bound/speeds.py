"""How fast the teams of a cluster can be at best: what bounds from below the time that any plan computes.

A team's speed is in blocks a second: both passes of one micro-batch. Embedding and head count as so many blocks more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hetsched.cluster import Cluster, Floats, Gpu
from hetsched.cost.compute import all_reduces, optimizer_s, stage_work
from hetsched.cost.memory import hidden_bytes
from hetsched.cost.network import CHUNK_BYTES
from hetsched.cost.workers import worker_at
from hetsched.model import ModelSpec
from hetsched.workload import TrainingJob

LEVEL = 1.25  # plans are told apart by their slowest team, in classes of speeds up to so many times each other
ROUNDING = 1 - 1e-9
MOST_TOPS = 3
GREATER = 2.0


@dataclass(frozen=True, slots=True)
class TeamSpeed:
    """The best that `degree` GPUs of one kind in one of `nodes` do as a stage.

    blocks_per_s: of both passes; forward_s: a block's forward; forward_share: the least that forward passes of any
    stage are of both; first, last: embedding and head, as so many blocks; update_s: a block's optimiser step by one
    peer.
    """

    gpu: Gpu
    nodes: tuple[int, ...]
    degree: int
    blocks_per_s: float
    forward_s: float
    forward_share: float
    first: float
    last: float
    update_s: float


@dataclass(frozen=True, slots=True)
class Make:
    """Pipelines by their teams: blocks a second of the fastest and of the slowest that one may have.

    waste: what its devices could add to teams at least, less what they do, and `second_waste` more where it has several
    stages. The others are the least of any such team; first, last: embedding and head, as so many blocks.
    """

    team: float
    slowest: float
    waste: float
    second_waste: float
    forward_s: float
    backward_s: float
    first: float
    last: float

    def waste_of(self, stages: Floats) -> Floats:
        """By number of stages."""
        return self.waste + np.where(stages > 1, self.second_waste, 0.0)

    @classmethod
    def of(cls, teams: Sequence[TeamSpeed], first: Sequence[TeamSpeed], last: Sequence[TeamSpeed]) -> "Make":
        """Of these teams, the first and the last of some of them, where nothing is wasted."""
        return cls(
            max(team.blocks_per_s for team in teams),
            min(team.blocks_per_s for team in teams) * ROUNDING,
            0.0,
            0.0,
            min(team.forward_s for team in teams),
            min(1 / team.blocks_per_s - team.forward_s for team in teams),
            min(team.first for team in first),
            min(team.last for team in last),
        )


@dataclass(frozen=True, slots=True)
class Case:
    """Plans whose pipelines are of these makes.

    rings: the most GPUs that one of two neighbours has, in some place of each block's ring; tied: of that of a tied
    embedding; lean: of each team of pipelines that waste nothing.
    """

    makes: tuple[Make, ...]
    rings: int
    tied: int
    lean: int


@dataclass(frozen=True, slots=True)
class SpeedLevel:
    """What a plan can have whose slowest team does at least `slowest` blocks a second.

    device: (devices,) the most blocks a second that each device adds to a team, 0 where it can be in none; degree: of
    the largest team it can be in, 0 where in none. team: blocks a second of the fastest team. forward_s, extra_blocks
    (embedding and head), update_s: the least of any team allowed. cases: every plan is of one of them. teams: those
    allowed; wastes: blocks a second less of each than its GPUs could add to others.
    """

    slowest: float
    device: Floats
    degree: Floats
    team: float
    forward_s: float
    extra_blocks: float
    update_s: float
    cases: tuple[Case, ...]
    teams: tuple[TeamSpeed, ...] = ()
    wastes: tuple[float, ...] = ()


def speed_levels(cluster: Cluster, model: ModelSpec, job: TrainingJob, recompute: bool) -> Iterator[SpeedLevel]:
    """Classes of plans that together hold every plan: each plan's slowest team is at least as fast as its class says.

    Within a class, teams slower than its limit are left out: no plan of it has them.
    """
    teams = list(team_speeds(cluster, model, job, recompute))
    of_kind = {gpu: np.array([d.gpu == gpu for d in cluster.devices]) for gpu in {team.gpu for team in teams}}
    slowest = 0.0
    for speed in sorted(team.blocks_per_s for team in teams):
        if speed < slowest * LEVEL:
            continue
        slowest = speed * ROUNDING
        allowed = [team for team in teams if team.blocks_per_s >= slowest]
        device, degree = np.zeros(len(cluster.devices)), np.zeros(len(cluster.devices))
        places = [np.isin(cluster.node_of, team.nodes) & of_kind[team.gpu] for team in allowed]
        for team, at in zip(allowed, places, strict=True):
            device[at] = np.maximum(device[at], team.blocks_per_s / team.degree)
            degree[at] = np.maximum(degree[at], team.degree)
        wastes = [
            max(0.0, team.degree * float(device[at].min()) - team.blocks_per_s)
            for team, at in zip(allowed, places, strict=True)
        ]
        yield SpeedLevel(
            slowest,
            device,
            degree,
            max(team.blocks_per_s for team in allowed),
            min(team.forward_s for team in allowed),
            min(team.first for team in allowed) + min(team.last for team in allowed),
            min(team.update_s for team in allowed),
            _cases(allowed, wastes, bool(cluster.measured.curves.between or cluster.network.per_device)),
            tuple(allowed),
            tuple(wastes),
        )


def _cases(teams: list[TeamSpeed], wastes: list[float], apart: bool) -> tuple[Case, ...]:
    """Where some pipeline is lean; else, where some first or last stage of several is; and where none of these is.

    In the first, each block's ring has a lean team, and in the second a tied embedding's. In the last, pipelines are
    told apart by whether their last team wastes `GREATER` times as much as any must. apart: whether nodes exchange more
    the more GPUs do so at once; else that is all one.
    """
    lean = [team for team, waste in zip(teams, wastes, strict=True) if waste <= team.blocks_per_s * (1 / ROUNDING - 1)]
    narrow, wide = (max(team.degree for team in some) for some in (lean, teams))
    without = Make.of(lean, lean, lean)
    if len(lean) == len(teams):
        return (Case((without,), narrow, narrow, narrow),)
    wasteful = [(team, waste) for team, waste in zip(teams, wastes, strict=True) if team not in lean]
    firsts, least = [team for team, _ in wasteful], min(waste for _, waste in wasteful)

    def makes(make: Make, floor: float, more: float) -> tuple[Make, ...]:
        tops = _tops([team.blocks_per_s for team in teams], [max(waste, floor) for waste in wastes])
        return tuple(replace(make, team=fastest, waste=waste, second_waste=more) for fastest, waste in tops)

    one = makes(Make.of(teams, teams, teams), least, 0.0)
    if not apart:
        return (Case((without, *one), wide, wide, narrow),)
    several: tuple[Make, ...] = ()
    for great in (False, True):
        lasts = [(team, waste) for team, waste in wasteful if (waste >= GREATER * least) == great]
        if lasts:
            make = Make.of(teams, firsts, [team for team, _ in lasts])
            several += makes(make, min(waste for _, waste in lasts), least)
    return (
        Case((without, *one), narrow, narrow, narrow),
        Case(one, wide, narrow, narrow),
        Case(several, wide, wide, narrow),
    )


def _tops(speeds: list[float], wastes: list[float]) -> tuple[tuple[float, float], ...]:
    """Classes of teams by speed, `MOST_TOPS` at most: the greatest speed and the least waste of each.

    Without those that waste no less than a faster one.
    """
    found: list[tuple[float, float]] = []
    start = 0.0
    for speed, waste in sorted(zip(speeds, wastes, strict=True)):
        if speed > start * LEVEL and len(found) < MOST_TOPS:
            start = speed
            found.append((speed, waste))
        else:
            found[-1] = speed, min(waste, found[-1][1])
    return tuple(top for k, top in enumerate(found) if all(top[1] < faster for _, faster in found[k + 1 :]))


def team_speeds(cluster: Cluster, model: ModelSpec, job: TrainingJob, recompute: bool) -> Iterator[TeamSpeed]:
    """The best of every kind and degree, in nodes alike, at the job's micro-batch size.

    `stage_work` is linear in the number of blocks, so a block in the middle, the first less that and the last less that
    say it all; the all-reduce is as fast as the best links between any two such GPUs of the node.
    """
    short = replace(model, num_layers=3)  # with a block in the middle, whatever the model's depth
    for (gpu, count, latency_s, _), nodes in _nodes_alike(cluster).items():
        for degree in range(1, count + 1):
            all_reduce_s = 0.0
            if degree > 1:
                bytes_per_s = max(inside_bytes_per_s(cluster, node, degree) for node in nodes)
                size = hidden_bytes(model, job) / degree
                all_reduce_s = 2 * (degree - 1) * (latency_s + size / bytes_per_s)
            worker = worker_at(cluster.measured, gpu, degree, all_reduce_s, model, job)
            first, middle, last = (stage_work(worker, short, job, (k, k + 1), recompute) for k in range(3))
            block_s = middle.forward_s + middle.backward_s
            passes = [(work.forward_s, work.backward_s) for work in (first, middle, last)]
            if worker.all_reduce_s:  # slower ones may be nearly all that a stage does
                passes += [all_reduces(short, (k, k + 1), recompute) for k in range(3)]
            yield TeamSpeed(
                gpu,
                tuple(nodes),
                degree,
                1 / block_s,
                middle.forward_s,
                min(there / (there + back) for there, back in passes),
                max(0.0, (first.forward_s + first.backward_s) / block_s - 1),
                max(0.0, (last.forward_s + last.backward_s) / block_s - 1),
                optimizer_s(worker, short, (1, 2), 1),
            )


def inside_bytes_per_s(cluster: Cluster, node: int, gpus: int) -> float:
    """The most that each of `gpus` GPUs of a node has to its neighbour in a ring inside it."""
    measured = cluster.inside_bytes_per_s(node, gpus, CHUNK_BYTES)
    return fastest_link(cluster, node)[1] if measured is None else measured


def fastest_link(cluster: Cluster, node: int) -> tuple[float, float]:
    """The least latency in s and the most bytes/s between any two GPUs of a node."""
    count = len(cluster.nodes[node].gpus)
    if (node, node) in cluster.network.per_device and count > 1:
        bandwidth, latency = cluster.network.per_device[node, node]
        apart = ~np.eye(count, dtype=bool)
        return float(latency[apart].min()), float(bandwidth[apart].max())
    return float(cluster.network.latency_s[node, node]), float(cluster.network.bandwidth_bytes_per_s[node, node])


def _nodes_alike(cluster: Cluster) -> dict[tuple[Gpu, int, float, float], list[int]]:
    """{(a kind of GPU, how many of it, latency and bytes/s inside): the nodes that have it}."""
    found: dict[tuple[Gpu, int, float, float], list[int]] = {}
    for number, node in enumerate(cluster.nodes):
        link = fastest_link(cluster, number) if len(node.gpus) > 1 else (0.0, np.inf)
        for gpu in dict.fromkeys(node.gpus):
            found.setdefault((gpu, node.gpus.count(gpu), *link), []).append(number)
    return found
