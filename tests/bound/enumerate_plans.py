"""Every plan of a tiny problem, one by one: the oracle for what no plan can beat."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations, product
from math import inf

from hetsched.cluster import Cluster
from hetsched.cost.chains import Chain, ChainPricer, Group
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


def chains_of(counts: Sequence[int], nodes: Sequence[int], blocks: int) -> Iterator[Chain]:
    """Every pipeline of devices of these classes (how many of each, in which node), teams staying in their node."""
    for groups in _lines(tuple(counts), nodes, blocks):
        for split in compositions(blocks, len(groups)):
            yield tuple(zip(groups, split, strict=True))


def every_chains(counts: Sequence[int], nodes: Sequence[int], blocks: int) -> Iterator[list[Chain]]:
    """Every plan in classes, up to the order of its pipelines."""
    every = sorted(chains_of(counts, nodes, blocks))
    uses = [[sum(group.count(c) for group, _ in chain) for c in range(len(counts))] for chain in every]

    def more(first: int, left: Sequence[int]) -> Iterator[list[Chain]]:
        for k in range(first, len(every)):
            rest = [have - use for have, use in zip(left, uses[k], strict=True)]
            if min(rest) >= 0:
                yield [every[k]]
                for others in more(k, rest):
                    yield [every[k], *others]

    yield from more(0, counts)


def fastest_s(
    pricer: ChainPricer, counts: Sequence[int], nodes: Sequence[int], blocks: int, most: int
) -> dict[int, float]:
    """{number of pipelines, `most` at most: seconds of the fastest plan}, of those that have one which fits."""
    fastest: dict[int, float] = {}
    for chains in every_chains(counts, nodes, blocks):
        if len(chains) <= most:
            seconds = pricer.stand(chains).seconds
            fastest[len(chains)] = min(seconds, fastest.get(len(chains), inf))
    return {replicas: seconds for replicas, seconds in fastest.items() if seconds < inf}


def _lines(left: tuple[int, ...], nodes: Sequence[int], most: int) -> Iterator[tuple[Group, ...]]:
    for wide in product(*(range(count + 1) for count in left)):
        group = tuple(c for c, count in enumerate(wide) for _ in range(count))
        if group and len({nodes[c] for c in group}) == 1:
            yield (group,)
            if most > 1:
                rest = tuple(have - use for have, use in zip(left, wide, strict=True))
                yield from ((group, *others) for others in _lines(rest, nodes, most - 1))
