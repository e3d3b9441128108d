"""The parts of FlashFlex's formulas (Yan et al. 2024, arXiv 2409.01143), for the cost model and its quick prices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetsched.cluster import Floats
from hetsched.model import ModelSpec
from hetsched.units import BYTES_PER_GB, FLOPS_PER_TFLOPS
from hetsched.workload import TrainingJob

NUMBER_BYTES = 2
PAPER_TFLOPS, PAPER_GB = 1024**4, 1024**3
PIPELINE_WEIGHT, DATA_WEIGHT = 1.8, 1.1
HARDWARE_FLOPS, MODEL_FLOPS = 96, 72  # a token and H²: forward, two backward, and a recomputed forward


def micro_batches(job: TrainingJob, pipelines: int) -> int:
    """The formula's n: the batch split evenly over the pipelines and rounded up."""
    return -(-job.global_batch // (job.micro_batch * pipelines))


def paper_bandwidth(bandwidth_bytes_per_s: Floats) -> Floats:
    """A link's bytes a second as the paper counts them."""
    return bandwidth_bytes_per_s * (PAPER_GB / BYTES_PER_GB)


def paper_flops_per_s(flops_per_s: float) -> float:
    """A GPU's FLOP/s as the paper counts them."""
    return flops_per_s * (PAPER_TFLOPS / FLOPS_PER_TFLOPS)


@dataclass(frozen=True, slots=True)
class Formulas:
    """The formulas' parts for one model and job, in seconds and bytes. Bandwidths are the paper's bytes a second."""

    model: ModelSpec
    job: TrainingJob

    @property
    def hidden_bytes(self) -> float:
        """Activations of one micro-batch between two blocks."""
        return float(self.job.micro_batch * self.job.seq_len * self.model.hidden_size * NUMBER_BYTES)

    @property
    def block_bytes(self) -> float:
        """Gradients of one block."""
        return float(12 * self.model.hidden_size**2 * NUMBER_BYTES)

    def block_flops(self, sequences: float, factor: int = HARDWARE_FLOPS) -> float:
        """FLOPs of one block and its share of the LM head over so many sequences."""
        h, s, v, blocks = self.model.hidden_size, self.job.seq_len, self.model.vocab_size, self.model.num_layers
        return factor * sequences * s * h**2 * (1 + s / (6 * h) + v / (16 * blocks * h))

    def compute_s(self, flops_per_s: float, degree: int) -> float:
        """C: one block of one micro-batch on a group whose first device has the paper's `flops_per_s`."""
        return self.block_flops(self.job.micro_batch) / (flops_per_s * degree)

    def tensor_parallel_s(self, bandwidth: Floats) -> float:
        """TP of one block. bandwidth: (t, t), inf on the diagonal."""
        return float(12 * (self.hidden_bytes / (len(bandwidth) * bandwidth)).sum(axis=1).max())

    def hop_s(self, across: Floats, inside: Floats) -> float:
        """PP of one boundary: sent to one device of the next group, and by it to the others.

        across: (t of this group, t of the next); inside: (t, t) of the next, inf on the diagonal.
        """
        spread = (self.hidden_bytes / (len(inside) * inside)).sum(axis=1)
        return float(2 * (self.hidden_bytes / across + spread[None, :]).min())

    def data_parallel_s(self, groups: Sequence[Sequence[int]], bandwidth: Floats) -> float:
        """DP of one block. groups: each pipeline's devices for it, as rows of `bandwidth`, inf on its diagonal.

        Groups are padded to the widest by repeating each rank in place.
        """
        degrees = [len(group) for group in groups]
        widest, least = max(degrees), min(degrees)
        total = 0.0
        for column in range(widest // least):
            ranks = [group[column * len(group) // widest] for group in groups]
            size = self.block_bytes / (least * len(groups))
            total += 2 * float((size / bandwidth[np.ix_(ranks, ranks)]).sum(axis=1).max())
        return total

    def memory_bytes(self, count: int, degree: int, first: bool, last: bool) -> float:
        """Bytes needed on each device of a stage of `count` blocks; first, last: at which ends of the model it is."""
        h, s, v, size = self.model.hidden_size, self.job.seq_len, self.model.vocab_size, self.job.micro_batch
        parameters = 12 * h**2 * count / degree + (h + v * h) * last + h * (v + s) * first
        activations = count * size * s * h / degree + 2 * size * s * h
        return float(parameters * 4 * NUMBER_BYTES + activations * NUMBER_BYTES)


def gpipe_s(stages_s: Sequence[float], count: int) -> float:
    """A pipeline of `count` micro-batches: the sum, over columns, of the dearest stage at work in it."""
    depth = len(stages_s)
    if count < depth:
        return sum(max(stages_s[max(0, q - count + 1) : q + 1]) for q in range(count + depth - 1))
    total = largest = 0.0
    for seconds in stages_s:  # as it fills; the last column here has all stages at work
        largest = seconds if seconds > largest else largest
        total += largest
    total += (count - depth) * largest
    largest = 0.0
    for seconds in stages_s[:0:-1]:  # as it drains
        largest = seconds if seconds > largest else largest
        total += largest
    return total
