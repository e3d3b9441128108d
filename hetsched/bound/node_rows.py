"""The rows of what the networks of nodes allow: proven in `nodes`, with the numbers that stand here."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.node_classes import NodeClass
from hetsched.bound.programme import Rows
from hetsched.cluster import Floats, Indices

ROUNDING = 1e-7

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Load:
    """What plans of one setting must do.

    blocks: L; ends: embedding and head, as so many; micro_batches: all of them; hop_bytes: of a message forwards, and
    back; block_bytes: B; phi: see `nodes`; stage_phi: the same of stages alone; gpipe: whether that is the schedule,
    not 1F1B.
    """

    blocks: int
    ends: float
    micro_batches: int
    hop_bytes: tuple[float, float]
    block_bytes: float
    phi: float
    stage_phi: float
    gpipe: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """A load on classes of nodes; slowest: blocks a second of the slowest team; forward_s, both_s: the least of a
    block's forward, and of both passes.
    """

    load: Load
    classes: tuple[NodeClass, ...]
    slowest: float
    forward_s: float
    both_s: float

    @property
    def nodes(self) -> list[NodeClass]:
        """One for each node."""
        return [one for one in self.classes for _ in range(one.count)]

    def with_gathers(self, gather_s: float) -> "Setting":
        """The same where a block takes so many GPU seconds more, and embedding and head none."""
        if not gather_s:
            return self
        classes = tuple(one.with_gathers(gather_s) for one in self.classes)
        return replace(
            self, load=replace(self.load, ends=0.0), classes=classes, slowest=1 / (1 / self.slowest + gather_s)
        )

    @property
    def gpus(self) -> int:
        """N."""
        return sum(one.count * one.gpus for one in self.classes)

    @property
    def fewest_pipelines(self) -> tuple[int, ...]:
        """One; two; and more than a node has GPUs: from each of these on other plans are possible."""
        return 1, 2, 1 + max(2, *(one.gpus for one in self.classes))

    @property
    def in_rounds(self) -> float:
        """The least that M_p of all pipelines are."""
        return self.load.micro_batches - (1 - self.load.phi) * self.gpus


@dataclass(frozen=True, slots=True)
class Holders:
    """Nodes of a class (`number`) that hold from `fewest` to `most` blocks, some of them `alone`; all (n,)."""

    number: Indices
    fewest: Floats
    most: Floats
    alone: NDArray[np.bool_]


class _Nodes:
    """Rows that all programmes have; visits, messages and work are in shares of `total` micro-batches.

    begin: the range of A. nodes: how many; until: A times that.
    """

    def __init__(
        self, setting: Setting, holders: Holders, end_s: float, begin: Range, replicas: int, total: float
    ) -> None:
        load, most, fewest, alone = setting.load, holders.most, holders.fewest, holders.alone
        table = [
            (c.blocks_per_s, c.least_share, c.hop_bytes_per_s, c.ring_bytes_per_s, c.latency_s, c.gpus)
            for c in setting.classes
        ]
        self.blocks_per_s, self.least_share, self.hop_bytes_per_s, ring_bytes_per_s, self.latency_s, self.gpus = (
            np.array(table)[holders.number].T
        )
        self.load, self.total, self.most = load, total, most
        self.reduce_s = load.block_bytes / ring_bytes_per_s
        self.there_s, self.back_s = (size / self.hop_bytes_per_s for size in load.hop_bytes)
        others = max(0, math.ceil(load.blocks / most.max()) - 2)  # messages between nodes on the rest of the way
        message_s = float((self.there_s + self.latency_s).min())
        way_s = load.blocks * setting.forward_s
        self.rest_s, self.rest_of_one_s = (way_s + max(0, n) * message_s for n in (others, others - 1))
        self.per_s = per_s = 1 / (self.there_s * total)  # messages that leave or enter, one after another
        rows = self.rows = Rows()
        (
            self.nodes,
            self.until,
            self.visits,
            self.work,
            self.extra,
            self.sent,
            self.returned,
            self.alone,
            self.reduced,
        ) = (rows.new(len(most)) for _ in range(9))
        rows.each((self.until, 1), (self.nodes, -begin[1]))
        rows.each((self.until, -1), (self.nodes, begin[0]))
        rows.each((self.work, 1), (self.visits, -most), (self.extra, -1))
        some = np.flatnonzero(most < load.blocks)
        each = (most * per_s)[some]
        rows.each(
            (self.work[some], 1),
            (self.extra[some], -1),
            (self.until[some], -each),
            (self.nodes[some], each * self.rest_s),
        )
        rows.each((self.extra, 1), (self.visits, -load.ends))
        rows.each((self.sent, 1), (self.until, -per_s), (self.nodes, per_s * self.rest_s))
        rows.each((self.sent, 1), (self.visits, -1))
        rows.each((self.returned, 1), (self.visits, -1))
        most_reduced = 2 * (1 - 1 / sum(one.count for one in setting.classes))
        rows.each((self.reduced, 1), (self.nodes, -end_s / self.reduce_s), (self.until, 1 / self.reduce_s))
        rows.each((self.reduced, 1), (self.nodes, -most_reduced * most))
        rows.each((self.nodes, fewest), (self.reduced, -1), (self.alone, -1))
        rows.each((self.alone, 1), (self.work, -1))
        rows.each((self.nodes, 1 * alone), (self.visits, -1))
        rows.each((self.alone, 1), (self.nodes, -np.where(alone, most, 0)))
        for k, one in enumerate(setting.classes):
            rows.total(one.count, (self.nodes, holders.number == k))
        rows.total(load.ends, (self.extra, 1))
        rows.total(1, (self.visits, 1), (self.sent, -1))
        rows.total(1, (self.visits, 1), (self.returned, -1))
        rows.total(load.blocks, (self.alone, 1))
        rows.total(2 * load.blocks, (self.nodes, 2 * fewest), (self.reduced, -1))
        rows.total(-replicas * load.blocks, (self.nodes, -self.gpus * most))
        if alone.any():
            rows.total(-1, (self.nodes, -1 * alone))
        if replicas == 1:
            rows.total(-load.blocks, (self.alone, -1))

    def can_do_all(self) -> bool:
        """Whether all blocks are worked on in all micro-batches."""
        return self.rows.most((self.work, 1)) >= (self.load.blocks + self.load.ends) * (1 - ROUNDING)


def in_rounds(setting: Setting, holders: Holders, end_s: float, begin: Range, replicas: int) -> bool:
    """Whether nodes enough do all the work by A, in a range, where M_p micro-batches count of each pipeline."""
    at = _Nodes(setting, holders, end_s, begin, replicas, setting.in_rounds)
    capacity = at.blocks_per_s / at.total
    there_s, back_s = (setting.slowest * (way_s + at.latency_s) for way_s in (at.there_s, at.back_s))
    at.rows.each((at.work, 1), (at.until, -capacity))
    at.rows.total(0.0, (at.work, 1), (at.sent, there_s), (at.returned, back_s), (at.until, -capacity))
    return at.can_do_all()


def all_at_once(setting: Setting, holders: Holders, end_s: float, begin: Range, replicas: int) -> bool:
    """Whether nodes enough do all the work by `end_s`, with A in a range, where all micro-batches count."""
    at = _Nodes(setting, holders, end_s, begin, replicas, setting.load.micro_batches)
    at.rows.each((at.work, 1), (at.nodes, -at.blocks_per_s * end_s / at.total))
    if setting.load.gpipe:
        _add_one_after_another(at, end_s)
    else:
        _add_late_backwards(at, setting)
        _add_crossing(at, setting, end_s, begin, replicas)
    return at.can_do_all()


def _add_late_backwards(at: _Nodes, setting: Setting) -> None:
    """What 4 says of A in 1F1B."""
    late = at.rows.new(len(at.work))
    whole = at.load.blocks + at.load.ends
    at.rows.each((at.work, 1), (late, -1), (at.until, -at.blocks_per_s / at.total))
    at.rows.total((1 - at.load.stage_phi) * whole * setting.gpus / at.total, (late, 1))


def _add_crossing(at: _Nodes, setting: Setting, end_s: float, begin: Range, replicas: int) -> None:
    """8: messages that cross; and visits, messages, work and GPUs of pipelines that are apart."""
    load, rows, most = at.load, at.rows, at.most
    there, back = load.hop_bytes
    if back > there:
        return
    whole = load.blocks + load.ends
    visits, sent, work, gpus = (rows.new(len(most)) for _ in range(4))
    micro_batches = rows.new(1)
    none_apart = replicas == 1 and setting.gpus <= at.total
    rows.total(0.0 if none_apart else max(0.0, (setting.gpus - replicas) / at.total), (micro_batches, 1))
    rows.total(1, (micro_batches, 1))
    one, share = at.gpus == 1, there / (there + back)
    crossing, rest_s = at.per_s * share, np.where(one, at.rest_of_one_s, at.rest_s)
    last = np.where(one, 0.0, at.gpus / 2 / at.total)
    rows.each((at.sent, 1), (sent, -1), (at.until, -crossing), (at.nodes, crossing * rest_s - last))
    only = np.flatnonzero(one)
    least_s, most_s = (np.maximum(0.0, bound_s - at.rest_of_one_s) for bound_s in begin)
    rows.each(
        (at.sent[only], 1),
        (sent[only], -1),
        (at.until[only], -crossing[only]),
        (at.nodes[only], (crossing * rest_s)[only]),
        (gpus[only], crossing[only] * least_s),
    )
    rows.each((sent[only], 1), (gpus[only], -at.per_s[only] * most_s))
    rows.each((gpus, 1), (at.nodes, -at.gpus))
    rows.total(0, (micro_batches, at.total), (gpus, -1))
    capacity = at.blocks_per_s * end_s / at.total
    rows.each((at.work, 1), (work, -1), (gpus, at.least_share * capacity), (at.nodes, -capacity))
    trip_s = at.there_s + at.back_s + 2 * at.latency_s
    rows.total(0, (sent, trip_s), (micro_batches, load.blocks * setting.both_s - end_s))
    rows.each((sent, 1), (visits, -1))
    rows.each((sent, 1), (at.sent, -1))
    rows.each((visits, 1), (at.visits, -1))
    rows.each((work, 1), (visits, -(most + load.ends)))
    rows.each((at.work, 1), (work, -1), (at.extra, -1), (at.visits, -most), (visits, most))
    rows.total(0, (visits, 1), (sent, -1), (micro_batches, -1))
    rows.total(1, (at.visits, 1), (visits, -1), (at.sent, -1), (sent, 1), (micro_batches, 1))
    rows.total(0, (work, 1), (micro_batches, -whole))


def _add_one_after_another(at: _Nodes, end_s: float) -> None:
    """9: all-reduces that wait for the work of their stage, and for messages both ways of nodes with one stage."""
    load, rows, others = at.load, at.rows, 1 - at.least_share
    done = (at.work, at.total / at.blocks_per_s), (at.reduced, at.reduce_s)
    rows.each(*done, (at.nodes, -(1 + others) * end_s), (at.until, others))
    if load.stage_phi:
        rows.each(*done, (at.nodes, -end_s), (at.until, -others * (1 / load.stage_phi - 1)))
    one = np.flatnonzero((at.gpus == 1) & (at.most < load.blocks))
    messages_s = (at.there_s + at.back_s)[one] * at.total
    rows.each((at.visits[one], messages_s), (at.reduced[one], at.reduce_s[one]), (at.nodes[one], -end_s))
