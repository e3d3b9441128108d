"""The roofline's stages and hops for a search, in classes of like devices, what repeats remembered.

A class stands for like devices, so a team is known by its group, which has a number; and groups that work alike, all of
one kind of GPU in like machines, have one kind's number.
"""

from collections.abc import Sequence
from itertools import pairwise

from hetsched.cluster import Cluster
from hetsched.cost.chains import Chain, Group, pipelined_ends
from hetsched.cost.compute import StageWork, Worker, optimizer_s, stage_work
from hetsched.cost.hops import Link, link_between, may_cross
from hetsched.cost.memory import hidden_bytes, reserve_bytes, stage_bytes
from hetsched.cost.network import Lanes, Team, step_link
from hetsched.cost.placement import worker_of
from hetsched.cost.schedule import Hop
from hetsched.cost.traffic import compressed_bytes
from hetsched.model import ModelSpec
from hetsched.plan import Layers, Options, Stage
from hetsched.workload import TrainingJob

MOST_REMEMBERED = 200_000

# Two groups; the flows of one kind between their nodes, out of one and into the other; the same of both kinds, where
# they cross.
LinkKey = tuple[int, int, int, int, int, int, int, int]
UNCROSSED = (0, 0, 0)
Flow = tuple[int, int, int, int, int]  # from a group to a group, by number; their nodes; how many


class HopLanes:
    """How many flows of activations join two nodes, leave one, enter one, and both."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        self.out: dict[int, int] = {}
        self.into: dict[int, int] = {}
        self.pairs: dict[tuple[int, int], int] = {}
        out, into, pairs = self.out, self.into, self.pairs
        for _, _, i, j, count in flows:
            if i != j:
                out[i] = out.get(i, 0) + count
                into[j] = into.get(j, 0) + count
                pairs[i, j] = pairs.get((i, j), 0) + count
        self.through = {node: out.get(node, 0) + into.get(node, 0) for node in (*out, *into)}


class RooflineStages:
    """Times and limits of stages and hops. members: per class, positions of its devices in the cluster.

    nodes: of each class. Of each group, by number: teams, a representative of each, since all of a class are alike;
    kinds. links: all that were met, each once; link_numbers: their places, where `link_number` was asked.
    """

    def __init__(
        self,
        cluster: Cluster,
        members: Sequence[Sequence[int]],
        model: ModelSpec,
        job: TrainingJob,
        options: Options,
        memory_fraction: float,
    ) -> None:
        self.cluster, self.members, self.model, self.job, self.options = cluster, members, model, job, options
        self.memory_fraction = memory_fraction
        self.blocks = model.num_layers
        self.nodes = [int(cluster.node_of[positions[0]]) for positions in members]
        self.teams: list[Team] = []
        self.kinds: list[int] = []
        self.links: list[Link] = []
        size, bits = hidden_bytes(model, job), options.compression
        self._hop_bytes = (
            compressed_bytes(size, job.dtype_bytes, bits.activation_bits, model.hidden_size),
            compressed_bytes(size, job.dtype_bytes, bits.activation_grad_bits, model.hidden_size),
        )
        self._numbers: dict[Group, int] = {}
        self._groups: list[Group] = []
        self._workers: list[Worker] = []
        self._kinds: dict[Worker, int] = {}
        self._works: dict[tuple[int, int, bool, bool], StageWork] = {}
        self._most: dict[tuple[int, int, bool, bool, int], int] = {}
        self._splits: dict[tuple[tuple[Group, ...], int], Chain | None] = {}
        self._counts: dict[tuple[tuple[int, ...], int, float], list[int] | None] = {}
        self.link_numbers: dict[LinkKey, int] = {}
        self._links_met: dict[Link, int] = {}
        self._step_links: dict[tuple[int, int, int, int, int, int], tuple[float, float]] = {}

    # ---- groups

    def number(self, group: Group) -> int:
        """A group's number."""
        number = self._numbers.get(group)
        if number is None:
            number = self._numbers[group] = len(self.teams)
            team = self._representatives(group)
            worker = worker_of(self.cluster, team, self.model, self.job)
            kind = self._kinds.setdefault(worker, len(self._workers))
            if kind == len(self._workers):
                self._workers.append(worker)
            self._groups.append(group)
            self.teams.append(team)
            self.kinds.append(kind)
        return number

    def _representatives(self, group: Group, taken: Group = ()) -> Team:
        devices = [
            self.members[member][taken.count(member) + group[:position].count(member)]
            for position, member in enumerate(group)
        ]
        return Team(tuple(devices), self.nodes[group[0]])

    def _pair(self, a: int, b: int) -> tuple[Team, Team]:
        """Representatives of two groups that have no device in common."""
        return self.teams[a], self._representatives(self._groups[b], self._groups[a])

    # ---- stages

    def work(self, group: Group, count: int, first: bool, last: bool) -> StageWork:
        """What a stage works on one micro-batch."""
        key = self.kinds[self.number(group)], count, first, last
        work = self._works.get(key)
        if work is None:
            layers = self._layers(count, first, last)
            work = stage_work(self._workers[key[0]], self.model, self.job, layers, self.options.recompute)
            self._works[key] = work
        return work

    def stage_works(self, chain: Chain) -> list[StageWork]:
        """The work of each stage."""
        last = len(chain) - 1
        return [self.work(group, count, s == 0, s == last) for s, (group, count) in enumerate(chain)]

    def block_s(self, group: Group) -> float:
        """See `ChainPricer`."""
        work = self.work(group, 1, self.blocks == 1, self.blocks < 3)
        return work.forward_s + work.backward_s

    def updates_s(self, chain: Chain, shards: int) -> list[float]:
        """The optimiser step of each stage."""
        last = len(chain) - 1
        return [
            optimizer_s(
                self._workers[self.kinds[self.number(group)]],
                self.model,
                self._layers(count, s == 0, s == last),
                shards,
            )
            for s, (group, count) in enumerate(chain)
        ]

    def _layers(self, count: int, first: bool, last: bool) -> Layers:
        begin = 0 if first else self.blocks - count if last else 1
        return begin, begin + count

    # ---- links, and steps of rings

    def hop(self, here: Group, there: Group) -> Hop:
        """Between two groups, with all of the network to itself."""
        return self.links[self.link_number((self.number(here), self.number(there), 0, 0, 0, *UNCROSSED))].apart

    def link_number(self, key: LinkKey) -> int:
        """Its place in `links`."""
        number = self.link_numbers.get(key)
        if number is None:
            here, there, pair, out, into, both, through, past = key
            source, target = self._pair(here, there)
            i, j = source.node, target.node
            link = link_between(
                self.cluster,
                source,
                target,
                self._hop_bytes,
                Lanes({i: out}, {j: into}, {(i, j): pair}),
                Lanes({j: into}, {i: out}, {(j, i): pair}),
                Lanes({i: through, j: past}, {i: through, j: past}, {(i, j): both, (j, i): both}) if both else None,
            )
            number = self.link_numbers[key] = self._links_met.setdefault(link, len(self.links))
            if number == len(self.links):
                self.links.append(link)
        return number

    def flows(self, groups: Sequence[int]) -> list[Flow]:
        """Those from each group of a pipeline to the next."""
        teams = [self.teams[g] for g in groups]
        return [
            (a, b, source.node, target.node, min(source.size, target.size))
            for (a, source), (b, target) in pairwise(zip(groups, teams, strict=True))
        ]

    def shared_links(self, flows: list[Flow], lanes: HopLanes) -> list[int]:
        """The links of a pipeline, by number, among all on these lanes."""
        known, number, links, crossing = self.link_numbers, self.link_number, [], may_cross(self.options)
        pairs, out, into, through = lanes.pairs, lanes.out, lanes.into, lanes.through
        for a, b, i, j, _ in flows:
            if i == j:
                key: LinkKey = (a, b, 0, 0, 0, *UNCROSSED)
            elif crossing:
                both = pairs[i, j] + pairs.get((j, i), 0)
                key = (a, b, pairs[i, j], out[i], into[j], both, through[i], through[j])
            else:
                key = (a, b, pairs[i, j], out[i], into[j], *UNCROSSED)
            links.append(known[key] if key in known else number(key))
        return links

    def step_link(self, here: int, there: int, pair: int, out: int, into: int, teams: int) -> tuple[float, float]:
        """`network.step_link` between two groups by number."""
        key = here, there, pair, out, into, teams
        link = self._step_links.get(key)
        if link is None:
            source, target = self._pair(here, there)
            i, j = source.node, target.node
            lanes = Lanes({i: out}, {j: into}, {(i, j): pair})
            link = self._step_links[key] = step_link(self.cluster, source, target, lanes, teams)
        return link

    # ---- memory and layers

    def most_layers(self, group: Group, flying: int, depth: int, first: bool, last: bool, peers: int) -> int:
        """How many blocks a group can hold with so many micro-batches in flight, 0 where not one."""
        key = self.kinds[self.number(group)], flying, first, last, peers if self.options.zero else 0
        most = self._most.get(key)
        if most is None:
            memory_bytes = self.cluster.devices[self.members[group[0]][0]].gpu.memory_bytes
            limit = memory_bytes * self.memory_fraction - reserve_bytes(memory_bytes)

            def held(count: int) -> float:
                stage = Stage(self._layers(count, first, last), ("",) * len(group))
                # position and depth only say how many are in flight, and whether there is a neighbour
                return stage_bytes(
                    self.model, self.job, self.options, stage, max(0, depth - flying), depth, flying, peers
                )

            most = self.blocks - (not first) - (not last)
            if most and held(most) > limit and first and last:
                most = 0  # it has all blocks or is no stage
            elif most and held(most) > limit:
                one = held(1)
                most = 0 if one > limit else 1 + int((limit - one) / max(1.0, held(2) - one)) if most > 1 else 0
                most += 1 if most and held(most + 1) <= limit else 0
                most -= 1 if most and held(most) > limit else 0
            self._most[key] = most
        return most

    def fits(self, chain: Chain, share: int, pipelines: int) -> bool:
        """Whether no stage of a pipeline of so many micro-batches needs more memory than it has."""
        caps = self._caps([group for group, _ in chain], share, pipelines)
        return all(layers <= cap for (_, layers), cap in zip(chain, caps, strict=True))

    def _caps(self, groups: Sequence[Group], share: int, peers: int) -> list[int]:
        depth = len(groups)
        gpipe = self.options.schedule == "gpipe"
        return [
            self.most_layers(group, share if gpipe else min(depth - s, share), depth, s == 0, s == depth - 1, peers)
            for s, group in enumerate(groups)
        ]

    def split(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        """See `ChainPricer`; None too where a group spans nodes."""
        key = groups, pipelines
        if key not in self._splits:
            if len(self._splits) > MOST_REMEMBERED:
                self._splits.clear()
            across = any(len({self.nodes[member] for member in group}) > 1 for group in groups if len(group) > 1)
            counts = None if across else self._split(groups, pipelines)
            self._splits[key] = None if counts is None else tuple(zip(groups, counts, strict=True))
        return self._splits[key]

    def _split(self, groups: tuple[Group, ...], pipelines: int) -> list[int] | None:
        depth = len(groups)
        if depth > self.blocks or self.blocks < 3:
            return None if depth > self.blocks else self._tiny(groups, pipelines)
        numbers = [self.number(group) for group in groups]
        hops = [self.hop(a, b) for a, b in pairwise(groups)]
        busy_s = max((max(hop.forward_occupied_s, hop.backward_occupied_s) for hop in hops), default=0.0)
        key = tuple([self.kinds[number] for number in numbers]), pipelines, busy_s
        if key not in self._counts:
            share = -(-self.job.global_batch // (self.job.micro_batch * pipelines))
            seconds = [self.block_s(group) for group in groups]
            extra = [0.0] * depth
            for s, first, last in ((0, True, depth == 1), (depth - 1, depth == 1, True)):
                count = self.blocks if depth == 1 else 1
                work = self.work(groups[s], count, first, last)
                extra[s] = work.forward_s + work.backward_s - count * seconds[s]
            caps = self._caps(groups, share, pipelines)
            self._counts[key] = pipelined_ends(seconds, extra, caps, self.blocks, share, busy_s)
        return self._counts[key]

    def _tiny(self, groups: tuple[Group, ...], pipelines: int) -> list[int] | None:
        """A model of one or two blocks."""
        counts = [1] * len(groups) if len(groups) == self.blocks else [self.blocks]
        share = -(-self.job.global_batch // self.job.micro_batch // pipelines)
        return counts if self.fits(tuple(zip(groups, counts, strict=True)), share, pipelines) else None
