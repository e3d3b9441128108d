"""Who sends how many bytes: activations between stages, gradients between the pipelines that train a block."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from hetsched.cost.memory import hidden_bytes
from hetsched.plan import FULL_BITS, Layers, Plan

SCALE_BYTES = 4  # of a row of quantised values: of a token's activations, or of so many gradients
GRADIENT_ROW = 512
GATHERED_WEIGHTS = 3  # the ZeRO stage that shards weights


@dataclass(frozen=True, slots=True)
class GradientGroup:
    """Parameters whose gradients the same stages reduce together.

    layers: the blocks, or None for the tied embedding; members: (pipeline, stage) positions, in rank order.
    """

    layers: Layers | None
    members: tuple[tuple[int, int], ...]
    parameters: int


def hop_bytes(plan: Plan) -> tuple[float, float]:
    """Bytes of one micro-batch's activations between two stages, and of their gradients on the way back."""
    bits, wide = plan.options.compression, plan.workload.dtype_bytes
    size, row = hidden_bytes(plan.model, plan.workload), plan.model.hidden_size
    return (
        compressed_bytes(size, wide, bits.activation_bits, row),
        compressed_bytes(size, wide, bits.activation_grad_bits, row),
    )


def gradient_groups(plan: Plan) -> list[GradientGroup]:
    """Who reduces what with whom, in the executor's order: the last blocks first, a tied embedding last.

    Groups are cut wherever any pipeline's stages are cut, and there is one stage of each pipeline in a group. The
    embedding and the head go with the blocks beside them; a tied embedding stands on the first and the last stage of
    every pipeline, and all of these reduce it together.
    """
    model = plan.model
    cuts = sorted({bound for _, _, stage in plan.stages for bound in stage.layers})
    ends = [[stage.layers[1] for stage in pipeline.stages] for pipeline in plan.pipelines]
    table = model.tied_parameters
    groups = []
    for first, last in reversed(list(pairwise(cuts))):
        parameters = (last - first) * model.block_parameters
        parameters += model.embedding_parameters - table if first == 0 else 0
        parameters += model.head_parameters if last == model.num_layers else 0
        members = tuple((p, bisect_right(bounds, first)) for p, bounds in enumerate(ends))
        groups.append(GradientGroup((first, last), members, parameters))
    if table:
        last_stages = [len(pipeline.stages) - 1 for pipeline in plan.pipelines]
        tied = [(p, s) for p, last in enumerate(last_stages) for s in dict.fromkeys((0, last))]
        groups.append(GradientGroup(None, tuple(tied), table))
    return [group for group in groups if len(group.members) > 1]


def gradient_bytes(plan: Plan, group: GradientGroup) -> float:
    """Bytes of a group's gradients on the wire."""
    wide = plan.workload.dtype_bytes
    return compressed_bytes(float(group.parameters * wide), wide, plan.options.compression.grad_bits, GRADIENT_ROW)


def compressed_bytes(size_bytes: float, element_bytes: int, bits: int, row: int | None = None) -> float:
    """What is left of a message at `bits` an element; 16 means that it is not compressed.

    row: elements that share a scale, which travels too; None leaves scales out, and is the least there can be.
    """
    if bits == FULL_BITS:
        return size_bytes
    elements = size_bytes / element_bytes
    return elements * bits / 8 + (0.0 if row is None else elements / row * SCALE_BYTES)
