"""How long a GPU works on transformer blocks: a roofline of arithmetic and memory traffic.

t = max(FLOPs / (peak · efficiency), bytes / (bandwidth · memory efficiency)) + launch overhead   (Williams et al. 2009,
doi:10.1145/1498765.1498785). The backward pass costs twice the forward pass's arithmetic.
"""

from dataclasses import dataclass

from hetsched.cluster import Gpu
from hetsched.model import ModelSpec
from hetsched.plan import Layers
from hetsched.workload import TrainingJob

DEFAULT_EFFICIENCY = 0.5  # of peak dense FLOP/s, where nothing was measured for the GPU
MEMORY_EFFICIENCY = 0.8  # of the data sheet's bandwidth, for long streams
BLOCK_OVERHEAD_S = 1e-4  # a block's forward launches about a dozen kernels
OPTIMIZER_BYTES_PER_PARAMETER = 30  # AdamW reads gradient, master and moments, and writes master, moments and weight


@dataclass(frozen=True, slots=True)
class StageWork:
    """Seconds that one stage computes for one micro-batch."""

    forward_s: float
    backward_s: float


def efficiency(gpu: Gpu) -> float:
    """The share of its peak a GPU reaches in transformer blocks."""
    return gpu.efficiency or DEFAULT_EFFICIENCY


def stage_work(gpu: Gpu, model: ModelSpec, job: TrainingJob, layers: Layers, recompute: bool) -> StageWork:
    """Forward and backward seconds of the blocks `layers`, with embedding and head where they live."""
    first, last = layers
    count = last - first
    block = _forward_s(
        gpu,
        job.dtype,
        model.block_forward_flops(job.micro_batch, job.seq_len),
        model.block_parameters * job.dtype_bytes,
        BLOCK_OVERHEAD_S,
    )
    forward = count * block
    backward = 2 * forward + (forward if recompute else 0.0)
    if last == model.num_layers:
        weight_bytes = model.vocab_size * model.hidden_size * job.dtype_bytes
        head = _forward_s(gpu, job.dtype, model.head_forward_flops(job.micro_batch, job.seq_len), weight_bytes, 0.0)
        forward, backward = forward + head, backward + 2 * head
    if first == 0:
        looked_up = 2 * job.micro_batch * job.seq_len * model.hidden_size * job.dtype_bytes
        lookup = looked_up / (gpu.memory_bytes_per_s * MEMORY_EFFICIENCY)
        forward, backward = forward + lookup, backward + lookup
    return StageWork(forward, backward)


def optimizer_s(gpu: Gpu, parameters: float) -> float:
    """Seconds of an AdamW step over `parameters`, which memory bandwidth bounds."""
    return parameters * OPTIMIZER_BYTES_PER_PARAMETER / (gpu.memory_bytes_per_s * MEMORY_EFFICIENCY)


def _forward_s(gpu: Gpu, dtype: str, flops: float, moved_bytes: float, overhead_s: float) -> float:
    arithmetic = flops / (gpu.flops_per_s(dtype) * efficiency(gpu))
    return max(arithmetic, moved_bytes / (gpu.memory_bytes_per_s * MEMORY_EFFICIENCY)) + overhead_s
