"""Who reduces what with whom in a plan of chains, as `traffic.gradient_groups` and `placement` say of a plan, and how
long that takes: by itself, which is remembered, and as all of it shares the network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hetsched.cost.network import Lanes, ring_all_reduce_s
from hetsched.cost.placement import gradient_lanes
from hetsched.cost.roofline_stages import MOST_REMEMBERED, RooflineStages
from hetsched.cost.traffic import GATHERED_WEIGHTS, GRADIENT_ROW, compressed_bytes

FREE = Lanes()


@dataclass(frozen=True, eq=False, slots=True)
class Rings:
    """The rings of a plan in the executor's order.

    members: of each, its stages in ring order, numbered through all pipelines; sizes: bytes of gradients and of
    weights. groups, nodes, degrees: of each stage.
    """

    members: list[list[int]]
    sizes: list[tuple[float, float]]
    groups: list[int]
    nodes: list[int]
    degrees: list[int]

    @property
    def apart(self) -> bool:
        """Whether every stage has a node of its own and all are alike: at any time each is in one ring."""
        return len(set(self.degrees)) == 1 and len(set(self.nodes)) == len(self.nodes)


class ChainRings:
    """Rings of plans of one model, of the groups that `stages` knows."""

    def __init__(self, stages: RooflineStages) -> None:
        self._stages, self._model, self._zero = stages, stages.model, stages.options.zero
        self._sizes: dict[tuple[int, int], tuple[float, float]] = {}
        self._free: dict[tuple[float, tuple[int, ...]], float] = {}
        self._shared: dict[tuple[float, tuple[int, ...], tuple[int, ...]], float] = {}

    def of(
        self,
        holders: Sequence[Sequence[int]],
        cuts: Sequence[int],
        groups: list[int],
        nodes: list[int],
        degrees: list[int],
    ) -> Rings:
        """The rings of a plan.

        holders: per pipeline and block, the stage that holds it; cuts: from 0 to the number of blocks, wherever any
        pipeline is cut.
        """
        tied, size = self._model.tied_parameters, len(nodes)
        ranks = {node: rank for rank, node in enumerate(dict.fromkeys(nodes))}
        places = [ranks[node] * size + stage for stage, node in enumerate(nodes)]  # sorted as nodes come first
        members: list[list[int]] = []
        sizes: list[tuple[float, float]] = []
        if len(holders) > 1:
            for first, last in reversed(list(pairwise(cuts))):
                members.append(sorted([places[holder[first]] for holder in holders]))
                sizes.append(self._sizes.get((first, last)) or self._bytes(first, last))
        ends = {stage for holder in holders for stage in (holder[0], holder[-1])} if tied else set()
        if len(ends) > 1:
            members.append(sorted([places[stage] for stage in ends]))
            sizes.append(self._compressed(tied))
        return Rings([[place % size for place in ring] for ring in members], sizes, groups, nodes, degrees)

    def _bytes(self, first: int, last: int) -> tuple[float, float]:
        """Of the blocks from `first` to `last`, with embedding and head beside them."""
        model = self._model
        parameters = (last - first) * model.block_parameters
        parameters += model.embedding_parameters - model.tied_parameters if first == 0 else 0
        parameters += model.head_parameters if last == model.num_layers else 0
        self._sizes[first, last] = found = self._compressed(parameters)
        return found

    def _compressed(self, parameters: int) -> tuple[float, float]:
        wide, bits = self._stages.job.dtype_bytes, self._stages.options.compression.grad_bits
        return compressed_bytes(float(parameters * wide), wide, bits, GRADIENT_ROW), float(parameters * wide)

    def free_s(self, rings: Rings) -> list[float]:
        """What each all-reduce of gradients takes at least: where nothing else is on the network."""
        found = []
        for ring, (size_bytes, _) in zip(rings.members, rings.sizes, strict=True):
            key = size_bytes, tuple([rings.groups[stage] for stage in ring])
            seconds = self._free.get(key)
            if seconds is None:
                if len(self._free) > MOST_REMEMBERED:
                    self._free.clear()
                seconds = self._free[key] = self._all_reduce_s(rings, ring, size_bytes, FREE)
            found.append(seconds)
        return found

    def shared_s(self, rings: Rings) -> tuple[list[float], list[float]]:
        """What each all-reduce of gradients takes among all others; and, with ZeRO 3, a gather of the weights."""
        tied = self._model.tied_parameters > 0
        lanes = gradient_lanes(rings.members, rings.nodes, rings.degrees, self._zero, tied)
        all_reduces = list(zip(rings.members, rings.sizes, lanes, strict=True))
        reductions = [self._shared_s(rings, ring, gradients, flows) for ring, (gradients, _), flows in all_reduces]
        if self._zero != GATHERED_WEIGHTS:
            return reductions, []
        gathers = [self._shared_s(rings, ring, weights, flows) / 2 for ring, (_, weights), flows in all_reduces]
        return reductions, gathers

    def _shared_s(self, rings: Rings, ring: list[int], size_bytes: float, lanes: Lanes) -> float:
        nodes, pairs, out, into = [rings.nodes[stage] for stage in ring], lanes.pairs, lanes.out, lanes.into
        around = zip(nodes, [*nodes[1:], nodes[0]], strict=True)
        flows = [count for i, j in around if i != j for count in (pairs[i, j], out[i], into[j])]
        key = size_bytes, tuple([rings.groups[stage] for stage in ring]), tuple(flows)
        seconds = self._shared.get(key)
        if seconds is None:
            if len(self._shared) > MOST_REMEMBERED:
                self._shared.clear()
            seconds = self._shared[key] = self._all_reduce_s(rings, ring, size_bytes, lanes)
        return seconds

    def _all_reduce_s(self, rings: Rings, ring: list[int], size_bytes: float, lanes: Lanes) -> float:
        nodes = [rings.nodes[stage] for stage in ring]
        return ring_all_reduce_s(nodes, size_bytes, self._step([rings.groups[stage] for stage in ring], nodes, lanes))

    def _step(self, groups: list[int], nodes: list[int], lanes: Lanes) -> Callable[[int, int, float, int], float]:
        """A `network.RingStep`."""
        link_of, pairs, out, into = self._stages.step_link, lanes.pairs, lanes.out, lanes.into

        def step(a: int, b: int, size_bytes: float, teams: int) -> float:
            i, j = nodes[a], nodes[b]
            if i == j:
                latency_s, bytes_per_s = link_of(groups[a], groups[b], 0, 0, 0, teams)
            else:
                latency_s, bytes_per_s = link_of(groups[a], groups[b], pairs[i, j], out[i], into[j], 0)
            return latency_s + size_bytes / bytes_per_s

        return step
