"""Max-flow equals networkx's preflow-push; flows with shared capacities keep them and are the largest that do."""

import networkx as nx
import numpy as np
import pytest
from scipy.sparse import csr_array

from hetsched.algorithms.max_flow import SharedNetwork, max_flow


def oracle(arcs: np.ndarray, capacities: np.ndarray, source: int, sink: int) -> float:
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from([source, sink])
    for (a, b), capacity in zip(arcs.tolist(), capacities.tolist(), strict=True):
        before = graph.get_edge_data(a, b, {"capacity": 0})["capacity"]
        graph.add_edge(a, b, capacity=before + capacity)
    residual = nx.algorithms.flow.preflow_push(graph, source, sink)
    return float(residual.graph["flow_value"])


def test_equal_to_preflow_push_on_random_networks() -> None:
    """200 networks of up to 24 nodes, arcs both ways and more than one between two nodes."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        nodes = int(rng.integers(2, 25))
        arcs = rng.integers(nodes, size=(int(rng.integers(1, 5 * nodes)), 2))
        arcs = arcs[arcs[:, 0] != arcs[:, 1]]
        capacities = rng.integers(0, 1000, len(arcs)).astype(float)
        value, flows = max_flow(arcs, capacities, 0, nodes - 1)
        assert value == pytest.approx(oracle(arcs, capacities, 0, nodes - 1), rel=1e-9, abs=1e-6)
        assert (flows <= capacities + 1e-6).all()
        net = np.zeros(nodes)
        np.add.at(net, arcs[:, 1], flows)
        np.add.at(net, arcs[:, 0], -flows)
        expected = np.zeros(nodes)
        expected[[0, -1]] = -value, value
        np.testing.assert_allclose(net, expected, atol=1e-6)


def test_small_and_infinite_capacities() -> None:
    arcs = np.array([[0, 1], [1, 2], [0, 2]])
    value, flows = max_flow(arcs, np.array([np.inf, 1.5e-3, 2.5e-3]), 0, 2)
    assert value == pytest.approx(4e-3, rel=1e-9)
    np.testing.assert_allclose(flows, [1.5e-3, 1.5e-3, 2.5e-3], rtol=1e-9)
    assert max_flow(arcs, np.zeros(3), 0, 2)[0] == 0.0


def random_network(rng: np.random.Generator, resources: int) -> SharedNetwork:
    sources, targets = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    ends = np.array([(s, t) for s in range(sources) for t in range(targets)])
    use = rng.uniform(0, 0.6, (resources, len(ends))) * (rng.random((resources, len(ends))) < 0.5)
    supply, demand, most = (rng.uniform(1, 9, size) for size in (sources, targets, len(ends)))
    return SharedNetwork(supply, demand, ends, most, csr_array(use))


def test_without_anything_shared_it_is_the_largest_flow() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        network = random_network(rng, 0)
        start = len(network.supply) + len(network.demand)
        arcs = [(start, k) for k in range(len(network.supply))]
        arcs += [(int(s), len(network.supply) + int(t)) for s, t in network.ends]
        arcs += [(len(network.supply) + k, start + 1) for k in range(len(network.demand))]
        limits = np.concatenate([network.supply, network.most, network.demand])
        assert network.flow()[0] == pytest.approx(oracle(np.array(arcs), limits, start, start + 1), rel=1e-6)


def test_what_is_shared_is_kept_and_the_rest_levelled() -> None:
    """Where a node's network card is shared, both programmes give the same value, and no flow is over a limit."""
    rng = np.random.default_rng(2)
    bound = 0
    for _ in range(50):
        network = random_network(rng, 3)
        value, flows = network.flow()
        alone = SharedNetwork(network.supply, network.demand, network.ends, network.most, network.use[:0])
        bound += value < alone.flow()[0] * (1 - 1e-9)
        assert value == pytest.approx(network._together()[0], rel=1e-6)
        for each in (flows, network.levelled(value)):
            assert each.sum() == pytest.approx(value, rel=1e-6)
            assert (network.use @ each <= 1 + 1e-6).all()
            assert (each <= network.most + 1e-6).all()
            assert (np.bincount(network.ends[:, 0], each) <= network.supply + 1e-6).all()
            assert (np.bincount(network.ends[:, 1], each) <= network.demand + 1e-6).all()
    assert 10 <= bound < 50


def test_levelling_uses_equal_shares_of_what_is_plenty() -> None:
    ends = np.array([(s, t) for s in range(2) for t in range(2)])
    network = SharedNetwork(np.array([8.0, 4.0]), np.array([2.0, 1.0]), ends, np.full(4, 9.0), csr_array((0, 4)))
    flows = network.levelled(network.flow()[0])
    np.testing.assert_allclose(np.bincount(ends[:, 0], flows), [2.0, 1.0], rtol=1e-6)
