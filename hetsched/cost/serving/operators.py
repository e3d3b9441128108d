"""How long the parts of a transformer take in inference, on one GPU of a tensor-parallel group.

A roofline (Williams et al. 2009, doi:10.1145/1498765.1498785) whose roof is rounded: where arithmetic and traffic
take about as long, they hinder each other. Times are in seconds; counts of rows (tokens) and pairs may be arrays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hetsched.cluster import Gpu, Link, ServingEfficiency

Floats = NDArray[np.float64]

# For a GPU that the catalogue does not know: what most of those measured come near to.
DEFAULT = ServingEfficiency(0.7, 0.5, 0.78, 0.7, 3.3e-5, 3e-5)
ROUNDING = 3.0  # of the roof: (arithmetic^3 + traffic^3)^(1/3), up to a quarter above either where they are equal
ELEMENTWISE_EFFICIENCY = 0.8  # of the bandwidth: norms, activations and rotations are plain streams

# An all-reduce takes the faster of two ways: a kernel that reads the peers' memory (vLLM's custom all-reduce), quick to
# start, and NCCL's simple protocol, which fills the link. NCCL's two figures are those of its own tuning model
# (src/graph/tuning.cc: baseLat and hwLat of the ring's simple protocol over NVLink).
DIRECT_START_S, DIRECT_STEP_S, DIRECT_SHARE = 4.2e-6, 0.38e-6, 0.68
NCCL_START_S, NCCL_STEP_S = 8.4e-6, 3.4e-6
ALL_REDUCE_SHARE = 0.765  # of the link's rate: messages of a few MB to 300 MB
USUAL_LATENCY_S = 1e-5  # of the links inside a machine; beyond, each step waits for its message
WHOLE_NODE = 8


@dataclass(frozen=True, slots=True)
class Processor:
    """One GPU at work: bytes and FLOPs a second it reaches. peak: of its data sheet, at the type of the activations."""

    peak_flops_per_s: float
    memory_bytes_per_s: float
    efficiency: ServingEfficiency

    @classmethod
    def of(cls, gpu: Gpu, dtype: str) -> "Processor":
        """The GPU at a type."""
        return cls(gpu.flops_per_s(dtype), gpu.memory_bytes_per_s, gpu.serving or DEFAULT)

    def matmul_s(self, rows: ArrayLike, inner: float, outer: float, weight_bytes: ArrayLike, io_bytes: float) -> Floats:
        """(rows, inner) times (inner, outer): 2 FLOPs a product; weights are read once, `io_bytes` an activation."""
        count = np.asarray(rows, dtype=float)
        arithmetic = 2.0 * count * inner * outer / (self.peak_flops_per_s * self.efficiency.matmul)
        moved_bytes = np.asarray(weight_bytes, dtype=float) + count * (inner + outer) * io_bytes
        traffic = moved_bytes / (self.memory_bytes_per_s * self.efficiency.memory)
        # ROUNDING is 3: a product is many times as quick as a power.
        return np.asarray(np.cbrt(arithmetic * arithmetic * arithmetic + traffic * traffic * traffic))

    def attention_s(self, pairs: ArrayLike, width: float) -> Floats:
        """Query-key pairs of prompts over heads of that width on this GPU: 2 FLOPs for the score, 2 for the sum."""
        flops = 4.0 * np.asarray(pairs, dtype=float) * width
        return np.asarray(flops / (self.peak_flops_per_s * self.efficiency.attention))

    def cache_read_s(self, read_bytes: ArrayLike) -> Floats:
        """Reading that much of the KV cache, which bounds the attention of decode steps."""
        return np.asarray(np.asarray(read_bytes, dtype=float) / (self.memory_bytes_per_s * self.efficiency.kv))

    def elementwise_s(self, moved_bytes: ArrayLike) -> Floats:
        """Streaming that many bytes in and out."""
        return np.asarray(np.asarray(moved_bytes, dtype=float) / (self.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY))


def all_reduce_s(link: Link, gpus: int, size_bytes: ArrayLike) -> Floats:
    """An all-reduce among `gpus` GPUs, each with such a link to the next, of `size_bytes` on each.

    2 (n - 1) steps of 1/n of the bytes (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
    """
    size = np.asarray(size_bytes, dtype=float)
    if gpus < 2:
        return np.zeros_like(size)
    steps = 2 * (gpus - 1)
    rate = link.bandwidth_bytes_per_s * ALL_REDUCE_SHARE * (link.whole_node_gain if gpus >= WHOLE_NODE else 1.0)
    streaming = steps / gpus * size / rate
    waiting = max(0.0, link.latency_s - USUAL_LATENCY_S)
    direct = DIRECT_START_S + steps * (DIRECT_STEP_S + waiting) + streaming / DIRECT_SHARE
    nccl = NCCL_START_S + steps * (NCCL_STEP_S + waiting) + streaming
    return np.asarray(np.minimum(direct, nccl))
