"""What there is: GPUs in nodes, and the measured network between them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import HetschedError
from hetsched.profiles import BandwidthCurve, Measurements
from hetsched.units import BYTES_PER_S_PER_GBPS, SECONDS_PER_MS

SLOWEST_BYTES_PER_S, FASTEST_BYTES_PER_S, LONGEST_LATENCY_S = 1e2, 1e15, 1e3  # beyond, a unit must be wrong

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two GPUs: bytes a second, and the time before the first byte arrives.

    whole_node_gain: how many times faster an all-reduce of 8 GPUs is where the switch between them adds up (NVLink
    SHARP).
    """

    bandwidth_bytes_per_s: float
    latency_s: float
    whole_node_gain: float = 1.0


@dataclass(frozen=True, slots=True)
class ServingEfficiency:
    """What inference kernels reach on a GPU; shares are of the data sheet's peak FLOP/s and bandwidth.

    matmul, attention: of the peak, in large matrix products and in the attention of prompts. memory: of the bandwidth,
    while weights are read; kv: while the KV cache is read. decode_block_s, prefill_block_s: what a block takes besides
    in a decode step and in one that prefills, for launches, norms and whatever does not scale.
    """

    matmul: float
    attention: float
    memory: float
    kv: float
    decode_block_s: float
    prefill_block_s: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU by its data sheet.

    `half_flops_per_s` is dense bf16/fp16 (tensor cores, no sparsity), `single_flops_per_s` is fp32 outside the tensor
    cores, both per GPU; `link` is the usual way to its neighbours inside a node, per GPU and direction.
    `efficiency` is the share of the peak that transformer blocks reach in training, where it was measured; `serving`
    is what inference reaches, None for kinds that the catalogue does not have.
    """

    kind: str
    memory_bytes: int
    half_flops_per_s: float
    single_flops_per_s: float
    memory_bytes_per_s: float
    link: Link | None = None
    efficiency: float | None = None
    serving: ServingEfficiency | None = None

    def flops_per_s(self, dtype: str) -> float:
        """Peak dense FLOP/s at `dtype` (bf16, fp16 or fp32)."""
        return self.single_flops_per_s if dtype == "fp32" else self.half_flops_per_s


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU: `name` is `node/index`."""

    name: str
    node: str
    index: int
    gpu: Gpu


@dataclass(frozen=True, slots=True)
class Node:
    """One machine; its price is for the whole machine, its egress price for each GB (1e9) that leaves its region.

    offered: whether it is there only where it is rented.
    """

    name: str
    region: str
    gpus: tuple[Gpu, ...]
    usd_per_hour: float | None = None
    egress_usd_per_gb: float = 0.0
    offered: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """The measured network, per pair of nodes, so that 10,000 GPUs cost megabytes.

    bandwidth_bytes_per_s, latency_s: (nodes, nodes), [i, j] from i to j; the diagonal is the link inside a node.
    per_device: where a matrix named single devices, {(i, j): (bandwidth, latency)} with arrays (gpus of i, gpus of j).
    """

    bandwidth_bytes_per_s: Floats
    latency_s: Floats
    per_device: Mapping[tuple[int, int], tuple[Floats, Floats]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Cluster:
    """Nodes, the devices in them in inventory order, and the network. Every device pair has an answer.

    `notes` says what was assumed where the file was silent; `measured` holds profiles of its kinds of GPU. Raises
    HetschedError where a pair has no usable link.
    """

    name: str
    nodes: tuple[Node, ...]
    network: Network
    source: str = ""
    notes: tuple[str, ...] = ()
    measured: Measurements = Measurements()

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if not names:
            raise HetschedError(f"cluster {self.name}: there are no nodes", hint="list at least one under `nodes`")
        for name, times in Counter(names).items():
            if times > 1:
                raise HetschedError(f"cluster {self.name}: two nodes are named {name!r}", hint="give each its own name")
        for node in self.nodes:
            if not node.name.isprintable() or not node.region.isprintable():
                raise HetschedError(
                    f"cluster {self.name}: the name {node.name!r} or its region has invisible characters",
                    hint="use letters, digits and hyphens, as in a host name",
                )
            if not node.gpus:
                raise HetschedError(f"cluster {self.name}: node {node.name!r} has no GPUs", hint="remove it")
        self._check_network()

    def _check_network(self) -> None:
        bandwidth, latency = self.network.bandwidth_bytes_per_s, self.network.latency_s
        shape = (len(self.nodes), len(self.nodes))
        if bandwidth.shape != shape or latency.shape != shape:
            raise HetschedError(f"cluster {self.name}: the network is {bandwidth.shape}, expected {shape}")
        needed = np.ones(shape, dtype=bool)
        np.fill_diagonal(needed, [len(node.gpus) > 1 for node in self.nodes])
        for pair in self.network.per_device:
            needed[pair] = False
        bad = needed & ~((bandwidth > 0) & np.isfinite(bandwidth) & (latency >= 0) & np.isfinite(latency))
        if bad.any():
            i, j = (int(x[0]) for x in np.nonzero(bad))
            a, b = self.nodes[i].name, self.nodes[j].name
            where = f"inside node {a}" if i == j else f"from {a} to {b}"
            raise HetschedError(
                f"cluster {self.name}: no usable bandwidth and latency {where}",
                hint="give it in `network` (inside_node, inside_region, between_regions) or in a matrix file",
            )
        slow = (bandwidth < SLOWEST_BYTES_PER_S) | (bandwidth > FASTEST_BYTES_PER_S) | (latency > LONGEST_LATENCY_S)
        if (needed & slow).any():
            i, j = (int(x[0]) for x in np.nonzero(needed & slow))
            raise HetschedError(
                f"cluster {self.name}: from {self.nodes[i].name} to {self.nodes[j].name} there are "
                f"{bandwidth[i, j] / BYTES_PER_S_PER_GBPS:.3g} Gbit/s and {latency[i, j] / SECONDS_PER_MS:.3g} ms",
                hint="no link is like that: check the units of the file or matrix it is from",
            )

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices, node by node."""
        return tuple(
            Device(f"{node.name}/{index}", node.name, index, gpu)
            for node in self.nodes
            for index, gpu in enumerate(node.gpus)
        )

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Position in `devices` by device name."""
        return {device.name: position for position, device in enumerate(self.devices)}

    @cached_property
    def node_of(self) -> Indices:
        """(devices,): the node each device stands in."""
        return np.repeat(np.arange(len(self.nodes)), [len(node.gpus) for node in self.nodes])

    @cached_property
    def node_numbers(self) -> list[int]:
        """`node_of` as plain numbers, for single look-ups."""
        return [int(node) for node in self.node_of]

    @cached_property
    def regions(self) -> tuple[str, ...]:
        """The regions, in the order in which they first appear."""
        return tuple(dict.fromkeys(node.region for node in self.nodes))

    def device(self, name: str) -> Device:
        """The device of that name; HetschedError where there is none."""
        return self.devices[self.position(name)]

    def position(self, name: str) -> int:
        """Where the device of that name stands in `devices`; HetschedError where there is none."""
        try:
            return self.index_of[name]
        except KeyError:
            raise HetschedError(
                f"device {name!r} is not in cluster {self.name}",
                hint=f"devices are named node/index, e.g. {self.devices[0].name}",
            ) from None

    def device_facts(self, names: Iterable[str]) -> dict[str, dict[str, str | int]]:
        """What a plan file says under `devices` of those it uses: node, region, index and kind."""
        used = [self.device(name) for name in names]
        return {
            device.name: {
                "node": device.node,
                "region": self.node(device.node).region,
                "index": device.index,
                "kind": device.gpu.kind,
            }
            for device in used
        }

    def node(self, name: str) -> Node:
        """The node of that name."""
        return self._nodes_by_name[name]

    @cached_property
    def _nodes_by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def links(self, sources: Sequence[int] | Indices, targets: Sequence[int] | Indices) -> tuple[Floats, Floats]:
        """Latency in s and bandwidth in bytes/s from each source to each target device.

        sources: (m,), targets: (n,) positions in `devices`. Returns two (m, n) arrays; a device reaches itself at once.
        """
        rows, columns = np.asarray(sources, dtype=np.intp), np.asarray(targets, dtype=np.intp)
        a, b = self.node_of[rows], self.node_of[columns]
        latency = self.network.latency_s[np.ix_(a, b)]
        bandwidth = self.network.bandwidth_bytes_per_s[np.ix_(a, b)]
        for (i, j), (block_bandwidth, block_latency) in self.network.per_device.items():
            at = np.ix_(np.flatnonzero(a == i), np.flatnonzero(b == j))
            if at[0].size and at[1].size:
                within = np.ix_(rows[at[0].ravel()] - self._first_of[i], columns[at[1].ravel()] - self._first_of[j])
                bandwidth[at], latency[at] = block_bandwidth[within], block_latency[within]
        same = rows[:, None] == columns[None, :]
        latency[same], bandwidth[same] = 0.0, np.inf
        return latency, bandwidth

    def link(self, source: int, target: int) -> Link:
        """The link from one device to another, by position."""
        latency, bandwidth = self.links([source], [target])
        return Link(float(bandwidth[0, 0]), float(latency[0, 0]))

    def between_bytes_per_s(self, source: int, target: int, pairs: int, size_bytes: float) -> float:
        """Bytes/s that `pairs` GPUs of one node have together to as many of another, for messages of that size.

        Where no curve was measured the network's figure for the two nodes, whatever the number.
        """
        curve = self._curve(source, target, pairs)
        network = self.network.bandwidth_bytes_per_s
        return float(network[source, target]) if curve is None else curve.bytes_per_s(size_bytes)

    def uplink_bytes_per_s(self, node: int, gpus: int, size_bytes: float) -> float:
        """Bytes/s that `gpus` GPUs of a node can send to other nodes at once: what they have to the nearest."""
        return self._best(node, gpus, size_bytes, True)

    def downlink_bytes_per_s(self, node: int, gpus: int, size_bytes: float) -> float:
        """Bytes/s that `gpus` GPUs of a node can receive from other nodes at once: what the nearest has to them."""
        return self._best(node, gpus, size_bytes, False)

    def inside_bytes_per_s(self, node: int, gpus: int, size_bytes: float) -> float | None:
        """Measured bytes/s of each of `gpus` GPUs of a node that work together; None where there is no curve."""
        if not self.measured.curves.inside:
            return None
        curve = self.measured.curves.inside_node(self.nodes[node].gpus[0].kind, gpus)
        return None if curve is None else curve.bytes_per_s(size_bytes)

    def _best(self, node: int, gpus: int, size_bytes: float, sends: bool) -> float:
        key = node, gpus, size_bytes, sends
        if key not in self._uplinks:
            if self.measured.curves.between:
                pairs = [(node, other) if sends else (other, node) for other in range(len(self.nodes)) if other != node]
                self._uplinks[key] = max(self.between_bytes_per_s(i, j, gpus, size_bytes) for i, j in pairs)
            else:
                bandwidth = self.network.bandwidth_bytes_per_s
                line = bandwidth[node] if sends else bandwidth[:, node]
                self._uplinks[key] = float(np.delete(line, node).max())
        return self._uplinks[key]

    @cached_property
    def _uplinks(self) -> dict[tuple[int, int, float, bool], float]:
        return {}

    def _curve(self, source: int, target: int, pairs: int) -> BandwidthCurve | None:
        if not self.measured.curves.between:
            return None
        kinds = self.nodes[source].gpus[0].kind, self.nodes[target].gpus[0].kind
        return self.measured.curves.between_nodes(*kinds, pairs)

    @cached_property
    def _first_of(self) -> Indices:
        return np.concatenate([[0], np.cumsum([len(node.gpus) for node in self.nodes])[:-1]]).astype(np.intp)

    def usd_per_hour(self, nodes: Sequence[str]) -> float | None:
        """What these nodes cost together; None where the price of one is not known."""
        prices = [self.node(name).usd_per_hour for name in nodes]
        known = [price for price in prices if price is not None]
        return sum(known) if len(known) == len(prices) else None
