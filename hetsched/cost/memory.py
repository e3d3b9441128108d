"""How much memory a stage needs on each of its devices while training.

Weights, gradients and AdamW's states, by ZeRO stage (Rajbhandari et al. 2020, arXiv 1910.02054); activations of the
micro-batches in flight (Korthikanti et al. 2023, arXiv 2205.05198); the logits on the last stage; and a reserve.
"""

from dataclasses import dataclass

from hetsched.model import ModelSpec
from hetsched.plan import Options, Stage
from hetsched.workload import TrainingJob

STATE_BYTES = 12  # fp32 master weight and AdamW's two moments; with fp32 weights the master is the weight itself
RESERVE_BYTES = 2**30  # the runtime's context, communication buffers and workspace
RESERVE_SHARE = 0.03  # of the device, on top: larger GPUs have larger contexts, more channels, and more slack
FP32_BYTES = 4


def in_flight(schedule: str, position: int, depth: int, micro_batches: int) -> int:
    """Micro-batches whose activations stage `position` of `depth` holds at once."""
    return micro_batches if schedule == "gpipe" else min(depth - position, micro_batches)


def block_activation_bytes(model: ModelSpec, job: TrainingJob, tensor_parallel: int = 1) -> float:
    """Bytes that one block keeps of one micro-batch for its backward pass, on each device of a tensor-parallel group.

    Fused attention, which keeps no square of the sequence, is there for two-byte types alone.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    mlp = (4 if model.gated_mlp else 2) * model.ffn_size
    if model.num_experts:
        mlp *= model.experts_per_token
    whole = 4 * model.hidden_size  # both norms' inputs and outputs, which every device has
    split = queries + 2 * keys + queries + mlp  # q, k and v; the attention's output; and what the MLP keeps
    if job.dtype_bytes >= FP32_BYTES:
        split += model.num_heads * job.seq_len  # the attention's probabilities
    return float(job.micro_batch * job.seq_len * (whole + split / tensor_parallel) * job.dtype_bytes)


def hidden_bytes(model: ModelSpec, job: TrainingJob) -> float:
    """Bytes of one micro-batch's activations between two blocks: what a pipeline hop sends, uncompressed."""
    return float(job.micro_batch * job.seq_len * model.hidden_size * job.dtype_bytes)


def logits_bytes(model: ModelSpec, job: TrainingJob) -> float:
    """Logits of one micro-batch, with their fp32 copy and its gradient."""
    return float(job.micro_batch * job.seq_len * model.vocab_size * (job.dtype_bytes + 2 * FP32_BYTES))


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on each device of a stage, by what they are for.

    parameters: on each device; held_bytes: for each of them its weight, gradient and optimiser states. reserve: but for
    the device's own share of it.
    """

    parameters: float
    held_bytes: tuple[float, float, float]
    activations: float
    messages: float
    logits: float
    reserve: int = RESERVE_BYTES

    @property
    def total(self) -> int:
        """All of them."""
        return (
            int(self.parameters * sum(self.held_bytes) + self.activations + self.messages + self.logits) + self.reserve
        )

    def by_cause(self) -> dict[str, float]:
        """Bytes by name."""
        weights, gradients, states = (self.parameters * held for held in self.held_bytes)
        return {
            "weights": weights,
            "gradients": gradients,
            "optimizer_states": states,
            "activations": self.activations,
            "messages": self.messages,
            "logits": self.logits,
            "reserve": float(self.reserve),
        }


def stage_memory(
    model: ModelSpec,
    job: TrainingJob,
    options: Options,
    stage: Stage,
    position: int,
    depth: int,
    micro_batches: int,
    peers: int,
) -> StageMemory:
    """What each device of a stage holds, but for the share of its memory that is kept in reserve (`reserve_bytes`).

    position, depth: where the stage stands in its pipeline; micro_batches: that pipeline's; peers: in how many
    pipelines its blocks are trained, over which ZeRO shards.
    """
    parameters = model.stage_parameters(stage.layers) / stage.tensor_parallel
    states = STATE_BYTES if job.dtype_bytes < FP32_BYTES else STATE_BYTES - FP32_BYTES
    shared = [1 if options.zero < level else peers for level in (3, 2, 1)]

    between, kept = hidden_bytes(model, job), block_activation_bytes(model, job, stage.tensor_parallel)
    flying = in_flight(options.schedule, position, depth, micro_batches)
    activations = flying * stage.num_layers * (between if options.recompute else kept)
    logits = 0.0
    if stage.layers[1] == model.num_layers:
        kept_logits = FP32_BYTES * job.micro_batch * job.seq_len * model.vocab_size  # the loss is part of the forward
        logits = (logits_bytes(model, job) + (flying - 1) * kept_logits) / stage.tensor_parallel
    return StageMemory(
        parameters=parameters,
        held_bytes=(
            job.dtype_bytes / shared[0],
            FP32_BYTES / shared[1],
            states / shared[2],
        ),  # gradients add up in fp32
        activations=activations + (kept if options.recompute else 0.0),
        messages=4 * between if depth > 1 else 0.0,  # one on its way in and one out, each way
        logits=logits,
    )


def stage_bytes(
    model: ModelSpec,
    job: TrainingJob,
    options: Options,
    stage: Stage,
    position: int,
    depth: int,
    micro_batches: int,
    peers: int,
) -> int:
    """The sum of `stage_memory`."""
    return stage_memory(model, job, options, stage, position, depth, micro_batches, peers).total


def reserve_bytes(device_bytes: float) -> int:
    """What of a device is kept free besides, in proportion to its size."""
    return int(device_bytes * RESERVE_SHARE)


def usable_bytes(device_bytes: float, memory_fraction: float) -> float:
    """What of a device `stage_bytes` may fill where a plan may use `memory_fraction` of it."""
    return device_bytes * memory_fraction - reserve_bytes(device_bytes)
