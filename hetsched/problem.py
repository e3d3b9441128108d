"""What is to be planned: a cluster, a model, a job, and what of the plan the user has fixed."""

from dataclasses import dataclass

from hetsched.cluster import Cluster
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import SCHEDULES, Compression
from hetsched.workload import TrainingJob

MICRO_BATCHES = (1, 2, 4, 8)


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
                f"{stages} stages for the {blocks} blocks of {self.model.name}", hint="a stage holds at least one block"
            )
        if replicas * stages > devices:
            raise HetschedError(
                f"{replicas} replicas × {stages} stages need {replicas * stages} devices, "
                f"cluster {self.cluster.name} has {devices}",
                hint="ask for fewer replicas or stages",
            )
        if replicas > self.job.global_batch:
            raise HetschedError(
                f"{replicas} replicas for a global batch of {self.job.global_batch} sequences",
                hint="each replica needs at least one sequence: fewer replicas, or a larger --global-batch",
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

    @property
    def micro_batches(self) -> tuple[int, ...]:
        """The micro-batch sizes allowed."""
        fixed = self.choices.micro_batch
        return (fixed,) if fixed else tuple(size for size in MICRO_BATCHES if size <= self.job.global_batch)
