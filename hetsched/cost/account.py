"""From a plan's time to its Cost: memory, violations, utilisation and money, alike for every model."""

from hetsched.cluster import Cluster
from hetsched.cost.base import Cost, Violation
from hetsched.cost.memory import reserve_bytes, stage_bytes
from hetsched.cost.money import plan_usd_per_hour
from hetsched.plan import Plan

MEMORY_FRACTION = 0.92


def account(
    cluster: Cluster,
    plan: Plan,
    iteration_s: float,
    breakdown_s: dict[str, float],
    memory_fraction: float,
    notes: tuple[str, ...] = (),
) -> Cost:
    """The Cost of a plan whose time is known."""
    model, job = plan.model, plan.workload
    flops = model.training_flops(job.global_batch, job.seq_len)
    recomputed = model.num_layers * model.block_forward_flops(job.global_batch, job.seq_len)
    devices = [cluster.device(name) for pipeline in plan.pipelines for name in pipeline.devices]
    memory = memory_bytes(cluster, plan)
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
        notes=notes,
    )


def memory_bytes(cluster: Cluster, plan: Plan) -> dict[str, int]:
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
        for name in stage.devices:
            found[name] = known[key] + reserve_bytes(cluster.device(name).gpu.memory_bytes)
    return found
