"""The default cost model, `roofline`: one training iteration of data- and pipeline-parallel replicas.

Each pipeline's schedule is played exactly (`schedule.py`). When a device has done its last backward it all-reduces the
gradients of its blocks, group by group in the executor's order, each group's members waiting for one another: started
together they would share the same links. Then it takes its optimiser step. The iteration ends with the last device.
"""

from dataclasses import dataclass

import numpy as np

from hetsched.cluster import Cluster, Gpu
from hetsched.cost.base import Assumptions, Cost, Violation
from hetsched.cost.compute import StageWork, optimizer_s, stage_work
from hetsched.cost.memory import stage_bytes
from hetsched.cost.money import plan_usd_per_hour
from hetsched.cost.network import ring_all_reduce_s
from hetsched.cost.schedule import Hop, play
from hetsched.cost.traffic import gradient_bytes, gradient_groups, hop_bytes
from hetsched.errors import HetschedError
from hetsched.plan import Pipeline, Plan, Stage

MEMORY_FRACTION = 0.92
GATHERED_WEIGHTS = 3  # the ZeRO stage that shards weights


@dataclass(frozen=True, slots=True)
class Roofline:
    """See the module. A plan may use `memory_fraction` of each device's memory."""

    memory_fraction: float = MEMORY_FRACTION
    name: str = "roofline"

    @property
    def assumes(self) -> Assumptions:
        """Nothing."""
        return Assumptions()

    def refuses(self, plan: Plan) -> str | None:
        """Tensor-parallel stages, so far."""
        for pipeline, number, stage in plan.stages:
            if stage.tensor_parallel > 1:
                return f"pipeline {pipeline.name} stage {number} is tensor parallel over {len(stage.devices)} devices"
        return None

    def price(self, cluster: Cluster, plan: Plan) -> Cost:
        """The plan's iteration time and memory; HetschedError where a device is not in the cluster."""
        if reason := self.refuses(plan):
            raise HetschedError(
                f"the roofline model does not price this plan: {reason}", hint="give each stage one device"
            )
        works = _works(cluster, plan)
        if plan.options.zero == GATHERED_WEIGHTS:
            works = _with_gathers(cluster, plan, works)
        ends = [
            play(plan.options.schedule, work, hops(cluster, plan, pipeline), pipeline.micro_batches)
            for pipeline, work in zip(plan.pipelines, works, strict=True)
        ]
        reduced = _after_all_reduce(cluster, plan, ends)
        finished = [
            [
                end + optimizer_s(gpu, _updated_parameters(plan, stage))
                for end, stage, gpu in zip(times, pipeline.stages, _gpus(cluster, pipeline), strict=True)
            ]
            for times, pipeline in zip(reduced, plan.pipelines, strict=True)
        ]
        iteration = max(map(max, finished))
        breakdown = _breakdown(plan, works, ends, reduced, finished)
        return account(cluster, plan, iteration, breakdown, self.memory_fraction)


def account(
    cluster: Cluster, plan: Plan, iteration_s: float, breakdown_s: dict[str, float], memory_fraction: float
) -> Cost:
    """The Cost of a plan whose time is known: memory, violations, utilisation and money, alike for every model."""
    model, job = plan.model, plan.workload
    flops = model.training_flops(job.global_batch, job.seq_len)
    recomputed = model.num_layers * model.block_forward_flops(job.global_batch, job.seq_len)
    devices = [cluster.device(name) for pipeline in plan.pipelines for name in pipeline.devices]
    memory = memory_bytes(plan)
    violations = tuple(
        Violation(device.name, "memory", memory[device.name], device.gpu.memory_bytes * memory_fraction)
        for device in devices
        if memory[device.name] > device.gpu.memory_bytes * memory_fraction
    )
    return Cost(
        iteration_s=iteration_s,
        tokens_per_iteration=job.tokens,
        model_flops=flops,
        hardware_flops=flops + (recomputed if plan.options.recompute else 0.0),
        peak_flops_per_s=sum(device.gpu.flops_per_s(job.dtype) for device in devices),
        breakdown_s=breakdown_s,
        memory_bytes=memory,
        violations=violations,
        usd_per_hour=plan_usd_per_hour(cluster, plan, iteration_s),
        notes=_notes({device.gpu for device in devices}),
    )


def memory_bytes(plan: Plan) -> dict[str, int]:
    """Bytes needed on each device of the plan."""
    known: dict[tuple[object, ...], int] = {}
    found: dict[str, int] = {}
    for pipeline, number, stage in plan.stages:
        depth, flying = len(pipeline.stages), pipeline.micro_batches
        key = stage.layers, stage.tensor_parallel, number, depth, flying
        if key not in known:
            known[key] = stage_bytes(
                plan.model, plan.workload, plan.options, stage, number, depth, flying, len(plan.pipelines)
            )
        found.update(dict.fromkeys(stage.devices, known[key]))
    return found


def hops(cluster: Cluster, plan: Plan, pipeline: Pipeline) -> list[Hop]:
    """The links between a pipeline's stages, for one micro-batch's activations and their gradients."""
    forward, backward = hop_bytes(plan)
    positions = [cluster.index_of[stage.devices[0]] for stage in pipeline.stages]
    latency, bandwidth = cluster.links(positions, positions)
    return [
        Hop(
            forward / float(bandwidth[s, s + 1]),
            float(latency[s, s + 1]),
            backward / float(bandwidth[s + 1, s]),
            float(latency[s + 1, s]),
        )
        for s in range(len(positions) - 1)
    ]


def _gpus(cluster: Cluster, pipeline: Pipeline) -> list[Gpu]:
    return [cluster.device(stage.devices[0]).gpu for stage in pipeline.stages]


def _works(cluster: Cluster, plan: Plan) -> list[list[StageWork]]:
    known: dict[tuple[int, tuple[int, int]], StageWork] = {}  # hashing a whole Gpu each time would cost more than this

    def work(gpu: Gpu, stage: Stage) -> StageWork:
        key = id(gpu), stage.layers
        if key not in known:
            known[key] = stage_work(gpu, plan.model, plan.workload, stage.layers, plan.options.recompute)
        return known[key]

    return [
        [work(gpu, stage) for stage, gpu in zip(pipeline.stages, _gpus(cluster, pipeline), strict=True)]
        for pipeline in plan.pipelines
    ]


def _with_gathers(cluster: Cluster, plan: Plan, works: list[list[StageWork]]) -> list[list[StageWork]]:
    """ZeRO 3: each pass of each micro-batch first gathers the stage's weights, half an all-reduce."""
    gather_s = [[0.0] * len(pipeline.stages) for pipeline in plan.pipelines]
    for group in gradient_groups(plan):
        devices = [cluster.index_of[plan.pipelines[p].stages[s].devices[0]] for p, s in group.members]
        size = float(group.parameters * plan.workload.dtype_bytes)
        seconds = ring_all_reduce_s(size, *cluster.links(devices, devices)) / 2
        for p, s in group.members:
            gather_s[p][s] += seconds
    return [
        [StageWork(work.forward_s + gather, work.backward_s + gather) for work, gather in zip(*pair, strict=True)]
        for pair in zip(works, gather_s, strict=True)
    ]


def _updated_parameters(plan: Plan, stage: Stage) -> float:
    shards = len(plan.pipelines) if plan.options.zero else 1
    return plan.model.stage_parameters(stage.layers) / shards


def _after_all_reduce(cluster: Cluster, plan: Plan, ends: list[list[float]]) -> list[list[float]]:
    """When each stage has its reduced gradients; a stage reduces one group at a time."""
    free = [list(times) for times in ends]
    for group in gradient_groups(plan):
        devices = [cluster.index_of[plan.pipelines[p].stages[s].devices[0]] for p, s in group.members]
        seconds = ring_all_reduce_s(gradient_bytes(plan, group), *cluster.links(devices, devices))
        end = max(free[p][s] for p, s in group.members) + seconds
        for p, s in group.members:
            free[p][s] = end
    return free


def _breakdown(
    plan: Plan,
    works: list[list[StageWork]],
    ends: list[list[float]],
    reduced: list[list[float]],
    finished: list[list[float]],
) -> dict[str, float]:
    """Seconds by cause along the pipeline that ends its backwards last; the parts add up to the iteration.

    compute: its busiest stage, ZeRO 3's gathers with it; bubble: what the schedule adds with free links;
    pipeline_parallel: what the links add; data_parallel: from there until the last gradient is reduced; optimizer: the
    rest.
    """
    slowest = int(np.argmax([max(times) for times in ends]))
    pipeline, work = plan.pipelines[slowest], works[slowest]
    busiest = max(w.forward_s + w.backward_s for w in work) * pipeline.micro_batches
    unhindered = max(play(plan.options.schedule, work, [Hop()] * (len(work) - 1), pipeline.micro_batches))
    end, end_reduced, end_all = max(ends[slowest]), max(map(max, reduced)), max(map(max, finished))
    return {
        "compute": busiest,
        "tensor_parallel": 0.0,
        "pipeline_parallel": end - unhindered,
        "bubble": unhindered - busiest,
        "data_parallel": end_reduced - end,
        "optimizer": end_all - end_reduced,
    }


def _notes(gpus: set[Gpu]) -> tuple[str, ...]:
    unmeasured = sorted({gpu.kind for gpu in gpus if gpu.efficiency is None})
    if not unmeasured:
        return ()
    return (f"speed of {', '.join(unmeasured)} is from the data sheet at a default efficiency, not measured",)
