"""The network of a cluster file: which answer wins for a pair of nodes, and where each comes from.

A measured curve > a matrix > a node's `link` > the table of regions (and of nodes) > `inside_node` > the catalogue's
usual link.
Bandwidth and latency are looked up each for itself.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from hetsched.cluster import Floats, Indices, Network, Node
from hetsched.errors import HetschedError, HetschedWarning
from hetsched.fields import Fields
from hetsched.profiles import BandwidthCurve, BandwidthCurves
from hetsched.readers.matrix import BANDWIDTH, LATENCY
from hetsched.readers.network_matrices import Answers, Inventory, apply_matrix, find_matrix
from hetsched.units import BYTES_PER_S_PER_GBPS, SECONDS_PER_MS

LARGE_MESSAGE_BYTES = 64e6
PerDevice = dict[tuple[int, int], tuple[Floats, Floats]]
Answer = tuple[float, float]  # bandwidth in bytes/s and latency in s, NaN where not given


def link_answer(source: Fields) -> Answer:
    """`bandwidth_gbps` and `latency_ms` of one link; one of the two may be left to another source of answers."""
    bandwidth = source.number("bandwidth_gbps", math.nan, above=0.0, maximum=1e6) * BYTES_PER_S_PER_GBPS
    latency = source.number("latency_ms", math.nan, maximum=1e6) * SECONDS_PER_MS
    if math.isnan(bandwidth) and math.isnan(latency):
        source.raw("bandwidth_gbps")
    return bandwidth, latency


def build_network(
    source: Fields,
    nodes: Sequence[Node],
    links: Sequence[Answer],
    folder: Path,
    curves: BandwidthCurves,
    within: Network | None = None,
) -> tuple[Network, tuple[str, ...]]:
    """The network of `nodes`, and notes on what was assumed.

    source: the file's `network`; links: each node's own `link`; folder: what matrix paths are relative to;
    within: the network of the first of the nodes among themselves, where that is known. Raises HetschedError that names
    the place, or the pair of GPUs without an answer.
    """
    inventory = Inventory.of(nodes)
    known = 0 if within is None else len(within.bandwidth_bytes_per_s)
    if within is not None:
        inside = within.bandwidth_bytes_per_s.diagonal().tolist(), within.latency_s.diagonal().tolist()
        links = [*zip(*inside, strict=True), *links[known:]]
    answers = _region_tables(source, inventory)
    _node_table(source, inventory, answers)
    notes = _inside_nodes(source, inventory, links, answers, curves)
    for key, quantity in (("bandwidth_matrix", BANDWIDTH), ("latency_matrix", LATENCY)):
        if key in source:
            apply_matrix(find_matrix(source, key, quantity, folder), inventory, answers)
    source.finish()
    _apply_curves(curves, inventory, answers)
    per_device = _per_device(inventory, answers)
    if within is not None:
        answers.bandwidth[:known, :known] = within.bandwidth_bytes_per_s
        answers.latency[:known, :known] = within.latency_s
        per_device |= within.per_device
    _alone(inventory, answers)
    _check_complete(source.where, inventory, answers, per_device)
    return Network(answers.bandwidth, answers.latency, per_device), notes


# ---- tables


def _region_tables(source: Fields, inventory: Inventory) -> Answers:
    """inside_region and between_regions, region by region, then spread over the nodes at once."""
    size = len(inventory.region_index)
    table = (np.full((size, size), np.nan), np.full((size, size), np.nan))
    if "inside_region" in source:
        inside = source.child("inside_region")
        for values, value in zip(table, link_answer(inside), strict=True):
            np.fill_diagonal(values, value)
        inside.finish()
    _fill_pairs(source, "between_regions", inventory.region_index, table)
    at = np.ix_(inventory.region_of, inventory.region_of)
    answers = Answers(table[0][at], table[1][at])
    for values in (answers.bandwidth, answers.latency):
        np.fill_diagonal(values, np.nan)
    return answers


def _node_table(source: Fields, inventory: Inventory, answers: Answers) -> None:
    """between_nodes: as between_regions, for single pairs of nodes."""
    _fill_pairs(source, "between_nodes", inventory.node_index, (answers.bandwidth, answers.latency))


def _fill_pairs(source: Fields, key: str, index: Mapping[str, int], table: tuple[Floats, Floats]) -> None:
    """A list of {a, b, bandwidth_gbps, latency_ms, one_way}: both ways unless one_way is true."""
    stated: dict[tuple[int, int], str] = {}
    regions = key == "between_regions"
    warned: set[str] = set()
    for entry in source.children(key, ()):
        ends = [entry.text(end).lower() if regions else entry.text(end) for end in ("a", "b")]
        answer, one_way = link_answer(entry), entry.flag("one_way", False)
        entry.finish()
        unknown = next((end for end in ends if end not in index), None)
        if unknown is not None:
            if unknown not in warned:
                _unknown_end(entry, unknown, index, regions)
            warned.add(unknown)
            continue
        i, j = index[ends[0]], index[ends[1]]
        if i == j and not regions:
            raise HetschedError(f"{entry.where}: a and b are both {ends[0]}", hint="give the node a `link` instead")
        for pair in {(i, j)} if one_way else {(i, j), (j, i)}:
            if pair in stated:
                raise HetschedError(
                    f"{entry.where}: {ends[0]} to {ends[1]} already stands in {stated[pair]}",
                    hint="keep one of them, or mark each `one_way: true` for one direction",
                )
            stated[pair] = entry.where.rpartition(": ")[2]
            for values, value in zip(table, answer, strict=True):
                if not math.isnan(value):
                    values[pair] = value


def _unknown_end(entry: Fields, name: str, index: Mapping[str, int], regions: bool) -> None:
    """A region that no node is in may be a table longer than the cluster: a warning; for a node it is a mistake."""
    near = get_close_matches(name, list(index), n=1)
    hint = f"`{near[0]}` may be meant" if near else f"there are {', '.join(list(index)[:8])}"
    if not regions:
        raise HetschedError(f"{entry.where}: no node is named {name!r}", hint=hint)
    warnings.warn(f"{entry.where}: no node is in region {name!r}, the entry is ignored; {hint}", HetschedWarning, 2)


def _inside_nodes(
    source: Fields, inventory: Inventory, links: Sequence[Answer], answers: Answers, curves: BandwidthCurves
) -> tuple[str, ...]:
    """The diagonal: a node's link, else inside_node, else what the catalogue knows of its GPUs."""
    default: Answer = (math.nan, math.nan)
    if "inside_node" in source:
        inside = source.child("inside_node")
        default = link_answer(inside)
        inside.finish()
    assumed: dict[str, list[str]] = {}
    for position, (node, link) in enumerate(zip(inventory.nodes, links, strict=True)):
        usual = [gpu.link for gpu in node.gpus if gpu.link is not None] if len(node.gpus) > 1 else []
        known = len(usual) == len(node.gpus)
        catalogue = (
            (min(x.bandwidth_bytes_per_s for x in usual), max(x.latency_s for x in usual))
            if known
            else (math.nan, math.nan)
        )
        for values, choices in zip(
            (answers.bandwidth, answers.latency), zip(link, default, catalogue, strict=True), strict=True
        ):
            values[position, position] = next((x for x in choices if not math.isnan(x)), math.nan)
        measured = curves.inside_node(node.gpus[0].kind, 2) is not None
        if known and not measured and math.isnan(link[0]) and math.isnan(default[0]):
            gbps, ms = catalogue[0] / BYTES_PER_S_PER_GBPS, catalogue[1] / SECONDS_PER_MS
            kinds = " and ".join(dict.fromkeys(gpu.kind for gpu in node.gpus))
            assumed.setdefault(f"{kinds} ({gbps:g} Gbit/s, {ms:g} ms)", []).append(node.name)
    return tuple(
        f"link inside a node taken from the catalogue for {what}: {', '.join(names[:4])}"
        + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for what, names in assumed.items()
    )


def _apply_curves(curves: BandwidthCurves, inventory: Inventory, answers: Answers) -> None:
    """Bandwidths of one pair of GPUs of the kinds that were measured, for large messages.

    A latency that the file does not state is part of the curve.
    """
    alike: dict[tuple[str, int], list[int]] = {}
    for position, node in enumerate(inventory.nodes):
        alike.setdefault((node.gpus[0].kind, len(node.gpus)), []).append(position)
    for (kind, count), rows in alike.items():
        inside = curves.inside_node(kind, 2) if count > 1 else None
        if inside is not None:
            _put_curve(answers, inside, np.array([rows]), np.array([rows]))
        for (peer, _), columns in alike.items():
            between = curves.between_nodes(kind, peer, 1)
            if between is not None:
                at = np.meshgrid(rows, columns, indexing="ij")
                apart = at[0] != at[1]
                _put_curve(answers, between, at[0][apart], at[1][apart])


def _put_curve(answers: Answers, curve: BandwidthCurve, rows: Indices, columns: Indices) -> None:
    answers.bandwidth[rows, columns] = curve.bytes_per_s(LARGE_MESSAGE_BYTES)
    latency = answers.latency[rows, columns]
    answers.latency[rows, columns] = np.where(np.isnan(latency), 0.0, latency)
    blocks = answers.blocks.get(BANDWIDTH.name, {})
    for pair in set(blocks) & set(zip(rows.ravel().tolist(), columns.ravel().tolist(), strict=True)):
        del blocks[pair]


# ---- what is left


def _per_device(inventory: Inventory, answers: Answers) -> PerDevice:
    """{(i, j): (bandwidth, latency)} of the node pairs whose GPUs differ; where a GPU is silent, the nodes' answer."""
    blocks = [answers.blocks.get(quantity.name, {}) for quantity in (BANDWIDTH, LATENCY)]
    both: PerDevice = {}
    for i, j in sorted(set(blocks[0]) | set(blocks[1])):
        shape = (len(inventory.nodes[i].gpus), len(inventory.nodes[j].gpus))
        pair = []
        for values, given, itself in zip((answers.bandwidth, answers.latency), blocks, (np.inf, 0.0), strict=True):
            block = given.get((i, j), np.full(shape, np.nan))
            block = np.where(np.isnan(block), values[i, j], block)
            if i == j:
                np.fill_diagonal(block, itself)
            if not np.isnan(block).any():
                values[i, j] = block.min() if itself else block.max()  # the worst, for who asks for the node pair
            pair.append(block)
        both[i, j] = (pair[0], pair[1])
    return both


def _alone(inventory: Inventory, answers: Answers) -> None:
    """A GPU alone in its node needs no link there: infinitely fast, so that no minimum is disturbed."""
    for position, node in enumerate(inventory.nodes):
        if len(node.gpus) == 1:
            answers.bandwidth[position, position], answers.latency[position, position] = np.inf, 0.0


def _check_complete(where: str, inventory: Inventory, answers: Answers, per_device: PerDevice) -> None:
    for number, quantity in enumerate((BANDWIDTH, LATENCY)):
        missing = np.argwhere(np.isnan(answers.of(quantity)))
        if not len(missing):
            continue
        i, j = (int(position) for position in missing[0])
        a, b = inventory.nodes[i], inventory.nodes[j]
        first, second = 0, int(i == j)
        if (i, j) in per_device:
            first, second = np.argwhere(np.isnan(per_device[i, j][number]))[0]
        if i == j:
            hint = f"give node {a.name} a `link`, or `inside_node` for all"
        elif a.region == b.region:
            hint = f"add `inside_region` (both are in {a.region})"
        else:
            hint = f"add {{a: {a.region}, b: {b.region}, bandwidth_gbps: ..., latency_ms: ...}} to `between_regions`"
        raise HetschedError(
            f"{where}: no {quantity.name} from {a.name}/{first} to {b.name}/{second}", hint=f"{hint}, or a matrix"
        )
