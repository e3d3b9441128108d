"""What is to be planned: a cluster, a model, a job, and what of the plan the user has fixed."""

from dataclasses import dataclass
from functools import cached_property

from hetsched.cluster import Cluster
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import SCHEDULES, Compression
from hetsched.units import counted
from hetsched.workload import TrainingJob

USUAL_MICRO_BATCH = 8  # the largest, unless passes are short
FULL_PASS_S = 1.5e-3  # of a block's forward at a GPU's peak: really twice that, to which launching it adds 3 %


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user has fixed of the plan; None is searched.

    published_batch: no batch was asked for, so that a paper's own setting applies where the model has one.
    """

    replicas: int | None = None
    stages: int | None = None
    micro_batch: int | None = None
    schedule: str | None = None
    recompute: bool | None = None
    zero: int | None = None
    compression: Compression = Compression()
    published_batch: bool = False

    @property
    def fixed(self) -> dict[str, int | str | bool]:
        """What is not open of what a search may choose, by name."""
        names = "replicas", "stages", "micro_batch", "schedule", "recompute", "zero"
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, eq=False)
class Problem:
    """A training problem; the objective is least `time` or least `cost` a token.

    Raises HetschedError where the grid asked for can't exist on this cluster or model.
    """

    cluster: Cluster
    model: ModelSpec
    job: TrainingJob
    choices: Choices = Choices()
    objective: str = "time"

    def __post_init__(self) -> None:
        devices, blocks = len(self.cluster.devices), self.model.num_layers
        replicas, stages = self.choices.replicas or 1, self.choices.stages or 1
        if replicas < 1 or stages < 1:
            raise HetschedError("replicas and stages must be at least 1")
        if stages > blocks:
            raise HetschedError(
                f"{counted(stages, 'stage')} for the {counted(blocks, 'block')} of {self.model.name}",
                hint="a stage holds at least one block",
            )
        if replicas * stages > devices:
            raise HetschedError(
                f"{counted(replicas, 'replica')} × {counted(stages, 'stage')} need "
                f"{counted(replicas * stages, 'device')}, cluster {self.cluster.name} has {devices}",
                hint="ask for fewer replicas or stages",
            )
        if replicas > self.job.global_batch:
            raise HetschedError(
                f"{counted(replicas, 'replica')} for a global batch of {counted(self.job.global_batch, 'sequence')}",
                hint="each replica needs at least one sequence: fewer replicas, or a larger --global-batch",
            )
        if (self.choices.micro_batch or 1) > self.job.global_batch:
            raise HetschedError(
                f"a micro-batch of {self.choices.micro_batch} for a global batch of "
                f"{counted(self.job.global_batch, 'sequence')}",
                hint="ask for a smaller --micro-batch, or a larger --global-batch",
            )
        if self.job.seq_len > self.model.max_positions and self.model.positions == "learned":
            raise HetschedError(
                f"sequences of {self.job.seq_len} tokens, but {self.model.name} has positions for "
                f"{self.model.max_positions}",
                hint="shorten --seq-len",
            )

    def grids(self, devices: int | None = None) -> list[tuple[int, int]]:
        """Every (replicas, stages) allowed: as many replicas of each depth as `devices` (all, by default) make."""
        devices = devices or len(self.cluster.devices)
        most_replicas = min(devices, self.job.global_batch)
        found = []
        for stages in range(1, min(devices, self.model.num_layers) + 1):
            replicas = self.choices.replicas or min(devices // stages, most_replicas)
            if self.choices.stages in (None, stages) and replicas * stages <= devices:
                found.append((replicas, stages))
        return found

    @property
    def schedules(self) -> tuple[str, ...]:
        """The pipeline schedules allowed."""
        return (self.choices.schedule,) if self.choices.schedule else SCHEDULES

    @cached_property
    def micro_batches(self) -> tuple[int, ...]:
        """The micro-batch sizes allowed, in ascending order: the one fixed, or powers of two up to the batch.

        To 8, and on while a block's forward pass of the size before takes the fastest GPU less than `FULL_PASS_S` at
        its peak. From there on a token takes as long to compute, but for a few percent, and all else that comes of a
        larger size (memory, fewer to share out, a pipeline that is longer in filling) speaks against it.
        """
        if self.choices.micro_batch:
            return (self.choices.micro_batch,)
        fastest = max(device.gpu.flops_per_s(self.job.dtype) for device in self.cluster.devices)
        sequence_s = self.model.block_forward_flops(1, self.job.seq_len) / fastest
        sizes = [1]
        while 2 * sizes[-1] <= self.job.global_batch and (
            sizes[-1] < USUAL_MICRO_BATCH or sizes[-1] * sequence_s < FULL_PASS_S
        ):
            sizes.append(2 * sizes[-1])
        return tuple(sizes)

    def most_replicas(self, micro_batch: int) -> int:
        """How many pipelines there may be at a micro-batch size: each has one, if the size is not fixed."""
        fixed = self.choices.micro_batch is not None
        return self.job.global_batch if fixed else -(-self.job.global_batch // micro_batch)

    def micro_batch_count(self, micro_batch: int) -> int:
        """How many micro-batches there are at least at a size: more where so many pipelines are asked for."""
        return max(-(-self.job.global_batch // micro_batch), self.choices.replicas or 1)

    def micro_batches_of(self, replicas: int) -> tuple[int, ...]:
        """The micro-batch sizes allowed for so many pipelines."""
        return tuple(size for size in self.micro_batches if self.most_replicas(size) >= replicas)
