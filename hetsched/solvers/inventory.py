"""The devices of a cluster in classes of those that no cost model can tell apart, and plans written in them.

A group is a tensor-parallel group as a sorted tuple of classes; a chain is a pipeline, a tuple of (group, layers).
What a search moves about are these small tuples of numbers; which device of a class stands where is settled at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from hetsched.cluster import Cluster, Gpu
from hetsched.cost.chains import Chain, Group
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.problem import Problem
from hetsched.workload import TrainingJob


@dataclass(frozen=True, eq=False)
class Inventory:
    """A cluster's devices in classes: the GPUs of one kind in one machine, or single ones where links were measured
    between devices."""

    cluster: Cluster

    @cached_property
    def members(self) -> list[list[int]]:
        """Per class, the positions of its devices in `cluster.devices`."""
        measured = {node for pair in self.cluster.network.per_device for node in pair}
        found: dict[tuple[int, Gpu, int], list[int]] = {}
        for position, device in enumerate(self.cluster.devices):
            node = int(self.cluster.node_of[position])
            alone = position if node in measured else -1
            found.setdefault((node, device.gpu, alone), []).append(position)
        return list(found.values())

    @cached_property
    def class_of(self) -> list[int]:
        """(devices,): the class of each."""
        classes = [0] * len(self.cluster.devices)
        for number, positions in enumerate(self.members):
            for position in positions:
                classes[position] = number
        return classes

    @cached_property
    def counts(self) -> list[int]:
        """How many devices are in each class."""
        return [len(positions) for positions in self.members]

    @cached_property
    def kinds(self) -> list[int]:
        """A number for each class's kind of GPU."""
        gpus = [self.cluster.devices[positions[0]].gpu for positions in self.members]
        numbers = {gpu: number for number, gpu in enumerate(dict.fromkeys(gpus))}
        return [numbers[gpu] for gpu in gpus]

    @cached_property
    def nodes(self) -> list[int]:
        """The node of each class."""
        return [int(self.cluster.node_of[positions[0]]) for positions in self.members]

    def usd_per_hour(self, chains: Sequence[Chain]) -> float:
        """The price of the nodes that chains touch, each whole; a node without a price counts nothing."""
        nodes = {self.nodes[member] for chain in chains for group, _ in chain for member in group}
        return sum(self.cluster.nodes[node].usd_per_hour or 0.0 for node in nodes)

    def idle(self, chains: Sequence[Chain]) -> list[int]:
        """How many devices of each class no chain uses."""
        left = list(self.counts)
        for chain in chains:
            for group, _ in chain:
                for member in group:
                    left[member] -= 1
        return left

    def chains(self, plan: Plan) -> list[Chain]:
        """A plan's pipelines in classes."""
        place, classes = self.cluster.index_of, self.class_of
        return [
            tuple(
                (tuple(sorted(classes[place[name]] for name in stage.devices)), stage.num_layers)
                for stage in pipeline.stages
            )
            for pipeline in plan.pipelines
        ]

    def plan(
        self, problem: Problem, job: TrainingJob, options: Options, chains: Sequence[Chain], shares: Sequence[int]
    ) -> Plan:
        """The plan of these chains, each with its number of micro-batches."""
        left = [iter(positions) for positions in self.members]
        devices = self.cluster.devices

        def named(group: Group) -> tuple[str, ...]:
            return tuple(devices[next(left[member])].name for member in group)

        pipelines = []
        for number, (chain, share) in enumerate(zip(chains, shares, strict=True)):
            bounds = pairwise(accumulate((layers for _, layers in chain), initial=0))
            stages = tuple(Stage(layers, named(group)) for layers, (group, _) in zip(bounds, chain, strict=True))
            pipelines.append(Pipeline(f"p{number}", stages, share))
        return Plan(problem.model, job, tuple(pipelines), options)
