"""How long GPUs work on transformer blocks: what was measured, or a roofline of arithmetic and memory traffic.

t = max(FLOPs / (peak · efficiency), bytes / (bandwidth · memory efficiency)) + launch overhead   (Williams et al. 2009,
doi:10.1145/1498765.1498785). The backward pass costs twice the forward pass's arithmetic.
"""

from dataclasses import dataclass

from hetsched.cluster import Gpu
from hetsched.model import ModelSpec
from hetsched.plan import Layers
from hetsched.profiles import PartTimes
from hetsched.workload import TrainingJob

DEFAULT_EFFICIENCY = 0.5  # of peak dense FLOP/s, where nothing was measured for the GPU
MEMORY_EFFICIENCY = 0.8  # of the data sheet's bandwidth, for long streams
BLOCK_OVERHEAD_S = 1e-4  # a block's forward launches about a dozen kernels
OPTIMIZER_BYTES_PER_PARAMETER = 30  # AdamW reads gradient, master and moments, and writes master, moments and weight


@dataclass(frozen=True, slots=True)
class StageWork:
    """Seconds that one stage works on one micro-batch; `tensor_parallel_s` of them, both ways, its devices talk."""

    forward_s: float
    backward_s: float
    tensor_parallel_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Worker:
    """What a stage runs on: `degree` GPUs of a kind in tensor parallel.

    all_reduce_s: what an all-reduce of one micro-batch's hidden states takes among them. measured: times of the model's
    parts at this degree, with its communication, where there are any; they win over all else.
    """

    gpu: Gpu
    degree: int = 1
    all_reduce_s: float = 0.0
    measured: PartTimes | None = None


def efficiency(gpu: Gpu) -> float:
    """The share of its peak a GPU reaches in transformer blocks."""
    return gpu.efficiency or DEFAULT_EFFICIENCY


def stage_work(worker: Worker, model: ModelSpec, job: TrainingJob, layers: Layers, recompute: bool) -> StageWork:
    """Forward and backward seconds of the blocks `layers`, with embedding and head where they live.

    Tensor parallelism as Megatron's (Shoeybi et al. 2019, arXiv 1909.08053): see `all_reduces`.
    """
    first, last = layers
    if worker.measured is not None:
        return _measured_work(worker.measured, last - first, first == 0, last == model.num_layers, recompute)
    gpu, degree, count = worker.gpu, worker.degree, last - first
    block_s = _forward_s(
        gpu,
        job.dtype,
        model.block_forward_flops(job.micro_batch, job.seq_len) / degree,
        model.block_parameters * job.dtype_bytes / degree,
        BLOCK_OVERHEAD_S,
    )
    forward, backward = count * block_s, (3 if recompute else 2) * count * block_s
    if last == model.num_layers:
        weight_bytes = model.vocab_size * model.hidden_size * job.dtype_bytes
        flops = model.head_forward_flops(job.micro_batch, job.seq_len) / degree
        head = _forward_s(gpu, job.dtype, flops, weight_bytes / degree, 0.0)
        forward, backward = forward + head, backward + 2 * head
    if first == 0:
        looked_up = 2 * job.micro_batch * job.seq_len * model.hidden_size * job.dtype_bytes
        lookup = looked_up / (gpu.memory_bytes_per_s * MEMORY_EFFICIENCY)
        forward, backward = forward + lookup, backward + lookup
    there_s, back_s = (number * worker.all_reduce_s for number in all_reduces(model, layers, recompute))
    return StageWork(forward + there_s, backward + back_s, there_s + back_s)


def all_reduces(model: ModelSpec, layers: Layers, recompute: bool) -> tuple[int, int]:
    """How many all-reduces of a micro-batch's hidden states a tensor-parallel stage makes: forward, and backward.

    Two a block and pass; one for the embedding's output, and one for the gradient that leaves the head (Shoeybi et al.
    2019, arXiv 1909.08053).
    """
    first, last = layers
    a_pass = 2 * (last - first)
    return a_pass + (first == 0), a_pass * (2 if recompute else 1) + (last == model.num_layers)


def _measured_work(parts: PartTimes, blocks: int, embeds: bool, ends: bool, recompute: bool) -> StageWork:
    held = [(parts.block, blocks), (parts.embedding, int(embeds)), (parts.head, int(ends))]
    forward = sum(times.forward_s * count for times, count in held)
    backward = sum(times.backward_s * count for times, count in held)
    return StageWork(forward, backward + (blocks * parts.block.forward_s if recompute else 0.0))


def optimizer_s(worker: Worker, model: ModelSpec, layers: Layers, shards: int) -> float:
    """Seconds of an AdamW step over a stage's parameters, each of `shards` peers doing its part.

    Measured, or bound by memory bandwidth.
    """
    parts = worker.measured
    if parts is not None:
        whole = (layers[1] - layers[0]) * parts.block.update_s
        whole += parts.embedding.update_s if layers[0] == 0 else 0.0
        whole += parts.head.update_s if layers[1] == model.num_layers else 0.0
        return whole / shards
    parameters = model.stage_parameters(layers) / worker.degree / shards
    return parameters * OPTIMIZER_BYTES_PER_PARAMETER / (worker.gpu.memory_bytes_per_s * MEMORY_EFFICIENCY)


def _forward_s(gpu: Gpu, dtype: str, flops: float, moved_bytes: float, overhead_s: float) -> float:
    arithmetic = flops / (gpu.flops_per_s(dtype) * efficiency(gpu))
    return max(arithmetic, moved_bytes / (gpu.memory_bytes_per_s * MEMORY_EFFICIENCY)) + overhead_s
