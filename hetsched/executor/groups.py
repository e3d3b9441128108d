"""Who does what with whom: one seat a rank, and the process groups in which ranks talk.

Ranks are numbered as `Plan.devices_by_node` lists the devices, which is how torchrun numbers them too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hetsched.executor.shards import (
    Ranks,
    Sharing,
    Slice,
    block_parameters,
    embedding_parameters,
    head_parameters,
    slices_of,
)
from hetsched.plan import Layers, Plan

TIED = "embedding.tokens.weight"


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place in the plan: its stage, its neighbours, and its samples of each global batch.

    team: the ranks of its stage, a tensor-parallel group; previous, next: those of the stages before and after, none
    at the ends; all ascending. The pipeline does `micro_batches` micro-batches, consecutive samples from
    `first_sample` on.
    """

    rank: int
    device: str
    pipeline: str
    stage: int
    depth: int
    layers: Layers
    team: Ranks
    previous: Ranks
    next: Ranks
    micro_batches: int
    first_sample: int

    @property
    def degree(self) -> int:
        """The stage's tensor-parallel degree."""
        return len(self.team)

    @property
    def place(self) -> int:
        """Which device of its team this is, from 0."""
        return self.team.index(self.rank)


def seats(plan: Plan) -> tuple[Seat, ...]:
    """Every rank's seat, by rank."""
    order = [device for devices in plan.devices_by_node.values() for device in devices]
    rank_of = {device: rank for rank, device in enumerate(order)}
    placed: dict[int, Seat] = {}
    first_sample = 0
    for pipeline in plan.pipelines:
        chain: list[Ranks] = [tuple(sorted(rank_of[device] for device in stage.devices)) for stage in pipeline.stages]
        around = [(), *chain, ()]
        for number, stage in enumerate(pipeline.stages):
            for rank in chain[number]:
                placed[rank] = Seat(
                    rank=rank,
                    device=order[rank],
                    pipeline=pipeline.name,
                    stage=number,
                    depth=len(chain),
                    layers=stage.layers,
                    team=chain[number],
                    previous=around[number],
                    next=around[number + 2],
                    micro_batches=pipeline.micro_batches,
                    first_sample=first_sample,
                )
        first_sample += pipeline.micro_batches * plan.workload.micro_batch
    return tuple(placed[rank] for rank in range(len(order)))


def sharings(plan: Plan) -> tuple[Sharing, ...]:
    """All slices of the model with the ranks that hold them, last block first: the order in which gradients are ready.

    Neighbouring parts on the same teams stand together, so that their gradients travel together; a tied embedding comes
    last. All ranks work through this one order, and so never wait for one another in a circle.
    """
    runs: list[tuple[tuple[Ranks, ...], list[str]]] = []
    for teams, names in _units(plan):
        if runs and runs[-1][0] == teams:
            runs[-1][1].extend(names)
        else:
            runs.append((teams, list(names)))
    found: list[Sharing] = []
    for teams, names in runs:
        together: dict[tuple[Ranks, Ranks], list[Slice]] = {}
        for ranks, counted, part in slices_of(plan.model, names, teams):
            together.setdefault((ranks, counted), []).append(part)
        found += [Sharing(ranks, counted, tuple(parts)) for (ranks, counted), parts in together.items()]
    return tuple(found)


def _units(plan: Plan) -> Iterator[tuple[tuple[Ranks, ...], list[str]]]:
    """(teams that hold it, names of its parameters) of the head, each block, the embedding, and what both ends tie."""
    model = plan.model
    teams = dict.fromkeys((seat.team, seat.layers) for seat in seats(plan))
    last = tuple(team for team, layers in teams if layers[1] == model.num_layers)
    first = tuple(team for team, layers in teams if layers[0] == 0)
    yield last, list(head_parameters(model))
    for block in reversed(range(model.num_layers)):
        yield tuple(team for team, (a, b) in teams if a <= block < b), list(block_parameters(model, block))
    yield first, list(embedding_parameters(model))
    if model.tied_embeddings:
        yield tuple(dict.fromkeys((*first, *last))), [TIED]


@dataclass(frozen=True, slots=True)
class Channel:
    """One way from one rank to one of a neighbouring stage. part: which of the receiving team's parts goes there."""

    source: int
    target: int
    part: int
    group: dist.ProcessGroup


def ways(senders: Ranks, receivers: Ranks) -> tuple[tuple[int, int], ...]:
    """(sender, receiver) for each receiver, the senders evenly used."""
    return tuple((senders[i * len(senders) // len(receivers)], rank) for i, rank in enumerate(receivers))


@dataclass(frozen=True, slots=True)
class Groups:
    """The process groups of one rank.

    team: its tensor-parallel group; None where it is alone. Its channels: activations
    come from the stage before and go to the one after, gradients the other way. sharing: one group for each set of
    ranks that adds gradients up with this one.
    """

    team: dist.ProcessGroup | None
    activations_in: Channel | None
    activations_out: tuple[Channel, ...]
    gradients_in: Channel | None
    gradients_out: tuple[Channel, ...]
    sharing: Mapping[Ranks, dist.ProcessGroup]


def make_groups(plan: Plan, rank: int, device: torch.device) -> Groups:
    """Make this rank's process groups, each once; `init_process_group` is done.

    All ranks call this and go through all groups in one order, since torch names a group by how many came before it;
    only a group's members talk. The two directions of a boundary have groups of their own, so that neither waits for
    the other where a back end keeps the messages of a group in one queue, as NCCL does. Each channel is used once here,
    before to after, because NCCL connects two ranks at their first message and would wait for it in the middle of the
    schedule.
    """
    everyone = seats(plan)
    own = everyone[rank]
    teams = {seat.team: seat for seat in sorted(everyone, key=lambda seat: seat.stage)}
    forward: list[Channel] = []
    backward: list[Channel] = []
    for team, seat in teams.items():
        if seat.next:
            for channels, senders, receivers in ((forward, team, seat.next), (backward, seat.next, team)):
                for part, (source, target) in enumerate(ways(senders, receivers)):
                    group = dist.new_group([source, target])
                    if rank in (source, target):
                        channels.append(Channel(source, target, part, group))
                        _greet(rank, channels[-1], device)
    made: dict[Ranks, dist.ProcessGroup] = {}
    shared = [sharing.ranks for sharing in sharings(plan) if sharing.reduced]
    for ranks in dict.fromkeys((*teams, *shared)):
        if len(ranks) > 1:
            group = dist.new_group(list(ranks))
            if rank in ranks:
                made[ranks] = group
    return Groups(
        team=made.get(own.team),
        activations_in=next((channel for channel in forward if channel.target == rank), None),
        activations_out=tuple(channel for channel in forward if channel.source == rank),
        gradients_in=next((channel for channel in backward if channel.target == rank), None),
        gradients_out=tuple(channel for channel in backward if channel.source == rank),
        sharing={ranks: made[ranks] for ranks in dict.fromkeys(shared) if rank in ranks},
    )


def _greet(rank: int, channel: Channel, device: torch.device) -> None:
    word = torch.zeros(1, device=device)
    if rank == channel.source:
        dist.send(word, channel.target, group=channel.group)
    else:
        dist.recv(word, channel.source, group=channel.group)
