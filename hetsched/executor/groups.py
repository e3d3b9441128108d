"""Who does what with whom: one seat a rank, and the ranks that share each part of the model.

Ranks are numbered as `Plan.devices_by_node` lists the devices, which is how torchrun numbers them too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hetsched.plan import Layers, Plan

Ranks = tuple[int, ...]
TIED, EMBEDDING, HEAD = "tied", "embedding", "head"


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place in the plan: its stage, its neighbours, and its samples of each global batch.

    previous, next: the ranks of the stages before and after; None at the ends. The pipeline does `micro_batches`
    micro-batches, consecutive samples from `first_sample` on.
    """

    rank: int
    device: str
    pipeline: str
    stage: int
    depth: int
    layers: Layers
    previous: int | None
    next: int | None
    micro_batches: int
    first_sample: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """Parts of the model (`embedding`, a block number, `head`, `tied`) that exactly these ranks hold, ascending."""

    ranks: Ranks
    units: tuple[str, ...]


def seats(plan: Plan) -> tuple[Seat, ...]:
    """Every rank's seat, by rank. A stage's devices will be a tensor-parallel group; its degree is 1 for now."""
    order = [device for devices in plan.devices_by_node.values() for device in devices]
    rank_of = {device: rank for rank, device in enumerate(order)}
    placed: dict[int, Seat] = {}
    first_sample = 0
    for pipeline in plan.pipelines:
        chain = [rank_of[stage.devices[0]] for stage in pipeline.stages]
        for number, stage in enumerate(pipeline.stages):
            placed[chain[number]] = Seat(
                rank=chain[number],
                device=stage.devices[0],
                pipeline=pipeline.name,
                stage=number,
                depth=len(chain),
                layers=stage.layers,
                previous=chain[number - 1] if number else None,
                next=chain[number + 1] if number + 1 < len(chain) else None,
                micro_batches=pipeline.micro_batches,
                first_sample=first_sample,
            )
        first_sample += pipeline.micro_batches * plan.workload.micro_batch
    return tuple(placed[rank] for rank in range(len(order)))


def unit_of(parameter: str, tied: bool) -> str:
    """The part of the model that a parameter, by its name in the whole model, belongs to."""
    if tied and parameter == "embedding.tokens.weight":
        return TIED
    owner, _, rest = parameter.partition(".")
    return rest.partition(".")[0] if owner == "blocks" else owner


def units_of(seat: Seat, num_layers: int, tied: bool) -> set[str]:
    """The parts of the model that a rank holds; a tied embedding stands on both ends of a pipeline."""
    first, last = seat.layers
    units = {str(block) for block in range(first, last)}
    if first == 0:
        units |= {EMBEDDING, TIED} if tied else {EMBEDDING}
    if last == num_layers:
        units |= {HEAD, TIED} if tied else {HEAD}
    return units


def sharings(plan: Plan) -> tuple[Sharing, ...]:
    """The model's parts with the ranks that hold them, last block first, in the order in which gradients are ready.

    Neighbouring parts on the same ranks stand together, so that their gradients travel together. All ranks work
    through this one order, and so never wait for one another in a circle.
    """
    tied, blocks = plan.model.tied_embeddings, plan.model.num_layers
    held = [(seat.rank, units_of(seat, blocks, tied)) for seat in seats(plan)]
    found: list[Sharing] = []
    for unit in (HEAD, *(str(block) for block in reversed(range(blocks))), EMBEDDING, *((TIED,) if tied else ())):
        ranks = tuple(rank for rank, units in held if unit in units)
        if found and found[-1].ranks == ranks:
            found[-1] = Sharing(ranks, (*found[-1].units, unit))
        else:
            found.append(Sharing(ranks, (unit,)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Boundary:
    """The two one-way channels between a stage and the next.

    They are apart so that neither direction waits for the other where a back end keeps the messages of a group in one
    queue, as NCCL does.
    """

    forward: dist.ProcessGroup
    backward: dist.ProcessGroup


@dataclass(frozen=True, slots=True)
class Groups:
    """The process groups of one rank.

    before, after: the boundaries of its stage; None at the ends. sharing: one group for each set of ranks that holds
    something together with this one.
    """

    before: Boundary | None
    after: Boundary | None
    sharing: Mapping[Ranks, dist.ProcessGroup]


def make_groups(plan: Plan, rank: int, device: torch.device) -> Groups:
    """Make this rank's process groups, each once; `init_process_group` is done.

    All ranks call this and go through all groups in one order, since torch names a group by how many came before it;
    only a group's members talk. Each channel is used once here, before to after, because NCCL connects two ranks at
    their first message and would wait for it in the middle of the schedule.
    """
    everyone = seats(plan)
    boundaries: dict[int, Boundary] = {}  # by the rank of the earlier stage
    for seat in sorted(everyone, key=lambda seat: seat.stage):
        if seat.next is not None:
            pair = (seat.rank, seat.next)
            forward, backward = dist.new_group(list(pair)), dist.new_group(list(pair))
            if rank in pair:
                _greet(rank, seat.rank, seat.next, forward, device)
                _greet(rank, seat.next, seat.rank, backward, device)
                boundaries[seat.rank] = Boundary(forward, backward)
    sharing: dict[Ranks, dist.ProcessGroup] = {}
    for ranks in dict.fromkeys(shared.ranks for shared in sharings(plan)):
        if len(ranks) > 1:
            group = dist.new_group(list(ranks))
            if rank in ranks:
                sharing[ranks] = group
    own = everyone[rank]
    before = None if own.previous is None else boundaries[own.previous]
    return Groups(before, boundaries.get(rank), sharing)


def _greet(rank: int, source: int, target: int, group: dist.ProcessGroup, device: torch.device) -> None:
    word = torch.zeros(1, device=device)
    if rank == source:
        dist.send(word, target, group=group)
    else:
        dist.recv(word, source, group=group)
