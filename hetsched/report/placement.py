"""What is where: pipelines in rows, stages in columns, or in one line each where that is too wide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from hetsched.cluster import Cluster
from hetsched.plan import AnyPlan, Pipeline, Plan, Stage
from hetsched.report.text import WIDTH, bullet, joined_ranges

MANY_NODES = 8  # up to so many nodes in use, devices are named; above, their regions
SHOWN_ROWS = 20
SHOWN_PLACES = 12
LONGEST_NAME = 20
LEAST_LETTERS = 3


@dataclass(frozen=True)
class Row:
    """Pipelines that look alike: their names, the place and the blocks of each stage, and micro-batches each."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    blocks: tuple[int, ...]
    micro_batches: int

    @property
    def label(self) -> str:
        """`p0-p3`."""
        joined = joined_ranges(self.names)
        return joined if len(joined) <= LONGEST_NAME else f"{len(self.names)} pipelines"


def placement(plan: Plan, cluster: Cluster) -> str:
    """The layout in at most 80 columns, and below it which GPUs each place has and how many are used."""
    regional = names_regions(plan, cluster)
    rows = _rows(plan, cluster, regional)
    hidden = sum(len(row.names) for row in rows[SHOWN_ROWS:])
    shown = rows[:SHOWN_ROWS]
    short = _abbreviated(shown) if regional else shown
    table = _grid(shown) or _grid(short) or _grid(short, " ") or _flow(shown)
    if hidden:
        table += f"\n  and {hidden} more pipelines, in the plan file"
    return f"{table}\n\n{places(plan, cluster, regional)}"


def names_regions(plan: AnyPlan, cluster: Cluster) -> bool:
    """Whether regions tell more than devices: many nodes, in more than one region."""
    nodes = {cluster.device(name).node for pipeline in plan.pipelines for name in pipeline.devices}
    return len(nodes) > MANY_NODES and len({cluster.node(node).region for node in nodes}) > 1


def stage_place(cluster: Cluster, stage: Stage, regional: bool) -> str:
    """Where a stage is: its devices, or its region."""
    devices = [cluster.device(name) for name in stage.devices]
    first = devices[0]
    if regional:
        place = cluster.node(first.node).region
        kinds = {gpu.kind for node in cluster.nodes if node.region == place for gpu in node.gpus}
        place = f"{place}:{first.gpu.kind.partition('-')[0]}" if len(kinds) > 1 else place
        return place if len(devices) == 1 else f"{place}:×{len(devices)}"
    if len(devices) == 1:
        return first.name
    indices = joined_ranges([str(device.index) for device in devices if device.node == first.node]).replace(" ", "")
    others = sum(device.node != first.node for device in devices)
    return f"{first.node}/{indices}" + (f"+{others}" if others else "")


def _rows(plan: Plan, cluster: Cluster, regional: bool) -> list[Row]:
    found: dict[tuple[tuple[str, ...], tuple[int, ...], int], list[Pipeline]] = {}
    for pipeline in plan.pipelines:
        places = tuple(stage_place(cluster, stage, regional) for stage in pipeline.stages)
        blocks = tuple(stage.num_layers for stage in pipeline.stages)
        found.setdefault((places, blocks, pipeline.micro_batches), []).append(pipeline)
    return [Row(tuple(p.name for p in pipelines), *key) for key, pipelines in found.items()]


def _abbreviated(rows: Sequence[Row]) -> list[Row]:
    """The rows with regions cut to the shortest beginnings that tell them apart, of at least three letters."""
    regions = {place.partition(":")[0] for row in rows for place in row.places}
    longest = max(map(len, regions))
    size = next(
        n
        for n in range(LEAST_LETTERS, max(longest, LEAST_LETTERS) + 1)
        if len({name[:n] for name in regions}) == len(regions)
    )
    return [replace(row, places=tuple(_cut(place, size) for place in row.places)) for row in rows]


def _cut(place: str, size: int) -> str:
    region, colon, rest = place.partition(":")
    return region[:size] + colon + rest


def _grid(rows: Sequence[Row], gap: str = "  ") -> str | None:
    """Stages as columns, or None where 80 columns are too few. Equal layer splits stand once, below."""
    depth = max(len(row.places) for row in rows)
    alike = len({row.blocks for row in rows}) == 1
    lines = [["  pipeline", "batches", *(f"stage {s}" for s in range(depth))]]
    for row in rows:
        lines.append([f"  {row.label}", str(row.micro_batches), *row.places])
        if not alike:
            lines.append(["    layers", "", *map(str, row.blocks)])
    if alike:
        lines.append(["  layers", "", *map(str, rows[0].blocks)])
    for numbers in (False, True):
        if numbers:
            lines[0] = ["  pipeline", "batches", *(str(s) for s in range(depth))]
        widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(depth + 2)]
        if sum(widths) + len(gap) * (len(widths) - 1) <= WIDTH:
            return "\n".join(gap.join(_aligned(line, widths)).rstrip() for line in lines)
    return None


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) if k == 1 else cell.ljust(width) for k, (cell, width) in enumerate(zip(line, widths))]  # noqa: B905


def _flow(rows: Sequence[Row]) -> str:
    """One line for a row: places in stage order with the layers of each stage."""
    lines = ["  pipeline, its micro-batches: places in the stages' order (layers of each)"]
    for row in rows:
        steps = []
        for place, stages in groupby(zip(row.places, row.blocks, strict=True), key=lambda step: step[0]):
            steps.append(f"{place} ({', '.join(str(blocks) for _, blocks in stages)})")
        lines.append(bullet(" → ".join(steps), f"  {row.label}, {row.micro_batches}: "))
    return "\n".join(lines)


def places(plan: AnyPlan, cluster: Cluster, regional: bool) -> str:
    """Which GPUs each place has, and how many of them the plan uses; alike places on one line. Not what is unrented."""
    used = {name for pipeline in plan.pipelines for name in pipeline.devices}
    nodes = {cluster.device(name).node for name in used}
    counts: dict[str, dict[str, list[int]]] = {}
    for device in cluster.devices:
        if cluster.node(device.node).offered and device.node not in nodes:
            continue
        place = cluster.node(device.node).region if regional else device.node
        count = counts.setdefault(place, {}).setdefault(device.gpu.kind, [0, 0])
        count[0] += device.name in used
        count[1] += 1
    alike: dict[str, list[str]] = {}
    for place, kinds in counts.items():
        alike.setdefault(_kinds(kinds), []).append(place)
    lines = [
        bullet(f"{'each of ' if many else ''}{', '.join(names)}: {kinds}", "  ")
        for kinds, names, many in ((kinds, _shortened(names), len(names) > 1) for kinds, names in alike.items())
    ]
    if len(lines) > SHOWN_PLACES:
        lines = [*lines[:SHOWN_PLACES], f"  and {len(lines) - SHOWN_PLACES} more kinds of places"]
    return "\n".join(lines)


def gpus_used(plan: AnyPlan, cluster: Cluster) -> str:
    """`12 of 16 GPUs`, or `4 GPUs of 72 on offer`."""
    used = sum(len(pipeline.devices) for pipeline in plan.pipelines)
    offered = any(node.offered for node in cluster.nodes)
    return f"{used} GPUs of {len(cluster.devices)} on offer" if offered else f"{used} of {len(cluster.devices)} GPUs"


def _shortened(names: Sequence[str]) -> list[str]:
    shown = joined_ranges(names).split(", ")
    return shown if len(shown) <= SHOWN_PLACES else [*shown[:SHOWN_PLACES], f"{len(shown) - SHOWN_PLACES} more"]


def _kinds(kinds: Mapping[str, Sequence[int]]) -> str:
    words = []
    for kind, (used, total) in kinds.items():
        idle = "" if used == total else " idle" if not used else f", {total - used} of them idle"
        words.append(f"{total}\xa0×\xa0{kind}{idle}")
    return "; ".join(words)
