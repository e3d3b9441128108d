"""The best ways to make one replica of a group of GPUs: HexGen's inner problem, exact by dynamic programming.

The recurrence (`hetsched.algorithms.pipeline_chain`) wants costs that are linear in a stage's blocks. They are: those
of `StageTimes`, for requests of the load's mean lengths, with `batch` sequences in flight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from hetsched.algorithms.pipeline_chain import Chain, Option, best_chain
from hetsched.cluster import Floats
from hetsched.cost.network import Team
from hetsched.cost.serving.replica import needed_bytes, stage_times, transfer_hop
from hetsched.cost.serving.stage import StageTimes
from hetsched.cost.serving.steady import Traffic
from hetsched.model import ModelSpec
from hetsched.plan import Stage
from hetsched.precision import Precision
from hetsched.solvers.serving.pools import Inventory, Pool

Blocks = tuple[int, int, int, int]

EXACTLY = 1e-9


@dataclass(frozen=True, slots=True)
class Costs:
    """A stage of some GPUs by its number of blocks: seconds a block, and what the ends of the model take besides.

    latency: of one request, alone but for the `batch` whose decode steps it shares. busy: that a stage works for each
    request. most: blocks that fit, by place (see `Option`), with the KV cache of `batch` requests.
    """

    degree: int
    latency_s: tuple[float, float, float]
    busy_s: tuple[float, float, float]
    most: Blocks


@dataclass(frozen=True, eq=False)
class Layouts:
    """Replicas of groups of a cluster's GPUs, for one model and mean request.

    prefills: False where prompts come from elsewhere; with no output tokens in `traffic`, decode is left out. prompts:
    how many go together where a stage has enough to do; a request's latency is that of one alone.
    """

    inventory: Inventory
    model: ModelSpec
    traffic: Traffic
    precision: Precision
    memory_fraction: float
    prefills: bool = True
    prompts: float = 1.0
    _costs: dict[tuple[object, ...], Costs] = field(default_factory=dict)
    _hops: dict[tuple[object, ...], tuple[float, float]] = field(default_factory=dict)

    def quickest(self, group: Sequence[int], batch: float, rounds: float = 1.0) -> list[Stage] | None:
        """The replica of least latency with room for `batch` requests, None where the model does not fit.

        rounds: groups of sequences that take turns; a decode step is of batch / rounds sequences.
        """
        space = self._space(group, batch, rounds)
        return self._stages(space, best_chain(space.machines, space.options(), space.hop_s, self.model.num_layers))

    def busiest(self, group: Sequence[int], batch: float, rounds: float = 1.0) -> list[Stage] | None:
        """The replica of most requests a second: the one whose busiest stage works least a request, then the quickest.

        Exact: the least limit on a stage's work, of all numbers of blocks on all stages, that still lets a chain hold
        the model.
        """
        space = self._space(group, batch, rounds)
        limits = space.limits(self.model.num_layers)
        low, step, last = space.first_limit(limits, self.model.num_layers), 1, len(limits) - 1
        high = low
        while (found := self._within(space, limits[high])) is None:  # order and hops hardly ever make it more than one
            if high == last:
                return None
            low, high, step = high + 1, min(high + step, last), 2 * step
        while low < high:
            middle = (low + high) // 2
            chain = self._within(space, limits[middle])
            if chain is None:
                low = middle + 1
            else:
                high, found = middle, chain
        return self._stages(space, found)

    def pareto(
        self, group: Sequence[int], batch: float, rounds: float = 1.0, step: float = EXACTLY
    ) -> list[list[Stage]]:
        """All replicas of which none is quicker and as little busy, from the quickest to the least busy one.

        step: of two in a row the second is at least by this share less busy; the set is coarse where that is large.
        """
        space = self._space(group, batch, rounds)
        found: list[Chain] = []
        limit = inf
        while (chain := self._within(space, limit)) is not None:
            if found and chain.seconds <= found[-1].seconds * (1.0 + EXACTLY):
                found.pop()  # as quick, and less busy
            found.append(chain)
            limit = space.busiest_s(chain) * (1.0 - step)
        return [stages for chain in found if (stages := self._stages(space, chain)) is not None]

    def _within(self, space: "_Space", limit_s: float) -> Chain | None:
        return best_chain(space.machines, space.options(limit_s), space.hop_s, self.model.num_layers)

    def _space(self, group: Sequence[int], batch: float, rounds: float) -> "_Space":
        pools = self.inventory.pools(group, self.model)
        costs = [self._pool_costs(pool, batch, rounds) for pool in pools]
        hop_s = np.array([[self._hop_s(a, b, batch / rounds) for b in pools] for a in pools])
        return _Space(pools, costs, hop_s)

    def _pool_costs(self, pool: Pool, batch: float, rounds: float) -> list[Costs]:
        machine = max(pool.machines, key=len)
        return [self._cost(machine[:degree], batch, rounds) for degree in pool.degrees]

    def _cost(self, devices: Sequence[int], batch: float, rounds: float) -> Costs:
        cluster = self.inventory.cluster
        node = cluster.node_numbers[devices[0]]
        key = self.inventory.node_class[node], cluster.devices[devices[0]].gpu.kind, len(devices), batch, rounds
        if key not in self._costs:
            self._costs[key] = self._work_out(Team(tuple(devices), node), batch, rounds)
        return self._costs[key]

    def _work_out(self, team: Team, batch: float, rounds: float) -> Costs:
        """Parts by difference: a block, the embedding and the head."""
        cluster, blocks = self.inventory.cluster, self.model.num_layers
        bounds = ((1, 2), (0, 1), (blocks - 1, blocks)) if blocks > 2 else ((0, 1),) * 3
        middle, first, last = (stage_times(cluster, self.model, team, b, self.precision) for b in bounds)
        latency = [self._seconds(times, batch / rounds, 1.0, 1.0) for times in (middle, first, last)]
        busy = [self._seconds(times, batch / rounds, batch / rounds, self.prompts) for times in (middle, first, last)]
        gpu_bytes = cluster.devices[team.devices[0]].gpu.memory_bytes
        room = [gpu_bytes * self.memory_fraction - needed_bytes(times, gpu_bytes) for times in (middle, first, last)]
        whole = self.traffic.input_tokens + self.traffic.output_tokens
        held = middle.weight_bytes + batch * whole * middle.kv_bytes_per_token
        spare = [left + middle.weight_bytes for left in room]  # their one block's weights count in `held`
        only = spare[1] + spare[2] - spare[0]
        most = tuple(int(max(0.0, left) / held) for left in (*spare, only))
        return Costs(
            team.size,
            (latency[0], latency[1] - latency[0], latency[2] - latency[0]),
            (busy[0], busy[1] - busy[0], busy[2] - busy[0]),
            (most[0], most[1], most[2], most[3]),
        )

    def _seconds(self, times: StageTimes, together: float, share: float, prompts: float) -> float:
        """A prompt, one of so many, and all decode steps of `together` sequences, a request's share 1 / `share`."""
        traffic = self.traffic
        step = (prompts * traffic.input_tokens, prompts * traffic.pairs, prompts)
        prompt = float(times.prefill_s(*step)) / prompts if self.prefills else 0.0
        context = together * (traffic.input_tokens + traffic.output_tokens / 2.0)
        return prompt + traffic.output_tokens * float(times.decode_s(together, context)) / share

    def _hop_s(self, a: Pool, b: Pool, together: float) -> float:
        """From a GPU of one pool to one of another: the prompt, and each token. Inside a pool between its machines."""
        source = a.machines[0][0]
        others = b.machines[1:] if a == b and len(b.machines) > 1 else b.machines
        cluster = self.inventory.cluster
        target = others[-1][-1]
        nodes = cluster.node_numbers[source], cluster.node_numbers[target]
        key = (nodes, cluster.devices[source].gpu.kind, cluster.devices[target].gpu.kind)
        if key not in self._hops:
            hop = transfer_hop(
                cluster, self.model, Team((source,), nodes[0]), Team((target,), nodes[1]), self.precision
            )
            self._hops[key] = hop.latency_s, hop.per_token_s
        latency_s, per_token_s = self._hops[key]
        prompt = latency_s + self.traffic.input_tokens * per_token_s if self.prefills else 0.0
        return prompt + self.traffic.output_tokens * (latency_s + together * per_token_s)

    def _stages(self, space: "_Space", chain: Chain | None) -> list[Stage] | None:
        """The chain on GPUs of the pools."""
        if chain is None:
            return None
        left = [[list(machine) for machine in pool.machines] for pool in space.pools]
        devices, stages, first = self.inventory.cluster.devices, [], 0
        for pool, option, layers, spare in chain.stages:
            machine = next(m for m in left[pool] if len(m) == spare)
            names = tuple(devices[machine.pop(0)].name for _ in range(space.costs[pool][option].degree))
            stages.append(Stage((first, first + layers), names))
            first += layers
        return stages


@dataclass(frozen=True, eq=False)
class _Space:
    """The chains of a group."""

    pools: list[Pool]
    costs: list[list[Costs]]
    hop_s: Floats

    @property
    def machines(self) -> list[tuple[int, ...]]:
        return [pool.counts for pool in self.pools]

    def options(self, limit_s: float = inf) -> list[list[Option]]:
        """Stages that work at most `limit_s` a request, priced by latency."""
        return [[self._option(cost, limit_s) for cost in costs] for costs in self.costs]

    def _option(self, cost: Costs, limit_s: float) -> Option:
        block, first, last = cost.busy_s
        ends = (0.0, first, last, first + last)
        most = cost.most
        if limit_s < inf:
            within = [int((limit_s - end) / block * (1.0 + 1e-12)) if limit_s > end else 0 for end in ends]
            most = tuple(min(fits, works) for fits, works in zip(most, within, strict=True))  # type: ignore[assignment]
        return Option(cost.degree, cost.latency_s[0], most, cost.latency_s[1], cost.latency_s[2])

    def busiest_s(self, chain: Chain) -> float:
        """How long the busiest stage of a chain works for a request."""
        works = []
        for place, stage in enumerate(chain.stages):
            block, first, last = self.costs[stage.pool][stage.option].busy_s
            ends = (first if place == 0 else 0.0) + (last if place == len(chain.stages) - 1 else 0.0)
            works.append(stage.layers * block + ends)
        return max(works)

    def limits(self, layers: int) -> Floats:
        """All that a stage may work, for any number of blocks and place, from the least on."""
        counts = np.arange(1, layers + 1)
        found = []
        for costs in self.costs:
            for cost in costs:
                block, first, last = cost.busy_s
                found += [counts * block + end for end in (0.0, first, last, first + last)]
        return np.unique(np.concatenate(found)) * (1.0 + 1e-9)

    def first_limit(self, limits: Floats, layers: int) -> int:
        """The first of the limits under which the machines together, order and hops apart, hold all layers."""
        low, high = 0, len(limits) - 1
        while low < high:
            middle = (low + high) // 2
            if self._held(limits[middle]) >= layers:
                high = middle
            else:
                low = middle + 1
        return low

    def _held(self, limit_s: float) -> int:
        """Layers that all machines together hold at most: each machine's best division into groups."""
        total = 0
        for pool, options in zip(self.pools, self.options(limit_s), strict=True):
            most = [max(option.most) for option in options]
            for count in pool.counts:
                best = [0] * (count + 1)
                for size in range(1, count + 1):
                    best[size] = max(
                        (best[size - o.degree] + m for o, m in zip(options, most, strict=True) if o.degree <= size),
                        default=0,
                    )
                    best[size] = max(best[size], best[size - 1])
                total += best[count]
        return total
