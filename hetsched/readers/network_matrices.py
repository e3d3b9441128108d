"""Matrices put over a cluster's network: rows of nodes, of devices or of regions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from hetsched.cluster import Floats, Indices, Node
from hetsched.errors import HetschedError
from hetsched.fields import Fields
from hetsched.readers.device_matrix import DeviceBlocks, spread_devices
from hetsched.readers.matrix import BANDWIDTH, Matrix, Quantity, inline_matrix, read_matrix


@dataclass(frozen=True)
class Inventory:
    """The nodes as the tables name them."""

    nodes: Sequence[Node]
    node_index: Mapping[str, int]
    region_index: Mapping[str, int]
    region_of: Indices

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> "Inventory":
        """The inventory of these nodes, whose names are known to differ."""
        regions = {name: position for position, name in enumerate(dict.fromkeys(node.region for node in nodes))}
        region_of = np.array([regions[node.region] for node in nodes], dtype=np.intp)
        return cls(nodes, {node.name: position for position, node in enumerate(nodes)}, regions, region_of)


@dataclass
class Answers:
    """Both quantities between nodes: (nodes, nodes), NaN where there is no answer yet."""

    bandwidth: Floats
    latency: Floats
    blocks: dict[str, DeviceBlocks] = field(default_factory=dict)

    def of(self, quantity: Quantity) -> Floats:
        """The array of that quantity."""
        return self.bandwidth if quantity is BANDWIDTH else self.latency


def find_matrix(source: Fields, key: str, quantity: Quantity, folder: Path) -> Matrix:
    """The matrix under `key`: a path, {file, unit}, or {names, rows, unit}."""
    value: Any = source.raw(key)
    if isinstance(value, str):
        return read_matrix(_beside(folder, value, source.at(key)), quantity)
    entry = source.child(key)
    unit = entry.text("unit", "")
    if "file" in entry:
        matrix = read_matrix(_beside(folder, entry.text("file"), entry.at("file")), quantity, unit)
    else:
        matrix = inline_matrix(entry.sequence("names"), entry.sequence("rows"), entry.where, quantity, unit)
    entry.finish()
    return matrix


def _beside(folder: Path, name: str, where: str) -> Path:
    path = folder / name
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise HetschedError(f"{where}: {name} does not exist", hint="paths are relative to the cluster file")
    return path


def apply_matrix(matrix: Matrix, inventory: Inventory, answers: Answers) -> None:
    """Put a matrix's values over the answers there are. HetschedError where its names do not fit the cluster."""
    values = answers.of(matrix.quantity)
    level, index = _level(matrix, inventory)
    if level == "device":
        answers.blocks[matrix.quantity.name] = spread_devices(
            matrix.values, index, inventory.nodes, values, matrix.where
        )
        return
    measured = matrix.values.copy()
    np.fill_diagonal(measured, matrix.diagonal_values())
    if level == "node":
        at = np.ix_(index, index)
        values[at] = np.where(np.isnan(measured), values[at], measured)
        return
    regions = np.full((len(inventory.region_index),) * 2, np.nan)
    regions[np.ix_(index, index)] = measured
    spread = regions[np.ix_(inventory.region_of, inventory.region_of)]
    np.fill_diagonal(spread, np.nan)  # a region's own cell is between its nodes, not inside one
    values[...] = np.where(np.isnan(spread), values, spread)


def _level(matrix: Matrix, inventory: Inventory) -> tuple[str, Indices]:
    """What the rows stand for (node, device or region), and the position of each there."""
    nodes, regions = inventory.node_index, inventory.region_index
    devices: dict[str, int] = {}
    for node in inventory.nodes:
        for index in range(len(node.gpus)):
            devices[f"{node.name}/{index}"] = len(devices)
    if matrix.names is None:
        rows = len(matrix.values)
        for level, there in (("node", len(nodes)), ("device", len(devices))):
            if rows == there:
                return level, np.arange(rows)
        raise HetschedError(
            f"{matrix.where}: {rows} rows, but the cluster has {len(nodes)} nodes and {len(devices)} devices",
            hint="a .npy has a row for each node, or for each device, in the order of the cluster file",
        )
    names = matrix.names
    choices: tuple[tuple[str, Mapping[str, int], Sequence[str]], ...] = (
        ("node", nodes, names),
        ("device", devices, names),
        ("region", regions, [name.lower() for name in names]),
    )
    level, known, spelled = max(choices, key=lambda choice: sum(name in choice[1] for name in choice[2]))
    for name, spelling in zip(names, spelled, strict=True):
        if spelling not in known:
            near = get_close_matches(spelling, list(known), n=1)
            raise HetschedError(
                f"{matrix.where}: row and column {name}: the cluster has no {level} of that name",
                hint=f"`{near[0]}` may be meant" if near else "all rows name nodes, or all devices, or all regions",
            )
    positions = np.array([known[spelling] for spelling in spelled], dtype=np.intp)
    if len(set(positions.tolist())) < len(positions):
        raise HetschedError(f"{matrix.where}: a region stands twice", hint="names of regions are read in lower case")
    return level, positions
