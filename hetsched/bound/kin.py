"""Plans that are alike in what they fix for all pipelines, and in their slowest team's class of speeds."""

from dataclasses import dataclass

from hetsched.bound.room import Room
from hetsched.bound.sizes import MessageSizes
from hetsched.bound.speeds import SpeedLevel
from hetsched.cluster import Floats
from hetsched.plan import Options
from hetsched.problem import Problem
from hetsched.workload import TrainingJob


@dataclass(frozen=True, eq=False)
class Kin:
    """Plans of one job and options for a problem, of a class of speeds; sizes: of their messages."""

    problem: Problem
    job: TrainingJob
    options: Options
    level: SpeedLevel
    memory_fraction: float
    sizes: MessageSizes

    @property
    def micro_batches(self) -> int:
        """How many there are at least."""
        return self.problem.micro_batch_count(self.job.micro_batch)

    def room(self, replicas: Floats) -> Room:
        """Their memory, by number of pipelines."""
        problem = self.problem
        fixed = self.job, self.options, self.level, self.memory_fraction
        return Room(problem.cluster, problem.model, *fixed, self.micro_batches, replicas)
