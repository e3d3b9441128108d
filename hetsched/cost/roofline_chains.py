"""The roofline for a search: plans as chains of classes, played as `play_iteration` does, what repeats remembered.

A class stands for like devices, so a team is known by its group; a hop, or a step of a ring, by its two groups and by
how many flows share their nodes; a played pipeline by its chain, share and hops.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf

from hetsched.cluster import Cluster
from hetsched.cost.chain_rings import Ring, chain_rings
from hetsched.cost.chains import Chain, Group, Standing, apportion, pipelined_ends
from hetsched.cost.compute import StageWork, Worker, optimizer_s, stage_work
from hetsched.cost.memory import hidden_bytes, reserve_bytes, stage_bytes
from hetsched.cost.network import Lanes, Team, all_reduce_s, step_s, transfer_s
from hetsched.cost.pipeline_terms import PipelineTerms
from hetsched.cost.placement import GATHERED_WEIGHTS, gradient_lanes, worker_of
from hetsched.cost.roofline_terms import roofline_terms
from hetsched.cost.schedule import Hop, play
from hetsched.cost.traffic import compressed_bytes
from hetsched.model import ModelSpec
from hetsched.plan import Layers, Options, Stage
from hetsched.workload import TrainingJob

MEAN_WEIGHT = 0.05  # of the guide: how much the mean pipeline counts beside the slowest
MOST_REMEMBERED = 200_000


class RooflineChains:
    """A `ChainPricer`. members: per class, positions of its devices in the cluster."""

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
        size, bits = hidden_bytes(model, job), options.compression
        self._forward_bytes = compressed_bytes(size, job.dtype_bytes, bits.activation_bits)
        self._backward_bytes = compressed_bytes(size, job.dtype_bytes, bits.activation_grad_bits)
        self._nodes = [int(cluster.node_of[positions[0]]) for positions in members]
        self._teams: dict[Group, Team] = {}
        self._groups: dict[int, Group] = {}
        self._workers: dict[Group, Worker] = {}
        self._works: dict[tuple[Group, int, bool, bool], StageWork] = {}
        self._updates: dict[tuple[Group, int, bool, bool, int], float] = {}
        self._most: dict[tuple[int, int, int, bool, bool, int], int] = {}
        self._splits: dict[tuple[tuple[Group, ...], int], Chain | None] = {}
        self._hops: dict[tuple[Group, Group, int, int, int], Hop] = {}
        self._steps: dict[tuple[int, int, float, int, int, int, int], float] = {}
        self._flows: dict[Chain, list[tuple[int, int, int]]] = {}
        self._paces: dict[Chain, tuple[float, float]] = {}
        self._holders: dict[Chain, list[int]] = {}
        self._played: dict[tuple[object, int, tuple[int, ...]], list[float]] = {}

    # ---- teams of a group: representatives, since all of a class are alike

    def _team(self, group: Group) -> Team:
        team = self._teams.get(group)
        if team is None:
            team = self._teams[group] = self._representatives(group, Counter())
            self._groups[id(team)] = group
        return team

    def _representatives(self, group: Group, taken: Counter[int]) -> Team:
        taken = Counter(taken)
        devices = []
        for member in group:
            devices.append(self.members[member][taken[member]])
            taken[member] += 1
        return Team(tuple(devices), self._nodes[group[0]])

    def _worker(self, group: Group) -> Worker:
        worker = self._workers.get(group)
        if worker is None:
            worker = self._workers[group] = worker_of(self.cluster, self._team(group), self.model, self.job)
        return worker

    def _layers(self, count: int, first: bool, last: bool) -> Layers:
        begin = 0 if first else self.blocks - count if last else 1
        return begin, begin + count

    def work(self, group: Group, count: int, first: bool, last: bool) -> StageWork:
        """What a stage works on one micro-batch."""
        key = group, count, first, last
        work = self._works.get(key)
        if work is None:
            layers = self._layers(count, first, last)
            work = stage_work(self._worker(group), self.model, self.job, layers, self.options.recompute)
            self._works[key] = work
        return work

    def move_s(self, chains: Sequence[Chain]) -> float:
        """See `ChainPricer`; measured."""
        return 1e-4 + 1.8e-5 * sum(map(len, chains))

    def block_s(self, group: Group) -> float:
        """See `ChainPricer`."""
        work = self.work(group, 1, self.blocks == 1, self.blocks < 3)
        return work.forward_s + work.backward_s

    def _update_s(self, group: Group, count: int, first: bool, last: bool, shards: int) -> float:
        key = group, count, first, last, shards
        seconds = self._updates.get(key)
        if seconds is None:
            layers = self._layers(count, first, last)
            seconds = self._updates[key] = optimizer_s(self._worker(group), self.model, layers, shards)
        return seconds

    # ---- memory and layers

    def most_layers(self, group: Group, flying: int, depth: int, first: bool, last: bool, peers: int) -> int:
        """How many blocks a group can hold with so many micro-batches in flight, 0 where not one."""
        gpu = self.cluster.devices[self.members[group[0]][0]].gpu
        key = gpu.memory_bytes, len(group), flying, first, last, peers if self.options.zero else 0
        most = self._most.get(key)
        if most is None:
            limit = gpu.memory_bytes * self.memory_fraction - reserve_bytes(gpu.memory_bytes)

            def held(count: int) -> float:
                stage = Stage(self._layers(count, first, last), ("",) * len(group))
                # position and depth only say how many are in flight, and whether there is a neighbour
                return stage_bytes(
                    self.model, self.job, self.options, stage, max(0, depth - flying), depth, flying, peers
                )

            most = self.blocks - (not first) - (not last)
            if most and held(most) > limit:
                one = held(1)
                most = 0 if one > limit else 1 + int((limit - one) / max(1.0, held(2) - one)) if most > 1 else 0
                most += 1 if most and held(most + 1) <= limit else 0
                most -= 1 if most and held(most) > limit else 0
            self._most[key] = most
        return most

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
            across = any(len({self._nodes[member] for member in group}) > 1 for group in groups if len(group) > 1)
            self._splits[key] = None if across else self._split(groups, pipelines)
        return self._splits[key]

    def _split(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        depth = len(groups)
        if depth > self.blocks or self.blocks < 3:
            return None if depth > self.blocks else self._tiny(groups, pipelines)
        share = -(-self.job.global_batch // (self.job.micro_batch * pipelines))
        seconds = [self.block_s(group) for group in groups]
        extra = [0.0] * depth
        for s, first, last in ((0, True, depth == 1), (depth - 1, depth == 1, True)):
            count = self.blocks if depth == 1 else 1
            work = self.work(groups[s], count, first, last)
            extra[s] = work.forward_s + work.backward_s - count * seconds[s]
        hops = [self.hop(a, b, 0, 0, 0) for a, b in pairwise(groups)]
        busy_s = max((max(hop.forward_occupied_s, hop.backward_occupied_s) for hop in hops), default=0.0)
        counts = pipelined_ends(seconds, extra, self._caps(groups, share, pipelines), self.blocks, share, busy_s)
        return None if counts is None else tuple(zip(groups, counts, strict=True))

    def _tiny(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        """A model of one or two blocks."""
        counts = [1] * len(groups) if len(groups) == self.blocks else [self.blocks]
        chain = tuple(zip(groups, counts, strict=True))
        share = -(-self.job.global_batch // self.job.micro_batch // pipelines)
        return chain if self.fits(chain, share, pipelines) else None

    def fits(self, chain: Chain, share: int, pipelines: int) -> bool:
        """Whether no stage of a pipeline of so many micro-batches needs more memory than it has."""
        caps = self._caps([group for group, _ in chain], share, pipelines)
        return all(layers <= cap for (_, layers), cap in zip(chain, caps, strict=True))

    # ---- one pipeline

    def stage_works(self, chain: Chain) -> list[StageWork]:
        """The work of each stage."""
        last = len(chain) - 1
        return [self.work(group, count, s == 0, s == last) for s, (group, count) in enumerate(chain)]

    def hop(self, here: Group, there: Group, pair: int, out: int, into: int) -> Hop:
        """Between two groups, where so many flows share the way from node to node, out of one, and into the other."""
        key = here, there, pair, out, into
        hop = self._hops.get(key)
        if hop is None:
            source, target = self._pair(here, there)
            i, j = source.node, target.node
            forward = Lanes(Counter({i: out}), Counter({j: into}), Counter({(i, j): pair}))
            backward = Lanes(Counter({j: into}), Counter({i: out}), Counter({(j, i): pair}))
            hop = Hop(
                *transfer_s(self.cluster, source, target, self._forward_bytes, forward),
                *transfer_s(self.cluster, target, source, self._backward_bytes, backward),
            )
            self._hops[key] = hop
        return hop

    def _pair(self, here: Group, there: Group) -> tuple[Team, Team]:
        return self._representatives(here, Counter()), self._representatives(there, Counter(here))

    def terms(self, groups: Sequence[Group], share: int, pipelines: int) -> PipelineTerms:
        """See `ChainPricer`."""
        return roofline_terms(self, groups, share, pipelines)

    def _pace(self, chain: Chain) -> tuple[float, float]:
        """Seconds that each further micro-batch takes, and that the first takes besides, with free links."""
        found = self._paces.get(chain)
        if found is None:
            works = [work.forward_s + work.backward_s for work in self.stage_works(chain)]
            hops = [self.hop(a, b, 0, 0, 0) for (a, _), (b, _) in pairwise(chain)]
            pace = max([*works, *(max(hop.forward_occupied_s, hop.backward_occupied_s) for hop in hops)])
            through = sum(works) + sum(
                hop.forward_occupied_s + hop.forward_latency_s + hop.backward_occupied_s + hop.backward_latency_s
                for hop in hops
            )
            found = self._paces[chain] = pace, through - pace
        return found

    def shares(self, chains: Sequence[Chain]) -> list[int]:
        """By pace, so that the slowest ends soonest."""
        total = max(len(chains), -(-self.job.global_batch // self.job.micro_batch))
        return apportion(total, [self._pace(chain) for chain in chains])

    # ---- a whole plan

    def change(self, standing: Standing, changes: Mapping[int, Chain]) -> Standing:
        """See `ChainPricer`."""
        chains = [*standing.chains]
        for position, chain in changes.items():
            chains[position] = chain
        return self.stand(chains)

    def stand(self, chains: Sequence[Chain]) -> Standing:
        """See `ChainPricer`."""
        chains = list(chains)
        size = len(chains)
        shares = self.shares(chains)
        if not all(self.fits(chain, share, size) for chain, share in zip(chains, shares, strict=True)):
            return Standing(chains, inf, inf)
        teams = [[self._team(group) for group, _ in chain] for chain in chains]
        works = [self.stage_works(chain) for chain in chains]
        holders = [self._holder(chain) for chain in chains]
        rings = chain_rings(self.model, self.job, self.options.compression.grad_bits, chains, holders, teams)
        lanes = gradient_lanes(teams, [ring[0] for ring in rings], self.options.zero, self.model.tied_parameters > 0)
        if self.options.zero == GATHERED_WEIGHTS:
            works = self._with_gathers(works, teams, rings, lanes)
        ends = self._ends(chains, works, shares)
        reduced = [list(times) for times in ends]
        for (seats, gradient_bytes, _), flows in zip(rings, lanes, strict=True):
            seconds = all_reduce_s(self.cluster, [teams[p][s] for p, s in seats], gradient_bytes, flows, self._step_s)
            end = max(reduced[p][s] for p, s in seats) + seconds
            for p, s in seats:
                reduced[p][s] = end
        shards = size if self.options.zero else 1
        finished = 0.0
        for chain, times in zip(chains, reduced, strict=True):
            last = len(chain) - 1
            for s, (group, count) in enumerate(chain):
                finished = max(finished, times[s] + self._update_s(group, count, s == 0, s == last, shards))
        mean = sum(map(max, ends)) / size
        return Standing(chains, finished, finished + MEAN_WEIGHT * mean)

    def _ends(self, chains: list[Chain], works: list[list[StageWork]], shares: list[int]) -> list[list[float]]:
        """When each stage ends its last backward."""
        out: Counter[int] = Counter()
        into: Counter[int] = Counter()
        pairs: Counter[tuple[int, int]] = Counter()
        for chain in chains:
            for i, j, wide in self._flows_of(chain):
                out[i] += wide
                into[j] += wide
                pairs[i, j] += wide
        found = []
        nodes = self._nodes
        for chain, line, share in zip(chains, works, shares, strict=True):
            hops = []
            for (a, _), (b, _) in pairwise(chain):
                i, j = nodes[a[0]], nodes[b[0]]
                hops.append(self.hop(a, b, 0, 0, 0) if i == j else self.hop(a, b, pairs[i, j], out[i], into[j]))
            gathers = self.options.zero == GATHERED_WEIGHTS
            key = tuple(line) if gathers else chain, share, tuple(map(id, hops))
            ends = self._played.get(key)
            if ends is None:
                if len(self._played) > MOST_REMEMBERED:
                    self._played.clear()
                ends = play(self.options.schedule, line, hops, share, self.options.overlap)
                self._played[key] = ends
            found.append(ends)
        return found

    def _flows_of(self, chain: Chain) -> list[tuple[int, int, int]]:
        flows = self._flows.get(chain)
        if flows is None:
            ends = [(self._nodes[a[0]], self._nodes[b[0]], min(len(a), len(b))) for (a, _), (b, _) in pairwise(chain)]
            flows = self._flows[chain] = [flow for flow in ends if flow[0] != flow[1]]
        return flows

    def _holder(self, chain: Chain) -> list[int]:
        """(blocks,): which stage holds each."""
        holder = self._holders.get(chain)
        if holder is None:
            holder = self._holders[chain] = [s for s, (_, count) in enumerate(chain) for _ in range(count)]
        return holder

    def _with_gathers(
        self, works: list[list[StageWork]], teams: list[list[Team]], rings: list[Ring], lanes: list[Lanes]
    ) -> list[list[StageWork]]:
        gather_s = [[0.0] * len(line) for line in works]
        for (seats, _, weight_bytes), flows in zip(rings, lanes, strict=True):
            members = [teams[p][s] for p, s in seats]
            seconds = all_reduce_s(self.cluster, members, weight_bytes, flows, self._step_s) / 2
            for p, s in seats:
                gather_s[p][s] += seconds
        return [
            [
                StageWork(work.forward_s + more, work.backward_s + more, work.tensor_parallel_s)
                for work, more in zip(*pair, strict=True)
            ]
            for pair in zip(works, gather_s, strict=True)
        ]

    def _step_s(self, cluster: Cluster, a: Team, b: Team, size_bytes: float, lanes: Lanes, teams: int) -> float:
        """`step_s` of two teams of these groups, remembered."""
        i, j = a.node, b.node
        if i == j:
            key = id(a), id(b), size_bytes, teams, 0, 0, 0
        else:
            key = id(a), id(b), size_bytes, teams, lanes.pairs[i, j], lanes.out[i], lanes.into[j]
        seconds = self._steps.get(key)
        if seconds is None:
            if len(self._steps) > MOST_REMEMBERED:
                self._steps.clear()
            here, there = self._pair(self._groups[id(a)], self._groups[id(b)])
            seconds = self._steps[key] = step_s(cluster, here, there, size_bytes, lanes, teams)
        return seconds
