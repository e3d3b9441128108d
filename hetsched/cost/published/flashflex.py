"""FlashFlex's own formulas (Yan et al. 2024, arXiv 2409.01143; HexiScale): asymmetric 3D parallelism, no overlap.

All pipelines do n = ceil(batch / (MB · K)) micro-batches as GPipe does, with activations recomputed, and

    iteration = 1.8 · the slowest pipeline + 1.1 · DP

MB sequences a micro-batch, S tokens in one, K pipelines, L blocks, H hidden size, V vocabulary, 2 bytes a number.
Its units: a TFLOPS is 1024^4 FLOP/s and a GB is 1024^3 bytes; a cluster's figures (1e12 and 1e9) are converted so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hetsched.cluster import Cluster, Floats
from hetsched.cost.base import Assumptions, Cost, Violation
from hetsched.cost.chains import ChainPricer
from hetsched.cost.money import plan_usd_per_hour
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Plan
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


@dataclass(frozen=True, slots=True)
class FlashFlex:
    """See the module. A plan may use the whole of a device's memory, as in the paper, whatever share is asked for."""

    asked_fraction: float = 1.0
    name: str = "flashflex"

    @property
    def memory_fraction(self) -> float:
        """All of it."""
        return 1.0

    @property
    def assumes(self) -> Assumptions:
        """GPipe, recomputation, equal batches."""
        return Assumptions(even_batches=True, schedule="gpipe", recompute=True, zero=0)

    def refuses(self, plan: Plan) -> str | None:
        """Unequal batches, degrees that do not divide one another, compression, 4-byte numbers."""
        if plan.workload.dtype_bytes != NUMBER_BYTES:
            return f"it is in {plan.workload.dtype}, the formulas have {NUMBER_BYTES} bytes a number"
        if plan.options.compression != Compression():
            return "it compresses messages"
        even = micro_batches(plan.workload, len(plan.pipelines))
        for pipeline in plan.pipelines:
            if pipeline.micro_batches not in (even, even - 1):
                return (
                    f"pipeline {pipeline.name} has {pipeline.micro_batches} micro-batches, an even share of the batch "
                    f"is {even}"
                )
        for block, groups in blocks(plan):
            degrees = sorted({len(group) for group in groups})
            for narrow, wide in pairwise(degrees):
                if wide % narrow:
                    return f"block {block} has tensor-parallel degrees {narrow} and {wide}, which do not divide"
        return None

    def price(self, cluster: Cluster, plan: Plan) -> Cost:
        """The formulas' iteration time; HetschedError where they have no place for the plan."""
        if reason := self.refuses(plan) or _mixed_group(cluster, plan):
            raise HetschedError(
                f"the flashflex formulas do not price this plan: {reason}",
                hint="they know even batches, groups of one kind of GPU, and degrees that divide one another; use "
                "--cost-model roofline",
            )
        formulas = Formulas(plan.model, plan.workload)
        count = micro_batches(plan.workload, len(plan.pipelines))
        names = [name for pipeline in plan.pipelines for name in pipeline.devices]
        place = {name: row for row, name in enumerate(names)}
        positions = [cluster.position(name) for name in names]
        bandwidth = paper_bandwidth(cluster.links(positions, positions)[1])
        parts = [
            [_stage_parts(formulas, cluster, plan, p, s, place, bandwidth) for s in range(len(pipeline.stages))]
            for p, pipeline in enumerate(plan.pipelines)
        ]
        times = [gpipe_s([sum(part) for part in stages], count) for stages in parts]
        slowest = times.index(max(times))
        exchange = _data_parallel_s(formulas, plan, place, bandwidth)
        busiest = max(parts[slowest], key=sum)
        breakdown = {
            "compute": PIPELINE_WEIGHT * count * busiest[0],
            "tensor_parallel": PIPELINE_WEIGHT * count * busiest[1],
            "pipeline_parallel": PIPELINE_WEIGHT * count * busiest[2],
            "bubble": PIPELINE_WEIGHT * (times[slowest] - count * sum(busiest)),
            "data_parallel": DATA_WEIGHT * exchange,
        }
        iteration_s = PIPELINE_WEIGHT * times[slowest] + DATA_WEIGHT * exchange
        return _account(cluster, plan, formulas, iteration_s, breakdown)

    def chains(
        self,
        cluster: Cluster,
        members: Sequence[Sequence[int]],
        model: ModelSpec,
        job: TrainingJob,
        options: Options,
    ) -> ChainPricer:
        """The formulas by chains of classes."""
        from hetsched.cost.published.flashflex_chains import FlashFlexChains

        return FlashFlexChains(Formulas(model, job), cluster, members)


def blocks(plan: Plan) -> list[tuple[int, list[tuple[str, ...]]]]:
    """(block, each pipeline's devices for it) for the first block of every stretch that no pipeline cuts."""
    starts = sorted({stage.layers[0] for _, _, stage in plan.stages})
    return [
        (start, [next(s.devices for s in p.stages if s.layers[0] <= start < s.layers[1]) for p in plan.pipelines])
        for start in starts
    ]


def _mixed_group(cluster: Cluster, plan: Plan) -> str | None:
    for pipeline, number, stage in plan.stages:
        kinds = sorted({cluster.device(name).gpu.kind for name in stage.devices})
        if len(kinds) > 1:
            return f"pipeline {pipeline.name} stage {number} mixes {' and '.join(kinds)} in one group"
    return None


def _stage_parts(
    formulas: Formulas,
    cluster: Cluster,
    plan: Plan,
    p: int,
    s: int,
    place: Mapping[str, int],
    bandwidth: Floats,
) -> tuple[float, float, float]:
    """Seconds of one micro-batch on a stage: computing, tensor-parallel messages, and the hop to the next stage."""
    stages = plan.pipelines[p].stages
    here = [place[name] for name in stages[s].devices]
    flops_per_s = paper_flops_per_s(cluster.device(stages[s].devices[0]).gpu.flops_per_s(plan.workload.dtype))
    compute = stages[s].num_layers * formulas.compute_s(flops_per_s, len(here))
    tensor = stages[s].num_layers * formulas.tensor_parallel_s(bandwidth[np.ix_(here, here)])
    if s + 1 == len(stages):
        return compute, tensor, 0.0
    there = [place[name] for name in stages[s + 1].devices]
    return compute, tensor, formulas.hop_s(bandwidth[np.ix_(here, there)], bandwidth[np.ix_(there, there)])


def _data_parallel_s(formulas: Formulas, plan: Plan, place: Mapping[str, int], bandwidth: Floats) -> float:
    stretches = blocks(plan)
    ends = [*(start for start, _ in stretches[1:]), plan.model.num_layers]
    return sum(
        (end - start) * formulas.data_parallel_s([[place[name] for name in group] for group in groups], bandwidth)
        for (start, groups), end in zip(stretches, ends, strict=True)
    )


def _account(
    cluster: Cluster, plan: Plan, formulas: Formulas, iteration_s: float, breakdown_s: dict[str, float]
) -> Cost:
    """The Cost of a plan whose time is known. The paper's MFU counts recomputation, and all of the cluster's GPUs."""
    memory: dict[str, int] = {}
    violations: list[Violation] = []
    for _, _, stage in plan.stages:
        first, last = stage.layers[0] == 0, stage.layers[1] == plan.model.num_layers
        needed = formulas.memory_bytes(stage.num_layers, stage.tensor_parallel, first, last)
        available = sum(cluster.device(name).gpu.memory_bytes for name in stage.devices) / stage.tensor_parallel
        memory.update(dict.fromkeys(stage.devices, int(needed)))
        if needed > available:
            violations.extend(Violation(name, "memory", needed, available) for name in stage.devices)
    sequences, count = float(plan.workload.global_batch), plan.model.num_layers
    return Cost(
        iteration_s=iteration_s,
        tokens_per_iteration=plan.workload.tokens,
        model_flops=count * formulas.block_flops(sequences, MODEL_FLOPS),
        hardware_flops=count * formulas.block_flops(sequences),
        peak_flops_per_s=sum(
            paper_flops_per_s(device.gpu.flops_per_s(plan.workload.dtype)) for device in cluster.devices
        ),
        breakdown_s=breakdown_s,
        memory_bytes=memory,
        violations=tuple(violations),
        usd_per_hour=plan_usd_per_hour(cluster, plan, iteration_s),
    )
