"""What a serving replica takes: times of its stages and of the hops between them, and the room of its KV cache.

This is what the request simulator, the solvers and `hetsched estimate` ask. A step goes through the stages in order:
stage 0 works on it (`prefill_s`, `decode_s` or `step_s` of stage 0), its activations hop to stage 1 (`hop_s(0, ...)`),
and so on; from the last stage the sampled tokens return to the first (`return_s`). `overhead_s` is what the engine's
scheduler takes between two steps, once a step, whatever the depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from hetsched.cluster import Cluster, Link
from hetsched.cost.memory import RESERVE_BYTES, reserve_bytes
from hetsched.cost.network import Lanes, Team, gather_s, inside, team_of, transfer_s
from hetsched.cost.serving.operators import Floats
from hetsched.cost.serving.stage import StageTimes
from hetsched.model import ModelSpec
from hetsched.plan import Layers, Stage
from hetsched.precision import Precision
from hetsched.profiles import ServingProfile

UNQUANTISED = Precision()
STEP_OVERHEAD_S = 5e-5  # the engine schedules the next step while the GPUs work, and launches one graph
TOKEN_ID_BYTES = 4
SWITCHED_SHARE = 0.9  # of the usual bandwidth inside a node: what has as much is taken to be that link, with its switch


@dataclass(frozen=True)
class DecodeTable:
    """Decode steps, ready for a loop: stage s takes `base_s[s, n] + per_context_token_s[s, n] * context_tokens`.

    Both arrays are (stages, largest batch + 1), n the number of sequences of the step and `context_tokens` the sum of
    their contexts; hop_s: (stages, largest batch + 1), what the n activations take from stage s to the next one, and
    from the last one back to the first. All in seconds. Exactly `decode_s` and `hop_s`.
    """

    base_s: Floats
    per_context_token_s: Floats
    hop_s: Floats


@dataclass(frozen=True)
class Hop:
    """From a stage to the next: seconds = latency_s + tokens * per_token_s; the link is busy for the latter part."""

    latency_s: float
    per_token_s: float


@dataclass(frozen=True)
class ReplicaTimes:
    """Times of a replica with stages 0 .. depth - 1, and its KV cache.

    stages: their times, which take arrays. hops: (depth,), from stage s to the next, the last back to the first.
    kv_room_bytes: (depth,), bytes on each GPU of the stage that are left for the KV cache, on the one that has least;
    it is negative where the weights do not fit. used_bytes: (depth,), what else each of them needs: weights, the
    workspace of a step, the runtime. overhead_s: of the engine, once a step.
    """

    stages: tuple[StageTimes, ...]
    hops: tuple[Hop, ...]
    kv_room_bytes: tuple[float, ...]
    used_bytes: tuple[float, ...]
    overhead_s: float = STEP_OVERHEAD_S

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self.stages)

    def prefill_s(self, stage: int, tokens: ArrayLike, pairs: ArrayLike, prompts: ArrayLike = 1.0) -> Floats:
        """Seconds stage `stage` prefills `prompts` prompts of `tokens` tokens in all; see `StageTimes.prefill_s`.

        pairs: the sum over the prompts of `causal_pairs(prompt's tokens)`, for a chunk `causal_pairs(chunk, past)`.
        """
        return self.stages[stage].prefill_s(tokens, pairs, prompts)

    def decode_s(self, stage: int, sequences: ArrayLike, context_tokens: ArrayLike) -> Floats:
        """Seconds of stage `stage` for one token of each of `sequences`, their contexts `context_tokens` together."""
        return self.stages[stage].decode_s(sequences, context_tokens)

    def step_s(
        self,
        stage: int,
        tokens: ArrayLike,
        pairs: ArrayLike,
        prompts: ArrayLike,
        sequences: ArrayLike,
        context_tokens: ArrayLike,
    ) -> Floats:
        """Seconds of stage `stage` for a step that prefills a chunk and decodes at once (chunked prefill)."""
        return self.stages[stage].step_s(tokens, pairs, prompts, sequences, context_tokens)

    def hop_s(self, stage: int, tokens: ArrayLike) -> Floats:
        """Seconds from when stage `stage` is done with `tokens` tokens until the next stage has them.

        tokens: all that the step works on, prompts' and decoded ones. From the last stage: `return_s`, where tokens
        are those sampled.
        """
        hop = self.hops[stage]
        return np.asarray(hop.latency_s + np.asarray(tokens, dtype=float) * hop.per_token_s)

    def return_s(self, tokens: ArrayLike) -> Floats:
        """Seconds that `tokens` sampled tokens take from the last stage to the first; 0 for a replica of one stage."""
        return self.hop_s(self.depth - 1, tokens)

    def decode_table(self, largest_batch: int) -> DecodeTable:
        """The decode steps of up to `largest_batch` sequences as tables."""
        sizes = np.arange(largest_batch + 1, dtype=float)
        base = np.stack([stage.decode_s(sizes, 0.0) for stage in self.stages])
        more = np.stack([stage.decode_s(sizes, 1e6) for stage in self.stages])
        hops = np.stack([self.hop_s(stage, sizes) for stage in range(self.depth)])
        return DecodeTable(base, (more - base) / 1e6, hops)

    def kv_bytes_per_token(self, stage: int) -> float:
        """Bytes of KV cache that a token takes on each GPU of a stage."""
        return self.stages[stage].kv_bytes_per_token

    @cached_property
    def kv_capacity_tokens(self) -> int:
        """How many tokens' keys and values the replica holds at once, prompts' and generated ones: its tightest stage.

        0 where the weights leave no room.
        """
        rooms = zip(self.kv_room_bytes, self.stages, strict=True)
        return max(0, int(min(room / stage.kv_bytes_per_token for room, stage in rooms)))

    def largest_batch(self, tokens_per_sequence: float) -> int:
        """How many sequences of so many tokens (prompt and output) it holds at once."""
        return int(self.kv_capacity_tokens / max(1.0, tokens_per_sequence))

    @property
    def fits(self) -> bool:
        """Whether every stage's weights leave room for a KV cache."""
        return self.kv_capacity_tokens > 0


def replica_times(
    cluster: Cluster,
    model: ModelSpec,
    stages: Sequence[Stage],
    precision: Precision = UNQUANTISED,
    memory_fraction: float = 0.92,
) -> ReplicaTimes:
    """The times of the replica with these stages on the cluster's devices.

    memory_fraction: of each GPU's memory, what may be used. Raises HetschedError where the cluster lacks a device.
    """
    teams = [team_of(cluster, stage.devices) for stage in stages]
    times = tuple(
        stage_times(cluster, model, team, stage.layers, precision) for stage, team in zip(stages, teams, strict=True)
    )
    sizes = [[cluster.devices[device].gpu.memory_bytes for device in team.devices] for team in teams]
    used = tuple(needed_bytes(stage, max(size)) for stage, size in zip(times, sizes, strict=True))
    rooms = tuple(min(size) * memory_fraction - taken for size, taken in zip(sizes, used, strict=True))
    return ReplicaTimes(times, _hops(cluster, model, teams, precision), rooms, used)


def needed_bytes(stage: StageTimes, gpu_bytes: float) -> float:
    """What a stage needs on each GPU beside the KV cache: weights, the workspace of a step, the runtime."""
    return stage.weight_bytes + stage.workspace_bytes + RESERVE_BYTES + reserve_bytes(gpu_bytes)


def stage_times(cluster: Cluster, model: ModelSpec, team: Team, layers: Layers, precision: Precision) -> StageTimes:
    """The times of a team as the stage of these blocks."""
    gpus = [cluster.devices[device].gpu for device in team.devices]
    slowest = min(gpus, key=lambda gpu: (gpu.memory_bytes_per_s, gpu.flops_per_s(precision.dtype)))
    link = None
    if team.size > 1:
        latency_s, bytes_per_s = inside(cluster, team)
        usual = slowest.link
        switched = usual is not None and bytes_per_s >= SWITCHED_SHARE * usual.bandwidth_bytes_per_s
        link = Link(bytes_per_s, latency_s, usual.whole_node_gain if usual is not None and switched else 1.0)
    return StageTimes(
        slowest,
        team.size,
        link,
        model,
        precision,
        layers[1] - layers[0],
        layers[0] == 0,
        layers[1] == model.num_layers,
        _profile(cluster, model, slowest.kind, team.size, precision),
    )


def _profile(cluster: Cluster, model: ModelSpec, kind: str, degree: int, precision: Precision) -> ServingProfile | None:
    """Measured times of the model's blocks; they are of two-byte weights, activations and KV cache."""
    sizes = precision.activation_bytes, precision.weight_bytes, precision.kv_bytes
    return cluster.measured.serving_profile(model, kind, degree) if sizes == (2.0, 2.0, 2.0) else None


def _hops(cluster: Cluster, model: ModelSpec, teams: Sequence[Team], precision: Precision) -> tuple[Hop, ...]:
    """Hops between stages, and back; the parts that GPUs of a stage receive are gathered there (`transfer_s`)."""
    if len(teams) == 1:
        return (Hop(0.0, 0.0),)
    token_bytes = model.hidden_size * precision.activation_bytes
    pairs = [*((a, b, token_bytes) for a, b in pairwise(teams)), (teams[-1], teams[0], float(TOKEN_ID_BYTES))]
    return tuple(_hop(cluster, a, b, size_bytes) for a, b, size_bytes in pairs)


def transfer_hop(cluster: Cluster, model: ModelSpec, source: Team, target: Team, precision: Precision) -> Hop:
    """From a stage on one team to the next on another."""
    return _hop(cluster, source, target, model.hidden_size * precision.activation_bytes)


def _hop(cluster: Cluster, source: Team, target: Team, token_bytes: float) -> Hop:
    tokens = 1024  # bandwidths are read at the size of a prompt of so many tokens
    lanes = Lanes.of([(source, target)])
    busy_s, after_s = transfer_s(cluster, source, target, tokens * token_bytes, lanes)
    gathered_s = gather_s(cluster, target, tokens * token_bytes) - gather_s(cluster, target, 0.0)
    return Hop(after_s - gathered_s, (busy_s + gathered_s) / tokens)
