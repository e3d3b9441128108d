"""DT-FM's own formula (Yuan et al. 2022, arXiv 2206.01288, section 3): communication alone, of equal stages.

total = DATAP + 2 · PIPELINE, where a stage's devices in all pipelines are its data-parallel group C:

    DATAP    = max over stages and d in C of sum over d' in C, d' != d of 2 (latency + c_dp / (|C| bandwidth))
    PIPELINE = sum over stages s of max over pipelines of latency + c_pp / bandwidth, from stage s to s + 1

c_dp: gigabytes of a stage's gradients; c_pp: of the activations a pipeline hands on in one iteration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hetsched.cluster import Cluster, Floats
from hetsched.cost.account import MEMORY_FRACTION, account
from hetsched.cost.base import Assumptions, Cost
from hetsched.cost.memory import hidden_bytes
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Options, Plan
from hetsched.units import BYTES_PER_GB
from hetsched.workload import TrainingJob

PUBLISHED_MODEL = "gpt3-xl"
HOP_WEIGHT = 2.0


def published_messages_gigabytes(replicas: int, stages: int) -> tuple[float, float]:
    """The paper's gradient and activation messages for GPT3-XL; 2024 stands so in its code."""
    return 5.2 / stages, 2024 * 2048 * 2 * (1e6 / 2048 / replicas) / 2**30


def paper_messages_gigabytes(
    model: ModelSpec, published_batch: bool, replicas: int, stages: int
) -> tuple[float, float] | None:
    """The paper's messages where the job is the paper's own: its model, and no other batch asked for; else None."""
    own = published_batch and model.name == PUBLISHED_MODEL
    return published_messages_gigabytes(replicas, stages) if own else None


def messages_gigabytes(model: ModelSpec, job: TrainingJob, replicas: int, stages: int) -> tuple[float, float]:
    """The true messages: the mean stage's gradients, and the mean pipeline's activations in one iteration."""
    gradient = model.parameters * job.dtype_bytes / stages
    sequences = job.global_batch / replicas
    return gradient / BYTES_PER_GB, hidden_bytes(model, job) / job.micro_batch * sequences / BYTES_PER_GB


def within_cost_s(latency_s: Floats, bandwidth_bytes_per_s: Floats, gigabytes: float, group_size: int) -> Floats:
    """(m, n) seconds that each pair adds to a device's DATAP in a group of `group_size`."""
    return 2 * (latency_s + gigabytes * BYTES_PER_GB / (group_size * bandwidth_bytes_per_s))


def between_cost_s(latency_s: Floats, bandwidth_bytes_per_s: Floats, gigabytes: float) -> Floats:
    """(m, n) seconds of a hop from each device to each other."""
    return latency_s + gigabytes * BYTES_PER_GB / bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class DtFm:
    """See the module. Memory is checked as in the default model."""

    memory_fraction: float = MEMORY_FRACTION
    name: str = "dtfm"

    @property
    def assumes(self) -> Assumptions:
        """Equal stages, and nothing but messages."""
        return Assumptions(even_layers=True, communication_only=True)

    def refuses(self, plan: Plan) -> str | None:
        """Pipelines of unequal depth, or tensor parallelism: the formula has no place for them."""
        depths = {len(pipeline.stages) for pipeline in plan.pipelines}
        if len(depths) > 1:
            return f"its pipelines have {min(depths)} to {max(depths)} stages"
        if any(stage.tensor_parallel > 1 for _, _, stage in plan.stages):
            return "a stage is tensor parallel"
        return None

    def price(self, cluster: Cluster, plan: Plan) -> Cost:
        """The formula's total; HetschedError where it has no place for the plan's shape."""
        if reason := self.refuses(plan):
            raise HetschedError(
                f"the dtfm formula does not price this plan: {reason}",
                hint="it knows pipelines of one depth with one device a stage; use --cost-model roofline",
            )
        replicas, stages = len(plan.pipelines), len(plan.pipelines[0].stages)
        c_dp, c_pp = plan.options.dtfm_message_gigabytes or messages_gigabytes(
            plan.model, plan.workload, replicas, stages
        )
        groups = [[cluster.position(p.stages[s].devices[0]) for p in plan.pipelines] for s in range(stages)]
        data_parallel = max(
            float(within_cost_s(*cluster.links(group, group), c_dp, replicas).sum(axis=1).max()) for group in groups
        )
        pipeline = sum(float(between_cost_s(*cluster.links(a, b), c_pp).diagonal().max()) for a, b in pairwise(groups))
        breakdown = {
            "compute": 0.0,
            "tensor_parallel": 0.0,
            "pipeline_parallel": HOP_WEIGHT * pipeline,
            "bubble": 0.0,
            "data_parallel": data_parallel,
        }
        return account(cluster, plan, data_parallel + HOP_WEIGHT * pipeline, breakdown, self.memory_fraction)

    def chains(
        self,
        cluster: Cluster,
        members: Sequence[Sequence[int]],
        model: ModelSpec,
        job: TrainingJob,
        options: Options,
    ) -> None:
        """None: it prices grids alone."""
