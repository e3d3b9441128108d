"""Layouts near a replica's: what a steady state holds to be alike, and the request simulator does not."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from hetsched.cluster import Cluster
from hetsched.cost.serving.placed import degrees
from hetsched.model import ModelSpec
from hetsched.plan import Stage

MOVED = 8  # of the blocks of two stages one in so many is moved

Stages = tuple[Stage, ...]


def variants(cluster: Cluster, model: ModelSpec, stages: Stages) -> list[Stages]:
    """The layout, and others of the same GPUs, each once.

    With some blocks more or fewer on neighbouring stages; with a stage as two, or two of a machine as one; and all of
    these in reverse order.
    """
    found = [stages, *_joined(cluster, model, stages), *_shifted(stages)]
    return list(dict.fromkeys([*found, *(_in_order(each[::-1]) for each in found)]))


def _joined(cluster: Cluster, model: ModelSpec, stages: Stages) -> Iterator[Stages]:
    """With two neighbours of a machine and kind as one stage, or one stage as two."""
    places = [(d.node, d.gpu.kind) for d in (cluster.device(stage.devices[0]) for stage in stages)]
    allowed = set(degrees(model, max(len(node.gpus) for node in cluster.nodes)))
    for k, stage in enumerate(stages):
        before = stages[k - 1]
        if k and places[k] == places[k - 1] and len(before.devices) + len(stage.devices) in allowed:
            both = Stage((before.layers[0], stage.layers[1]), before.devices + stage.devices)
            yield (*stages[: k - 1], both, *stages[k + 1 :])
        half, (first, last) = len(stage.devices) // 2, stage.layers
        if len(stage.devices) == 2 * half and half in allowed and stage.num_layers > 1:
            middle = (first + last) // 2
            parts = Stage((first, middle), stage.devices[:half]), Stage((middle, last), stage.devices[half:])
            yield (*stages[:k], *parts, *stages[k + 1 :])


def _shifted(stages: Stages) -> Iterator[Stages]:
    """With some blocks moved from a stage to the next, or back."""
    for first, second in pairwise(range(len(stages))):
        some = max(1, (stages[first].num_layers + stages[second].num_layers) // MOVED)
        for giver, taker in ((first, second), (second, first)):
            if stages[giver].num_layers > some:
                sizes = [stage.num_layers for stage in stages]
                sizes[giver] -= some
                sizes[taker] += some
                yield _in_order([Stage((0, size), s.devices) for size, s in zip(sizes, stages, strict=True)])


def _in_order(stages: Sequence[Stage]) -> Stages:
    """The stages one after the other, each with as many blocks as it has."""
    ends = [0, *accumulate(stage.num_layers for stage in stages)]
    return tuple(Stage(blocks, stage.devices) for blocks, stage in zip(pairwise(ends), stages, strict=True))
