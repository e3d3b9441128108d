"""Who reduces what with whom in a plan of chains, as `traffic.gradient_groups` and `placement` say of a plan."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from hetsched.cost.chains import Chain
from hetsched.cost.network import Team
from hetsched.cost.traffic import compressed_bytes
from hetsched.model import ModelSpec
from hetsched.workload import TrainingJob

Ring = tuple[list[tuple[int, int]], float, float]  # seats in ring order, bytes of gradients, bytes of weights


def chain_rings(
    model: ModelSpec,
    job: TrainingJob,
    grad_bits: int,
    chains: Sequence[Chain],
    holders: Sequence[Sequence[int]],
    teams: Sequence[Sequence[Team]],
) -> list[Ring]:
    """The rings in the executor's order, each in ring order.

    holders: per chain and block, which stage holds it; teams: per chain and stage.
    """
    if len(chains) == 1 and not model.tied_parameters:
        return []
    ranks: dict[int, int] = {}
    for line in teams:
        for team in line:
            ranks.setdefault(team.node, len(ranks))
    cuts = sorted({0, *(cut for chain in set(chains) for cut in accumulate(count for _, count in chain))})
    table = model.tied_parameters
    found: list[tuple[list[tuple[int, int]], int]] = []
    for first, last in reversed(list(pairwise(cuts))):
        parameters = (last - first) * model.block_parameters
        parameters += model.embedding_parameters - table if first == 0 else 0
        parameters += model.head_parameters if last == model.num_layers else 0
        found.append(([(p, holder[first]) for p, holder in enumerate(holders)], parameters))
    if table:
        ends = [len(chain) - 1 for chain in chains]
        found.append(([(p, s) for p, last in enumerate(ends) for s in dict.fromkeys((0, last))], table))
    wide = job.dtype_bytes
    return [
        (
            sorted(seats, key=lambda seat: ranks[teams[seat[0]][seat[1]].node]),
            compressed_bytes(float(parameters * wide), wide, grad_bits),
            float(parameters * wide),
        )
        for seats, parameters in found
        if len(seats) > 1
    ]
