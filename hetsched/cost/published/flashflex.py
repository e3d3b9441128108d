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
from hetsched.cost.published.flashflex_chains import FlashFlexChains
from hetsched.cost.published.flashflex_formulas import (
    DATA_WEIGHT,
    MODEL_FLOPS,
    NUMBER_BYTES,
    PIPELINE_WEIGHT,
    Formulas,
    gpipe_s,
    micro_batches,
    paper_bandwidth,
    paper_flops_per_s,
)
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Plan
from hetsched.workload import TrainingJob


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
