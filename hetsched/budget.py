"""The part of a cluster that an hourly budget pays for."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hetsched.algorithms.integer_programme import least
from hetsched.cluster import Cluster, Floats, Network
from hetsched.errors import HetschedError, InfeasibleError


def within_budget(cluster: Cluster, usd_per_hour: float) -> Iterator[Cluster]:
    """The clusters to try, best first: the nodes of most FLOP/s together that the budget pays for, and of most memory.

    Exact 0/1 knapsacks. Nodes are rented whole. Raises HetschedError where a node has no price, and InfeasibleError
    where the budget pays for none.
    """
    require_prices(cluster, "--budget-usd-per-hour")
    prices = np.array([node.usd_per_hour for node in cluster.nodes], dtype=np.float64)
    if prices.sum() <= usd_per_hour:
        yield cluster
        return
    if prices.min() > usd_per_hour:
        cheapest = cluster.nodes[int(prices.argmin())]
        raise InfeasibleError(
            f"the budget of ${usd_per_hour:g} an hour pays for no node of {cluster.name}: the cheapest, "
            f"{cheapest.name}, costs ${cheapest.usd_per_hour:g}",
            hint=f"a budget of at least ${cheapest.usd_per_hour:g}",
        )
    speed = np.array([sum(gpu.half_flops_per_s for gpu in node.gpus) for node in cluster.nodes])
    memory = np.array([sum(gpu.memory_bytes for gpu in node.gpus) for node in cluster.nodes], dtype=np.float64)
    tried: list[tuple[int, ...]] = []
    for worth in (speed, memory):
        chosen = _knapsack(worth, prices, usd_per_hour)
        if chosen not in tried:
            tried.append(chosen)
            yield part_of(cluster, chosen)


def require_prices(cluster: Cluster, option: str) -> None:
    """HetschedError where the price of a node is not known."""
    unpriced = [node.name for node in cluster.nodes if node.usd_per_hour is None]
    if unpriced:
        more = f" and {len(unpriced) - 1} more" if len(unpriced) > 1 else ""
        raise HetschedError(
            f"{option}: cluster {cluster.name} has no price for node {unpriced[0]}{more}",
            hint="give each node its `usd_per_hour` in the cluster file",
        )


def part_of(cluster: Cluster, nodes: Sequence[int]) -> Cluster:
    """The cluster of these nodes alone (positions, ascending), with the network between them."""
    at = np.ix_(nodes, nodes)
    place = {node: position for position, node in enumerate(nodes)}
    network = Network(
        cluster.network.bandwidth_bytes_per_s[at],
        cluster.network.latency_s[at],
        {
            (place[i], place[j]): blocks
            for (i, j), blocks in cluster.network.per_device.items()
            if i in place and j in place
        },
    )
    return replace(cluster, nodes=tuple(cluster.nodes[node] for node in nodes), network=network)


def _knapsack(worth: Floats, prices: Floats, budget: float) -> tuple[int, ...]:
    """The positions of most worth whose prices stay in the budget."""
    limit = np.array([budget * (1 + 1e-12)])
    found = least(-worth / worth.max(), prices[None, :], limit, np.zeros(len(worth)), np.ones(len(worth)))
    if found is None:
        raise AssertionError("the empty choice is always within the budget")
    return tuple(int(k) for k in np.flatnonzero(found))
