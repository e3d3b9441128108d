"""Every plan of a tiny problem, one by one: the oracle for what no plan can beat."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations, product

from hetsched.cluster import Cluster
from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

Line = tuple[tuple[str, ...], ...]  # the teams of a pipeline, in order


def teams_of(cluster: Cluster, devices: Sequence[str]) -> Iterator[list[tuple[str, ...]]]:
    """Every way to divide these devices into teams, each of one kind in one node."""
    if not devices:
        yield []
        return
    first, rest = devices[0], devices[1:]
    head = cluster.device(first)
    alike = [n for n in rest if (cluster.device(n).node, cluster.device(n).gpu) == (head.node, head.gpu)]
    for count in range(len(alike) + 1):
        for others in combinations(alike, count):
            for teams in teams_of(cluster, [name for name in rest if name not in others]):
                yield [(first, *others), *teams]


def layouts(cluster: Cluster, blocks: int) -> Iterator[tuple[Line, ...]]:
    """Every choice of devices, teams, order of stages, and order of pipelines (which rings follow)."""
    names = [device.name for device in cluster.devices]
    for count in range(1, len(names) + 1):
        for used in combinations(names, count):
            for teams in teams_of(cluster, used):
                for order in permutations(teams):
                    for cut in product((False, True), repeat=len(order) - 1):
                        lines: list[list[tuple[str, ...]]] = [[order[0]]]
                        for team, starts in zip(order[1:], cut, strict=True):
                            if starts:
                                lines.append([team])
                            else:
                                lines[-1].append(team)
                        if max(map(len, lines)) <= blocks:
                            yield tuple(map(tuple, lines))


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as so many numbers of at least one."""
    for cuts in combinations(range(1, total), parts - 1):
        bounds = (0, *cuts, total)
        yield tuple(b - a for a, b in pairwise(bounds))


def every_plan(cluster: Cluster, model: ModelSpec, job: TrainingJob, options: Sequence[Options]) -> Iterator[Plan]:
    """Every plan with these options at the job's micro-batch size."""
    micro_batches = -(-job.global_batch // job.micro_batch)
    for lines in layouts(cluster, model.num_layers):
        splits = [list(compositions(model.num_layers, len(line))) for line in lines]
        for counts in compositions(micro_batches, len(lines)):
            for chosen in product(*splits):
                pipelines = []
                for number, (line, sizes) in enumerate(zip(lines, chosen, strict=True)):
                    starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
                    stages = tuple(Stage((starts[k], starts[k + 1]), team) for k, team in enumerate(line))
                    pipelines.append(Pipeline(f"p{number}", stages, counts[number]))
                for option in options:
                    yield Plan(model, job, tuple(pipelines), option)
