"""How much memory a stage needs on each of its devices while training.

Weights, gradients and AdamW's states, by ZeRO stage (Rajbhandari et al. 2020, arXiv 1910.02054); activations of the
micro-batches in flight (Korthikanti et al. 2023, arXiv 2205.05198); the logits on the last stage; and a reserve.
"""

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
    """Bytes on each device of a stage, but for the share of its memory that is kept in reserve (`reserve_bytes`).

    position, depth: where the stage stands in its pipeline; micro_batches: that pipeline's; peers: in how many
    pipelines its blocks are trained, over which ZeRO shards.
    """
    parameters = model.stage_parameters(stage.layers) / stage.tensor_parallel
    states = STATE_BYTES if job.dtype_bytes < FP32_BYTES else STATE_BYTES - FP32_BYTES
    shared = [1 if options.zero < level else peers for level in (3, 2, 1)]
    held = job.dtype_bytes / shared[0] + FP32_BYTES / shared[1] + states / shared[2]  # gradients add up in fp32
    total = parameters * held

    between, kept = hidden_bytes(model, job), block_activation_bytes(model, job, stage.tensor_parallel)
    flying = in_flight(options.schedule, position, depth, micro_batches)
    if options.recompute:
        total += flying * stage.num_layers * between + kept
    else:
        total += flying * stage.num_layers * kept
    if depth > 1:
        total += 4 * between  # a message on its way in and out, each way
    if stage.layers[1] == model.num_layers:
        kept_logits = FP32_BYTES * job.micro_batch * job.seq_len * model.vocab_size  # the loss is part of the forward
        total += (logits_bytes(model, job) + (flying - 1) * kept_logits) / stage.tensor_parallel
    return int(total) + RESERVE_BYTES


def reserve_bytes(device_bytes: float) -> int:
    """What of a device is kept free besides, in proportion to its size."""
    return int(device_bytes * RESERVE_SHARE)


def usable_bytes(device_bytes: float, memory_fraction: float) -> float:
    """What of a device `stage_bytes` may fill where a plan may use `memory_fraction` of it."""
    return device_bytes * memory_fraction - reserve_bytes(device_bytes)
