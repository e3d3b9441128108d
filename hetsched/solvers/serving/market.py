"""Which of a cluster's priced nodes to rent: designs of replicas, and the best choice of them within the money.

A design is a group of GPUs by machine, and the rate that its best replica keeps. How many of each design to make, and
so which machines to rent, whole, is an integer programme: most requests a second for a budget, or least money for a
rate. It is exact for the designs it knows; `learn` adds those that a search came across.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import inf

import numpy as np

from hetsched.algorithms.integer_programme import least
from hetsched.solvers.serving.workshop import Group, Workshop

COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)  # machines of a class in a design
MOST_CLASSES = 3  # of machines in a design
LARGEST = 4  # times the memory that holds the model
MOST_DESIGNS = 150  # of several machines
ROUNDED = 1e-9
GAP, MOST_NODES = 1e-4, 2000  # of an integer programme: how near is enough, and nodes of its tree at most

Part = tuple[int, str, int]  # GPUs of one machine: its class, their kind and number


@dataclass(frozen=True, slots=True)
class Rental:
    """Nodes to rent, their positions ascending; groups: of their GPUs, replicas that keep `rate_per_s` together."""

    nodes: tuple[int, ...]
    groups: tuple[Group, ...]
    usd_per_hour: float
    rate_per_s: float


class Market:
    """The nodes of a workshop's cluster as offers; one without a price costs nothing.

    several: whether designs of several machines are thought of, besides those that it learns.
    """

    def __init__(self, workshop: Workshop, several: bool = True) -> None:
        self.workshop, self.cluster = workshop, workshop.problem.cluster
        self._designs: dict[tuple[Part, ...], Group] = {}
        self.learn(self._of_one_machine())
        if several:
            self.learn(self._of_several())

    def learn(self, groups: Iterable[Group]) -> None:
        """Know these designs besides; not those that hold no model, or take two machines where one has the room."""
        for group in groups:
            key = self.workshop.inventory.key(sorted(group))
            if self.workshop.could_hold(group) and not self._scattered(key):
                self._designs.setdefault(key, group)

    def most(
        self, usd_per_hour: float, at_least: Mapping[int, int] | None = None, at_most: Mapping[int, int] | None = None
    ) -> Rental | None:
        """What keeps the highest rate for that money; None where nothing serves. Limits: machines by class."""
        return self._solved(usd_per_hour, None, at_least or {}, at_most or {})

    def cheapest(self, rate_per_s: float, usd_per_hour: float = inf) -> Rental | None:
        """What keeps the rate for the least money, and within that; None where nothing does."""
        return self._solved(usd_per_hour, rate_per_s, {}, {})

    def cheapest_that_holds(self) -> float | None:
        """The least that machines cost which hold the model and a request; None where none do, as far as is known."""
        prices = [
            sum(self._price(number) for number, *_ in key)
            for key, group in self._designs.items()
            if (replica := self.workshop.replica(group)) is not None and self.workshop.holds_a_request(replica)
        ]
        return min(prices, default=None)

    def near(self, rental: Rental, usd_per_hour: float) -> list[Rental]:
        """Others for that money with a machine more or fewer of some class, those of the highest rate first."""
        counts = self.counts(rental.nodes)
        found = {self._key(rental): rental}
        for number in self._nodes:
            count = counts[number]
            for more, fewer in (({number: count + 1}, {}), ({}, {number: count - 1})):
                if max(more.values(), default=0) <= len(self._nodes[number]) and min(fewer.values(), default=0) >= 0:
                    other = self.most(usd_per_hour, more, fewer)
                    if other is not None:
                        found.setdefault(self._key(other), other)
        return sorted(list(found.values())[1:], key=lambda other: -other.rate_per_s)

    def counts(self, nodes: Iterable[int]) -> Counter[int]:
        """How many of these nodes are of each class."""
        return Counter(self.workshop.inventory.node_class[node] for node in nodes)

    def uniform_rentals(self, usd_per_hour: float) -> Iterator[list[int]]:
        """For each class: as many of its nodes as the money pays for. What one rents without a planner."""
        for number, nodes in self._nodes.items():
            price = self._price(number)
            count = int(min(len(nodes), usd_per_hour / max(price, ROUNDED) * (1 + ROUNDED)))
            if count:
                yield nodes[:count]

    def _scattered(self, key: tuple[Part, ...]) -> bool:
        return any(
            a[:2] == b[:2] and a[2] + b[2] <= len(self._gpus[self._nodes[a[0]][0]][a[1]])
            for a, b in combinations(key, 2)
        )

    def _key(self, rental: Rental) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(self.counts(rental.nodes).items()))

    def _price(self, number: int) -> float:
        return self.cluster.nodes[number].usd_per_hour or 0.0

    @cached_property
    def _nodes(self) -> dict[int, list[int]]:
        """By class."""
        found: dict[int, list[int]] = {}
        for node, number in enumerate(self.workshop.inventory.node_class):
            found.setdefault(number, []).append(node)
        return found

    @cached_property
    def _gpus(self) -> list[dict[str, list[int]]]:
        """By node and kind: positions of devices."""
        found: list[dict[str, list[int]]] = [{} for _ in self.cluster.nodes]
        for device, node in enumerate(self.cluster.node_numbers):
            found[node].setdefault(self.cluster.devices[device].gpu.kind, []).append(device)
        return found

    # ---- designs

    def _of_one_machine(self) -> Iterator[Group]:
        """Any number of its GPUs of a kind."""
        for number in self._nodes:
            for devices in self._gpus[number].values():
                yield from (frozenset(devices[: k + 1]) for k in range(len(devices)))

    def _of_several(self) -> Iterator[Group]:
        """Whole machines: those of most promise for the money."""
        designs = list(self._several())
        for worth in (self._bandwidth_per_usd, self._flops_per_usd, lambda group: -len(group)):
            yield from sorted(designs, key=worth, reverse=True)[: MOST_DESIGNS // 3]

    def _several(self) -> Iterator[Group]:
        """Groups of two machines and more that hold the model, not many times over."""
        whole = {number: [self._devices(node) for node in nodes] for number, nodes in self._nodes.items()}
        for several in range(1, MOST_CLASSES + 1):
            for numbers in combinations(whole, several):
                allowed = [[count for count in COUNTS if count <= len(whole[number])] for number in numbers]
                for counts in product(*allowed):
                    machines = [m for number, count in zip(numbers, counts, strict=True) for m in whole[number][:count]]
                    devices = [device for machine in machines for device in machine]
                    enough = len(machines) > 1 and self.workshop.could_hold(devices)
                    if enough and not self.workshop.could_hold_times(devices, LARGEST):
                        yield frozenset(devices)

    def _devices(self, node: int) -> list[int]:
        return [device for devices in self._gpus[node].values() for device in devices]

    def _bandwidth_per_usd(self, group: Group) -> float:
        return self._per_usd(group, sum(self.cluster.devices[d].gpu.memory_bytes_per_s for d in group))

    def _flops_per_usd(self, group: Group) -> float:
        return self._per_usd(group, sum(self.cluster.devices[d].gpu.half_flops_per_s for d in group))

    def _per_usd(self, group: Group, worth: float) -> float:
        nodes = {self.cluster.node_numbers[device] for device in group}
        return worth / max(sum(self.cluster.nodes[node].usd_per_hour or 0.0 for node in nodes), ROUNDED)

    # ---- the choice

    def _solved(
        self, usd_per_hour: float, rate_per_s: float | None, at_least: Mapping[int, int], at_most: Mapping[int, int]
    ) -> Rental | None:
        """Variables: how many of each design, then of the machines of each class."""
        keys = [key for key, group in self._designs.items() if self.workshop.rate_of(group) > 0.0]
        if not keys:
            return None
        rates = np.array([self.workshop.rate_of(self._designs[key]) for key in keys])
        numbers = list(self._nodes)
        prices = np.array([self._price(number) for number in numbers])
        rows = [np.concatenate([np.zeros(len(keys)), prices])]
        highs = [usd_per_hour * (1 + ROUNDED)]
        for place, number in enumerate(numbers):
            for kind, devices in self._gpus[number].items():
                size = len(devices)
                used = [[count for part in key for count in _of(part, number, kind)] for key in keys]
                for weights, room in (
                    ([sum(counts) for counts in used], size),
                    ([sum(count > size / 2 for count in counts) for counts in used], 1),  # no two in one machine
                ):
                    row = np.concatenate([weights, np.zeros(len(numbers))])
                    row[len(keys) + place] = -room
                    rows.append(row)
                    highs.append(0.0)
        if rate_per_s is None:
            worth = np.concatenate([-rates / rates.max(), 1e-7 * prices / max(prices.sum(), ROUNDED)])
        else:
            worth = np.concatenate([-1e-6 * rates / rates.max(), prices / max(prices.max(), ROUNDED)])
            rows.append(np.concatenate([-rates, np.zeros(len(numbers))]))
            highs.append(-rate_per_s)
        low = np.array([0.0] * len(keys) + [float(at_least.get(number, 0)) for number in numbers])
        high = [inf] * len(keys) + [float(at_most.get(number, len(self._nodes[number]))) for number in numbers]
        finite = np.isfinite(highs)
        found = least(
            worth, np.array(rows)[finite], np.array(highs)[finite], low, np.array(high), gap=GAP, most_nodes=MOST_NODES
        )
        if found is None:
            return None
        times = {key: int(count) for key, count in zip(keys, found[: len(keys)], strict=True) if count}
        return self._placed(times, usd_per_hour)

    def _placed(self, times: Mapping[tuple[Part, ...], int], usd_per_hour: float) -> Rental | None:
        """The designs on machines, the largest parts first; those that find no machine within the money are left."""
        free: dict[int, dict[str, list[int]]] = {}
        groups: list[Group] = []
        usd = rate = 0.0
        for key in sorted(times, key=lambda key: -max(count for *_, count in key)):
            for _ in range(times[key]):
                taken = self._machines_for(key, free)
                if taken is None:
                    continue
                more = sum(self._price(node) for node in {node for node, _ in taken} - free.keys())
                if usd + more > usd_per_hour * (1 + ROUNDED):
                    continue
                usd += more
                group: list[int] = []
                for node, (_, kind, count) in taken:
                    left = free.setdefault(node, {k: list(devices) for k, devices in self._gpus[node].items()})
                    group += left[kind][:count]
                    del left[kind][:count]
                groups.append(frozenset(group))
                rate += self.workshop.rate_of(self._designs[key])
        return Rental(tuple(sorted(free)), tuple(groups), usd, rate) if groups else None

    def _machines_for(
        self, key: tuple[Part, ...], free: Mapping[int, dict[str, list[int]]]
    ) -> list[tuple[int, Part]] | None:
        """A machine for each part: a rented one with just enough GPUs left, else a new one. Two of a kind get two."""
        taken: list[tuple[int, Part]] = []
        for part in sorted(key, key=lambda part: -part[2]):
            number, kind, count = part
            open_ = free.keys() | {node for node, _ in taken}
            left = {node: len(free.get(node, self._gpus[node])[kind]) for node in self._nodes[number]}
            for node, (_, other, _) in taken:
                if other == kind:
                    left.pop(node, None)
            choices = [(node not in open_, spare, node) for node, spare in left.items() if spare >= count]
            if not choices:
                return None
            taken.append((min(choices)[2], part))
        return taken


def _of(part: Part, number: int, kind: str) -> Iterator[int]:
    """The part's GPUs where they are of a kind in machines of a class."""
    if part[:2] == (number, kind):
        yield part[2]
