"""One replica by itself: the time of a static batch, and what it does under a steady load."""

from dataclasses import dataclass, replace
from typing import Any

from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.cost.serving.stage import causal_pairs
from hetsched.cost.serving.steady import SteadyReplica, Traffic
from hetsched.units import SECONDS_PER_MS

BOUNDLESS_BYTES = 1e18


@dataclass(frozen=True, slots=True)
class Estimate:
    """A batch of `batch` prompts of `input_tokens`, all prefilled, then `output_tokens` decode steps.

    prefill_s: of the whole batch. token_s: mean of the decode steps. memory_bytes: on the fullest GPU. max_batch: how
    many such requests the KV cache holds; fits: whether it holds the batch. steady_*: under continuous batching with at
    most `batch` requests in flight.
    """

    batch: int
    input_tokens: int
    output_tokens: int
    prefill_s: float
    token_s: float
    memory_bytes: int
    max_batch: int
    fits: bool
    steady_requests_per_s: float

    @property
    def output_tokens_per_s(self) -> float:
        """Of the static batch, prefill included."""
        return self.batch * self.output_tokens / (self.prefill_s + self.output_tokens * self.token_s)

    def to_json(self) -> dict[str, Any]:
        """What `hetsched estimate --json` prints."""
        return {
            "prefill_ms": self.prefill_s / SECONDS_PER_MS,
            "tpot_ms": self.token_s / SECONDS_PER_MS,
            "output_tokens_per_s": self.output_tokens_per_s,
            "memory_bytes": self.memory_bytes,
            "max_batch": self.max_batch,
            "fits": self.fits,
            "steady_requests_per_s": self.steady_requests_per_s,
            "steady_output_tokens_per_s": self.steady_requests_per_s * self.output_tokens,
        }


def estimate(times: ReplicaTimes, batch: int, input_tokens: int, output_tokens: int, chunked: bool = False) -> Estimate:
    """The figures of a replica; also where the batch does not fit, as if it did.

    A pipeline works on its batch in as many groups as it has stages, or fewer where there are fewer sequences.
    """
    depth, whole = times.depth, input_tokens + output_tokens
    groups = min(depth, batch)
    size = batch / groups
    prompts = size * input_tokens, size * float(causal_pairs(input_tokens)), size
    prefill = [float(times.prefill_s(stage, *prompts)) for stage in range(depth)]
    hops = [float(times.hop_s(stage, prompts[0])) for stage in range(depth - 1)]
    context = size * (input_tokens + output_tokens / 2.0)
    decode = [float(times.decode_s(stage, size, context)) for stage in range(depth)]
    back = [float(times.hop_s(stage, size)) for stage in range(depth)]
    roomy = replace(times, kv_room_bytes=(BOUNDLESS_BYTES,) * depth)
    steady = SteadyReplica(roomy, Traffic.of(input_tokens, output_tokens), batch, chunked)
    memory = max(
        used + batch * whole * stage.kv_bytes_per_token
        for used, stage in zip(times.used_bytes, times.stages, strict=True)
    )
    most = times.largest_batch(whole)
    return Estimate(
        batch,
        input_tokens,
        output_tokens,
        sum(prefill) + sum(hops) + (groups - 1) * max(prefill) + times.overhead_s,
        max(sum(decode) + sum(back) + times.overhead_s, groups * max(decode)),
        int(memory),
        most,
        batch <= most,
        steady.capacity_per_s,
    )
