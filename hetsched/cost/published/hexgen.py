"""The cost model of HexGen (Jiang et al. 2024, ICML, arXiv 2311.11514, section 4.1), as published.

A request batch of b prompts of s_in tokens and s_out tokens of output, on a stage of a tensor-parallel group of D GPUs
with memory bandwidth m_d and peak c_d, weights in B bytes. Per block:

    compute  max over d of 12 H² B s_out / (D m_d) + 24 b (s_in + s_out) H² / (D c_d)
    tensor parallel  4 (D - 1) (α + b s H B / (D β)),   per boundary  α + b s H B / β,

each once with s = s_in and s_out times with s = 1; memory 12 H² B / D + 2 b (s_in + s_out) H B a block, and
4 b (s_in + s_out) H B besides. It knows neither grouped-query attention nor gated MLPs, the LM head, nor what kernels
reach of a data sheet. The link of a group is its slowest; that of a boundary the fastest between the two stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hetsched.cluster import Cluster, Device
from hetsched.cost.base import Violation
from hetsched.cost.serving.plan_cost import ServingCost, arriving_shares
from hetsched.model import ModelSpec
from hetsched.plan import ServingPlan, Stage
from hetsched.units import DTYPE_BYTES


@dataclass(frozen=True, slots=True)
class Job:
    """A batch: sequences, tokens of each prompt and of each output, and bytes of a weight or activation."""

    batch: float
    input_tokens: float
    output_tokens: float
    size_bytes: int

    def both(self, latency_s: float, token_s: float) -> tuple[float, float]:
        """A message of prompts once, and one of a token: (prefill, decode step), in seconds."""
        return (
            latency_s + self.batch * self.input_tokens * token_s,
            latency_s + self.batch * token_s,
        )


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of a stage: for the prompts, and for each token of output, computing and tensor parallelism."""

    prefill_s: float
    token_s: float


def stage_cost(cluster: Cluster, model: ModelSpec, stage: Stage, job: Job) -> StageCost:
    """All blocks of a stage. What is once for the whole output in the formula is spread over its tokens."""
    devices, degree = [cluster.device(name) for name in stage.devices], len(stage.devices)
    square = float(model.hidden_size) ** 2
    slowest = max(devices, key=lambda device: _compute_s(device, square, job, degree))
    reading = 12 * square * job.size_bytes / (degree * slowest.gpu.memory_bytes_per_s)
    flop_s = 24 * job.batch * square / (degree * slowest.gpu.half_flops_per_s)
    prefill, token = flop_s * job.input_tokens, reading + flop_s
    if degree > 1:
        latency_s, bytes_per_s = _slowest_link(cluster, stage)
        messages = job.both(latency_s, model.hidden_size * job.size_bytes / (degree * bytes_per_s))
        prefill, token = prefill + 4 * (degree - 1) * messages[0], token + 4 * (degree - 1) * messages[1]
    return StageCost(stage.num_layers * prefill, stage.num_layers * token)


def boundary_cost(cluster: Cluster, model: ModelSpec, before: Stage, after: Stage, job: Job) -> StageCost:
    """From one stage to the next, over the fastest link between them."""
    sources, targets = ([cluster.position(name) for name in stage.devices] for stage in (before, after))
    latency, bandwidth = cluster.links(sources, targets)
    each = model.hidden_size * job.size_bytes / bandwidth
    prefill = float((latency + job.batch * job.input_tokens * each).min())
    return StageCost(prefill, float((latency + job.batch * each).min()))


def stage_memory_bytes(model: ModelSpec, stage: Stage, job: Job) -> float:
    """On each device of a stage."""
    tokens = job.batch * (job.input_tokens + job.output_tokens) * model.hidden_size * job.size_bytes
    block = 12 * float(model.hidden_size) ** 2 * job.size_bytes / len(stage.devices) + 2 * tokens
    return stage.num_layers * block + 4 * tokens


def request_s(cluster: Cluster, model: ModelSpec, stages: Sequence[Stage], job: Job) -> float:
    """A batch from its arrival to its last token, on a pipeline with nothing else to do."""
    parts = [stage_cost(cluster, model, stage, job) for stage in stages]
    parts += [boundary_cost(cluster, model, a, b, job) for a, b in pairwise(stages)]
    return sum(part.prefill_s + job.output_tokens * part.token_s for part in parts)


@dataclass(frozen=True, slots=True)
class HexGen:
    """Prices co-located serving plans by the formulas above, in batches of `batch` requests.

    The paper has no formula of a rate: here a pipeline works on as many batches as it has stages, and serves one each
    time its slowest stage is through.
    """

    memory_fraction: float = 1.0
    batch: int = 1
    name: str = "hexgen"

    def price(self, cluster: Cluster, plan: ServingPlan) -> ServingCost:
        """The plan's cost; HetschedError where it names a device that the cluster lacks."""
        model, load = plan.model, plan.workload
        job = Job(self.batch, load.isl, load.osl, DTYPE_BYTES[load.dtype])
        shares = arriving_shares(plan)
        capacities: dict[str, float] = {}
        ttft = tpot = 0.0
        memory: dict[str, int] = {}
        for pipeline in plan.pipelines:
            stages = [stage_cost(cluster, model, stage, job) for stage in pipeline.stages]
            hops = [boundary_cost(cluster, model, a, b, job) for a, b in pairwise(pipeline.stages)]
            busiest = max(part.prefill_s + job.output_tokens * part.token_s for part in stages)
            capacities[pipeline.name] = self.batch / busiest
            ttft += shares[pipeline.name] * sum(part.prefill_s for part in (*stages, *hops))
            tpot += shares[pipeline.name] * sum(part.token_s for part in (*stages, *hops))
            for stage in pipeline.stages:
                memory |= {name: int(stage_memory_bytes(model, stage, job)) for name in stage.devices}
        capacity = min(capacities[name] / share for name, share in shares.items() if share > 0.0)
        served = capacity if load.rate_per_s is None else min(load.rate_per_s, capacity)
        usable = {name: cluster.device(name).gpu.memory_bytes * self.memory_fraction for name in memory}
        return ServingCost(
            served,
            capacity,
            load.osl,
            ttft,
            tpot,
            ttft + load.osl * tpot,
            memory,
            tuple(
                Violation(name, "memory", used, usable[name]) for name, used in memory.items() if used > usable[name]
            ),
            cluster.usd_per_hour(list(dict.fromkeys(cluster.device(name).node for name in memory))),
            {name: served * shares[name] / capacities[name] for name in capacities},
        )


def _compute_s(device: Device, square: float, job: Job, degree: int) -> float:
    """The formula's compute of a block on one device."""
    tokens = job.batch * (job.input_tokens + job.output_tokens)
    reading = 12 * square * job.size_bytes * job.output_tokens / (degree * device.gpu.memory_bytes_per_s)
    return reading + 24 * tokens * square / (degree * device.gpu.half_flops_per_s)


def _slowest_link(cluster: Cluster, stage: Stage) -> tuple[float, float]:
    at = [cluster.position(name) for name in stage.devices]
    latency, bandwidth = cluster.links(at, at)
    return float(latency.max()), float(bandwidth.min())
