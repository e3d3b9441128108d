"""Clusters as a person writes them: one YAML file, with matrix files beside it where there are measurements."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from hetsched.catalog import find_gpu
from hetsched.catalog.gpus import known_gpu
from hetsched.cluster import Cluster, Gpu, Node
from hetsched.errors import HetschedError
from hetsched.fields import Fields, describe
from hetsched.files import read_text
from hetsched.profiles import Measurements
from hetsched.readers.measurements import read_measurements
from hetsched.readers.network_tables import Answer, build_network, link_answer
from hetsched.readers.yaml_text import load_yaml
from hetsched.units import BYTES_PER_GIB, BYTES_PER_S_PER_GBYTES, FLOPS_PER_TFLOPS

MAX_YAML_BYTES = 16 * 2**20
MAX_DEVICES = 100_000
MAX_NODES = 4096  # the network is held per pair of nodes: 2 x 128 MiB

SINGLE_SHARE = 1 / 8  # of the half-precision peak, where a spelled-out GPU does not say: as on V100 and T4


def read_cluster(path: Path, offers: Path | None = None) -> Cluster:
    """The cluster in a YAML file. offers: a file whose nodes and offers are there besides, by its own network.

    An entry under `offers` is a node that may be rented `available` times, and has a price: it becomes as many nodes,
    `name-0` and so on. Raises HetschedError that names the file, the entry and the key for anything wrong, and for a
    pair of GPUs without a bandwidth or latency; warns of unknown keys. What was assumed stands in the cluster's notes.
    """
    reader = _NodeReader()
    own = _cluster(path, reader, None)
    return own if offers is None else _cluster(offers, reader, own)


def _cluster(path: Path, reader: "_NodeReader", before: Cluster | None) -> Cluster:
    """The cluster of the file's nodes, after those of `before`, which the reader has already."""
    source = Fields(load_yaml(read_text(path, "cluster file", MAX_YAML_BYTES), path.name), path.name)
    name, origin = source.text("name", path.stem), source.text("source", "")
    known = len(reader.nodes)
    for entry in source.children("nodes", () if "offers" in source else None):
        reader.add(entry)
    for entry in source.children("offers", ()):
        reader.add_offer(entry)
    if len(reader.nodes) == known:
        raise HetschedError(
            f"{path.name}: `nodes` is empty", hint="list at least one node, or one of `offers`, with a name and a gpu"
        )
    network = source.child("network") if "network" in source else Fields({}, source.at("network"))
    measured = _measured(source, path.parent)
    if before is None:
        built, notes = build_network(network, reader.nodes, reader.links, path.parent, measured.curves)
    else:
        name, origin = f"{before.name} and {name}", "; ".join(text for text in (before.source, origin) if text)
        measured = Measurements.merged((before.measured, measured))
        built, notes = build_network(
            network, reader.nodes, reader.links, path.parent, measured.curves, within=before.network
        )
        notes = (*before.notes, *notes)
    source.finish()
    return Cluster(name, tuple(reader.nodes), built, origin, tuple(dict.fromkeys((*reader.notes, *notes))), measured)


class _NodeReader:
    """The entries under `nodes` and `offers`, one after another."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.links: list[Answer] = []
        self.notes: list[str] = []
        self._names: dict[str, str] = {}
        self._gpus: dict[str, Gpu] = {}
        self._devices = 0

    def add(self, entry: Fields) -> None:
        """One node; HetschedError where it is wrong."""
        name = self._name(entry)
        self._add(entry, name, [name])

    def add_offer(self, entry: Fields) -> None:
        """As many nodes as may be rented; HetschedError where the entry is wrong, or has no price."""
        entry.number("usd_per_hour")
        name = self._name(entry)
        several = range(entry.integer("available", 1, maximum=MAX_NODES))
        self._add(entry, name, [f"{name}-{n}" for n in several], offered=True)

    def _name(self, entry: Fields) -> str:
        name = entry.text("name").strip()
        if "/" in name:
            raise HetschedError(f"{entry.at('name')} {name!r} has a `/`", hint="devices are named node/index")
        return name

    def _add(self, entry: Fields, region: str, names: list[str], offered: bool = False) -> None:
        """Equal nodes of these names, in a region of that name where the entry says none."""
        gpus, link = self._gpus_of(entry), _link(entry)
        region = entry.text("region", region).strip().lower()
        price = entry.number("usd_per_hour") if "usd_per_hour" in entry else None
        egress = entry.number("egress_usd_per_gb", 0.0)
        entry.finish()
        for name in names:
            if name in self._names:
                raise HetschedError(
                    f"{entry.where}: {self._names[name]} is named {name!r} too", hint="give each its own name"
                )
            self._names[name] = entry.where.rpartition(": ")[2]
            self.nodes.append(Node(name, region, gpus, price, egress, offered))
            self.links.append(link)
        self._devices += len(gpus) * len(names)
        if self._devices > MAX_DEVICES or len(self.nodes) > MAX_NODES:
            raise HetschedError(
                f"{entry.where}: more than {MAX_DEVICES} GPUs or {MAX_NODES} nodes at {names[0]!r}",
                hint="plan a part of the cluster, or give nodes of more GPUs",
            )

    def _gpus_of(self, entry: Fields) -> tuple[Gpu, ...]:
        """`gpu` times `count`, or the list under `gpus`."""
        if "gpus" in entry:
            if "gpu" in entry or "count" in entry:
                raise HetschedError(
                    f"{entry.where}: `gpus` stands beside `gpu` or `count`", hint="use one or the other"
                )
            listed = entry.sequence("gpus")
            if not listed:
                raise HetschedError(f"{entry.at('gpus')} is an empty list", hint="name each GPU of the node")
            return tuple(self._gpu(value, f"{entry.at('gpus')}[{n}]") for n, value in enumerate(listed))
        count = entry.integer("count", 1, maximum=MAX_DEVICES)
        return (self._gpu(entry.raw("gpu"), entry.at("gpu")),) * count

    def _gpu(self, value: Any, where: str) -> Gpu:
        """A catalogue name, or a GPU spelled out."""
        if isinstance(value, str):
            gpu = self._gpus.get(value) or find_gpu(value, where)
            self._gpus[value] = gpu
            return gpu
        if not isinstance(value, dict):
            raise HetschedError(
                f"{where} is {describe(value)}, expected a name or a mapping", hint="e.g. `gpu: RTX-3090-24GB`"
            )
        return self._spelled_out(Fields(value, where))

    def _spelled_out(self, source: Fields) -> Gpu:
        kind = source.text("kind").strip()
        known = known_gpu(kind)
        if known is None:
            half = source.number("tflops", above=0.0, maximum=1e6) * FLOPS_PER_TFLOPS
            if "tflops_fp32" not in source:
                note = f"{kind}: tflops_fp32 taken as an eighth of tflops, for it is not stated"
                self.notes += [note] if note not in self.notes else []
            known = Gpu(
                kind=kind,
                memory_bytes=round(source.number("memory_gib", above=0.0, maximum=1e6) * BYTES_PER_GIB),
                half_flops_per_s=half,
                single_flops_per_s=half * SINGLE_SHARE,
                memory_bytes_per_s=source.number("memory_gbytes_per_s", above=0.0, maximum=1e6)
                * BYTES_PER_S_PER_GBYTES,
            )
        stated: dict[str, Any] = {}
        for key, field, unit in (
            ("memory_gib", "memory_bytes", BYTES_PER_GIB),
            ("tflops", "half_flops_per_s", FLOPS_PER_TFLOPS),
            ("tflops_fp32", "single_flops_per_s", FLOPS_PER_TFLOPS),
            ("memory_gbytes_per_s", "memory_bytes_per_s", BYTES_PER_S_PER_GBYTES),
        ):
            if key in source:
                stated[field] = source.number(key, above=0.0, maximum=1e6) * unit
        if "memory_bytes" in stated:
            stated["memory_bytes"] = round(stated["memory_bytes"])
        if "efficiency" in source:
            stated["efficiency"] = source.number("efficiency", above=0.0)
            if stated["efficiency"] > 1:
                raise HetschedError(
                    f"{source.at('efficiency')} is {stated['efficiency']:g}", hint="a share of the peak, at most 1"
                )
        source.finish()
        return replace(known, **stated)


def _link(entry: Fields) -> Answer:
    if "link" not in entry:
        return math.nan, math.nan
    link = entry.child("link")
    answer = link_answer(link)
    link.finish()
    return answer


def _measured(source: Fields, folder: Path) -> Measurements:
    """Everything in the files under `profiles`."""
    return Measurements.merged(
        _one_measured(name, f"{source.at('profiles')}[{position}]", folder)
        for position, name in enumerate(source.sequence("profiles", ()))
    )


def _one_measured(name: Any, where: str, folder: Path) -> Measurements:
    if not isinstance(name, str):
        raise HetschedError(f"{where} is {describe(name)}, expected the path of a profile")
    if "\0" in name or not (folder / name).is_file():
        raise HetschedError(f"{where}: {name!r} is not a file", hint="paths are relative to the cluster file")
    return read_measurements(folder / name)
