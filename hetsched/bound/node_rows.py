"""The rows of what the networks of nodes allow: proven in `nodes`, with the numbers that stand here."""

import math
from dataclasses import dataclass

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
    def gpus(self) -> int:
        """N."""
        return sum(one.count * one.gpus for one in self.classes)

    @property
    def in_rounds(self) -> float:
        """The least that M_p of all pipelines are."""
        return self.load.micro_batches - (1 - self.load.phi) * self.gpus


@dataclass(frozen=True, slots=True)
class Holders:
    """Nodes of a class (`number`) that hold from `fewest` to `most` blocks, some of them `alone`; all (n,).

    limit: blocks of which they can reduce the gradients.
    """

    number: Indices
    fewest: Floats
    most: Floats
    limit: Floats
    alone: NDArray[np.bool_]


class _Nodes:
    """Rows that all programmes have; visits, messages and work are in shares of `total` micro-batches.

    begin_s: A, which bounds the messages.
    """

    def __init__(self, setting: Setting, holders: Holders, begin_s: float, replicas: int, total: float) -> None:
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
        left_s = begin_s - load.blocks * setting.forward_s
        message_s = float((self.there_s + self.latency_s).min())
        self.sends = max(0.0, left_s - others * message_s) / (self.there_s * total)
        self.sends_of_one = max(0.0, left_s - max(0, others - 1) * message_s) / (self.there_s * total)
        rows = self.rows = Rows()
        self.nodes, self.visits, self.work, self.extra, self.sent, self.returned, self.alone = (
            rows.new(len(most)) for _ in range(7)
        )
        rows.each((self.work, 1), (self.visits, -most), (self.extra, -1))
        some = np.flatnonzero(most < load.blocks)
        rows.each((self.work[some], 1), (self.extra[some], -1), (self.nodes[some], -(most * self.sends)[some]))
        rows.each((self.extra, 1), (self.visits, -load.ends))
        rows.each((self.sent, 1), (self.nodes, -self.sends))
        rows.each((self.sent, 1), (self.visits, -1))
        rows.each((self.returned, 1), (self.visits, -1))
        rows.each((self.nodes, np.where(alone, fewest - holders.limit, 0)), (self.alone, -1))
        rows.each((self.alone, 1), (self.work, -1))
        rows.each((self.nodes, 1 * alone), (self.visits, -1))
        rows.each((self.alone, 1), (self.nodes, -np.where(alone, most, 0)))
        for k, one in enumerate(setting.classes):
            rows.total(one.count, (self.nodes, holders.number == k))
        rows.total(load.ends, (self.extra, 1))
        rows.total(1, (self.visits, 1), (self.sent, -1))
        rows.total(1, (self.visits, 1), (self.returned, -1))
        rows.total(load.blocks, (self.alone, 1))
        rows.total(2 * load.blocks, (self.nodes, 2 * fewest - holders.limit))
        rows.total(-replicas * load.blocks, (self.nodes, -self.gpus * most))
        if alone.any():
            rows.total(-1, (self.nodes, -1 * alone))
        if replicas == 1:
            rows.total(-load.blocks, (self.alone, -1))

    def can_do_all(self) -> bool:
        """Whether all blocks are worked on in all micro-batches."""
        return self.rows.most(self.work) >= (self.load.blocks + self.load.ends) * (1 - ROUNDING)


def in_rounds(setting: Setting, holders: Holders, begin: Range, replicas: int) -> bool:
    """Whether nodes enough do all the work by A, in a range, where M_p micro-batches count of each pipeline."""
    at = _Nodes(setting, holders, begin[1], replicas, setting.in_rounds)
    capacity = at.blocks_per_s * begin[1] / at.total
    there_s, back_s = (setting.slowest * (way_s + at.latency_s) for way_s in (at.there_s, at.back_s))
    at.rows.each((at.work, 1), (at.nodes, -capacity))
    at.rows.total(0.0, (at.work, 1), (at.sent, there_s), (at.returned, back_s), (at.nodes, -capacity))
    return at.can_do_all()


def all_at_once(setting: Setting, holders: Holders, end_s: float, begin: Range, replicas: int) -> bool:
    """Whether nodes enough do all the work by `end_s`, with A in a range, where all micro-batches count."""
    at = _Nodes(setting, holders, begin[1], replicas, setting.load.micro_batches)
    at.rows.each((at.work, 1), (at.nodes, -at.blocks_per_s * end_s / at.total))
    if setting.load.gpipe:
        _add_one_after_another(at, holders, end_s, begin)
    else:
        _add_late_backwards(at, setting, begin[1])
        _add_crossing(at, setting, end_s, replicas)
    return at.can_do_all()


def _add_late_backwards(at: _Nodes, setting: Setting, begin_s: float) -> None:
    """What 4 says of A in 1F1B."""
    late = at.rows.new(len(at.work))
    whole = at.load.blocks + at.load.ends
    at.rows.each((at.work, 1), (late, -1), (at.nodes, -at.blocks_per_s * begin_s / at.total))
    at.rows.total((1 - at.load.stage_phi) * whole * setting.gpus / at.total, (late, 1))


def _add_crossing(at: _Nodes, setting: Setting, end_s: float, replicas: int) -> None:
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
    one = np.flatnonzero(at.gpus == 1)
    crossing = at.sends * there / (there + back) + at.gpus / 2 / at.total
    crossing[one] = at.sends_of_one[one] * there / (there + back)
    rows.each((at.sent, 1), (sent, -1), (at.nodes, -crossing))
    rows.each((at.sent[one], 1), (sent[one], -1), (at.nodes[one], -crossing[one]), (gpus[one], crossing[one]))
    rows.each((sent[one], 1), (gpus[one], -at.sends[one]))
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


def _add_one_after_another(at: _Nodes, holders: Holders, end_s: float, begin: Range) -> None:
    """9: all-reduces that wait for the work of their stage, and for messages both ways of nodes with one stage."""
    load, rows, q = at.load, at.rows, at.rows.new(len(at.work))
    latest_s = max(begin[0], min(begin[1] / load.stage_phi, end_s))
    both_s = end_s + (1 - at.least_share) * (latest_s - begin[0])
    rows.each((q, 1), (at.nodes, -np.minimum(holders.limit, 2 * at.most)))
    rows.each((at.work, at.total / at.blocks_per_s), (q, at.reduce_s), (at.nodes, -both_s))
    one = np.flatnonzero((at.gpus == 1) & (at.most < load.blocks))
    messages_s = (at.there_s + at.back_s)[one] * at.total
    rows.each((at.visits[one], messages_s), (q[one], at.reduce_s[one]), (at.nodes[one], -end_s))
    rows.total(2 * load.blocks, (at.nodes, 2 * holders.fewest), (q, -1))
