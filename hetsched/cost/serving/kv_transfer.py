"""The KV cache of a request on its way from a prefill replica to a decode replica: who sends what to whom.

A stage of the one sends to each stage of the other with which it shares blocks, all at once. GPUs of a tensor-parallel
group hold different heads, so each pair of GPUs carries its part, and nothing is gathered afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hetsched.cluster import Cluster
from hetsched.cost.network import Lanes, Team, gather_s, team_of, transfer_s, width
from hetsched.model import ModelSpec
from hetsched.plan import Stage
from hetsched.precision import Precision

TYPICAL_TOKENS = 1024  # bandwidths are read at the size of such a prompt's KV


def kv_bytes_per_token(model: ModelSpec, precision: Precision, blocks: int) -> float:
    """Bytes of the keys and values of a token in so many blocks, each head once."""
    return blocks * 2.0 * model.num_kv_heads * model.head_dim * precision.kv_bytes


@dataclass(frozen=True, slots=True)
class KvPart:
    """What one stage sends to another of a request's KV cache, of so many blocks."""

    source: Team
    target: Team
    blocks: int
    bytes_per_token: float

    @property
    def flows(self) -> int:
        """How many pairs of GPUs send at once."""
        return width(self.source, self.target)

    @property
    def between_nodes(self) -> bool:
        """Whether the network between nodes carries it, which other transfers may share."""
        return self.source.node != self.target.node


def kv_parts(
    cluster: Cluster, model: ModelSpec, precision: Precision, source: Sequence[Stage], target: Sequence[Stage]
) -> tuple[KvPart, ...]:
    """The parts of a route from a replica with stages `source` to one with stages `target`.

    Raises HetschedError where the cluster lacks a device.
    """
    found = []
    for sender in source:
        for receiver in target:
            blocks = min(sender.layers[1], receiver.layers[1]) - max(sender.layers[0], receiver.layers[0])
            if blocks > 0:
                teams = team_of(cluster, sender.devices), team_of(cluster, receiver.devices)
                found.append(KvPart(*teams, blocks, kv_bytes_per_token(model, precision, blocks)))
    return tuple(found)


def part_s(cluster: Cluster, part: KvPart, lanes: Lanes) -> tuple[float, float]:
    """(seconds a token, latency in s) of a part where these lanes are in use."""
    size_bytes = TYPICAL_TOKENS * part.bytes_per_token
    busy_s, after_s = transfer_s(cluster, part.source, part.target, size_bytes, lanes)
    return busy_s / TYPICAL_TOKENS, after_s - gather_s(cluster, part.target, size_bytes)


def last_block_s(cluster: Cluster, parts: Sequence[KvPart]) -> tuple[float, float]:
    """(seconds a token, latency in s) of the last block alone: what is left when a prompt is done, with overlap."""
    per_token_s, latency_s = part_s(cluster, parts[-1], Lanes())
    return per_token_s / parts[-1].blocks, latency_s


def route_s(cluster: Cluster, parts: Sequence[KvPart], tokens: float) -> float:
    """Seconds of the KV of a prompt of so many tokens, where nothing else is sent: the slowest of its parts.

    Parts that leave or enter the same node share its network.
    """
    lanes = Lanes.of((part.source, part.target) for part in parts)
    times = [part_s(cluster, part, lanes) for part in parts]
    return max(tokens * per_token_s + latency_s for per_token_s, latency_s in times)
