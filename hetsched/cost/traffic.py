"""Who sends how many bytes: activations between stages, gradients between the pipelines that train a block."""

from dataclasses import dataclass
from itertools import pairwise

from hetsched.cost.memory import hidden_bytes
from hetsched.model import ModelSpec
from hetsched.plan import Plan

FULL_BITS = 16


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Consecutive blocks whose gradients the same stages reduce together, one stage of each pipeline."""

    layers: tuple[int, int]
    members: tuple[tuple[int, int], ...]  # (pipeline, stage) positions


def hop_bytes(plan: Plan) -> tuple[float, float]:
    """Bytes of one micro-batch's activations between two stages, and of their gradients on the way back."""
    bits, size = plan.options.compression, hidden_bytes(plan.model, plan.workload)
    return compressed_bytes(size, bits.activation_bits), compressed_bytes(size, bits.activation_grad_bits)


def block_groups(plan: Plan) -> list[BlockGroup]:
    """The data-parallel groups, in the order of their blocks: cut wherever any pipeline's stages are cut."""
    cuts = sorted({bound for _, _, stage in plan.stages for bound in stage.layers})
    held = [
        {layer: s for s, stage in enumerate(pipeline.stages) for layer in range(*stage.layers)}
        for pipeline in plan.pipelines
    ]
    groups: list[BlockGroup] = []
    for layers in pairwise(cuts):
        members = tuple((p, of_layer[layers[0]]) for p, of_layer in enumerate(held))
        if groups and groups[-1].members == members:
            groups[-1] = BlockGroup((groups[-1].layers[0], layers[1]), members)
        else:
            groups.append(BlockGroup(layers, members))
    return groups


def gradient_bytes(model: ModelSpec, layers: tuple[int, int], dtype_bytes: int, bits: int) -> float:
    """Bytes of the gradients of these blocks, embedding and head included where they live."""
    return compressed_bytes(model.stage_parameters(layers) * dtype_bytes, bits)


def compressed_bytes(size_bytes: float, bits: int) -> float:
    """What `bits` an element leave of a message of 16-bit elements; of wider ones the same share."""
    return size_bytes * bits / FULL_BITS
