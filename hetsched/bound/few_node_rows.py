"""The rows of what few nodes allow: proven in `few_nodes`, with the numbers that stand here."""

import numpy as np

from hetsched.bound.late import Most
from hetsched.bound.node_rows import Setting
from hetsched.bound.programme import Rows

MOST_SIZES = 32  # numbers of blocks that are told apart
ROUNDING = 1e-6
SEARCHED = 2000  # nodes of the search tree


class FewNodeRows:
    """Its rows; visits, messages and work are in shares of all micro-batches."""

    def __init__(self, setting: Setting, ends_bytes: float, end_s: float, replicas: int, late: Most) -> None:
        load, nodes, self.slowest = setting.load, setting.nodes, setting.slowest
        self.load, self.nodes, self.ends_bytes, self.end_s, self.replicas = load, nodes, ends_bytes, end_s, replicas
        self.fill_s, count = load.blocks * setting.forward_s, len(nodes)
        self.total = float(load.micro_batches)
        self.late, self.late_at = late.deep / self.total, late.of_node / self.total
        self.late_of_all = late.every / self.total
        edges = np.unique(np.round(np.linspace(1, load.blocks + 1, min(load.blocks, MOST_SIZES) + 1)))
        self.fewest, self.most = edges[:-1], edges[1:] - 1
        self.speed = np.array([one.blocks_per_s for one in nodes]) / self.total
        self.gpus = np.array([one.gpus for one in nodes], dtype=np.float64)
        rows = self.rows = Rows()
        self.holds = rows.new(count * len(self.most)).reshape(count, -1)  # whether a node has so many blocks
        self.head, self.middle, self.tail = (rows.new(count) for _ in range(3))  # of nodes with some alone
        self.main = rows.new(3 * count).reshape(3, -1)  # whether a part of the way has the most visits of a node
        self.whole = self.holds.size + 6 * count
        self.seen = rows.new(self.holds.size).reshape(count, -1)
        self.work, self.extra, self.alone, self.reduced, self.late_of = (rows.new(count) for _ in range(5))
        self.out, self.into, self.begin, self.end, self.more = (rows.new(count) for _ in range(5))
        self.visits = rows.new(3 * count).reshape(3, -1)  # in the parts before, between and after
        self.sent, self.taken, self.undivided = (rows.new(count) for _ in range(3))
        self.until, self.apart = rows.new(1), rows.new(1)
        self._add_blocks()
        self._add_alone()
        self._add_parts()
        self._add_visits()
        self._add_reductions()
        self._add_work()

    def has_plan(self, roughly: bool) -> bool:
        """Whether it has a solution, as far as is known; roughly: where no number is to be whole."""
        return self.rows.kept(0 if roughly else self.whole, SEARCHED)

    def _add_blocks(self) -> None:
        """How many blocks nodes hold; of like nodes the first the most."""
        rows, blocks, nodes = self.rows, self.load.blocks, self.nodes
        for i, held in enumerate(self.holds):
            rows.total(1, (held, 1))
            if i and nodes[i] == nodes[i - 1]:
                rows.total(0, (held, self.most), (self.holds[i - 1], -self.most))
        seats = np.minimum(1, self.gpus / self.replicas)[:, None] * self.most
        every = np.tile(self.most, len(nodes))
        rows.total(-blocks, (self.holds.ravel(), -seats.ravel()))
        if self.replicas == 1:
            rows.total(-blocks, (self.alone, -1))
        else:
            rows.total(-2 * blocks, (self.holds.ravel(), -every), (self.alone, -1))

    def _add_alone(self) -> None:
        """Nodes with blocks that no other has."""
        rows, kinds = self.rows, (self.head, self.middle, self.tail)
        most = np.minimum(self.load.blocks, self.speed * (self.end_s - self.fill_s) + self.late_at)
        rows.each((self.alone, 1), *((kind, -most) for kind in kinds))
        rows.each((self.alone, 1), (self.work, -1))
        rows.each((self.head, 1), (self.tail, -1), (self.out, -1))
        rows.each((self.tail, 1), (self.head, -1), (self.into, -1))
        rows.each((self.middle, 1), (self.out, -1))
        rows.each((self.middle, 1), (self.into, -1))
        rows.total(self.load.blocks, (self.alone, 1))
        rows.total(1, (self.head, 1))
        rows.total(0, (self.head, 1), (self.tail, -1))
        rows.total(0, (self.head, -1), (self.tail, 1))
        for i, seen in enumerate(self.seen):
            head, middle, tail = (kind[i : i + 1] for kind in kinds)
            for kind in (head, middle, tail):
                rows.total(0, (kind, 1), (seen, -1))
            for kind in (head, tail):
                rows.total(1, (middle, 1), (kind, 1))
            rows.total(0, (middle, 1), (self.head, -1))
            if self.gpus[i] < self.replicas:
                rows.total(0, (head, 1), (middle, 1), (tail, 1))
        if self.replicas > 1 and self.ends_bytes:
            ends = 2 * self.ends_bytes / self.load.block_bytes
            rows.total(-ends, (self.more, -1), *((kind, -ends) for kind in kinds))

    def _add_parts(self) -> None:
        """Visits by parts of the way, and the messages of each."""
        rows, (before, between, after), main = self.rows, self.visits, self.main
        every = (before, 1), (between, 1), (after, 1)
        for kind in (self.head, self.tail):
            rows.each(*every, (kind, 1), (self.end, -1), (self.sent, -1))
            rows.each(*every, (kind, 1), (self.begin, -1), (self.taken, -1))
        rows.each((self.middle, 1), (between, -1))
        rows.each((self.begin, 1), (before, -1), (self.head, -1))
        rows.each((self.end, 1), (after, -1), (self.tail, -1), (self.undivided, -1))
        rows.each((self.undivided, 1), (before, -1))
        rows.each((self.out, 1), (self.sent, -1))
        rows.each((self.into, 1), (self.taken, -1))
        for i, seen in enumerate(self.seen):
            own = slice(i, i + 1)
            head, tail = (self.head[own], 1), (self.tail[own], 1)
            rows.total(1, (before[own], 1), head)
            rows.total(1, (between[own], 1), head)
            rows.total(1, (between[own], 1), tail)
            rows.total(1, (after[own], 1), tail)
            rows.total(1, (self.undivided[own], 1), (self.head, 1))
            rows.total(0, (between[own], 1), (self.head, -1))
            rows.total(0, (after[own], 1), (self.head, -1))
            rows.total(-1, (main[:, i], -1), (self.head[own], -1), (self.tail[own], -1))
            for visits, chosen in zip(self.visits, main, strict=True):
                rows.total(1, (seen, 1), (visits[own], -1), (chosen[own], 1))
            for j in range(len(self.seen)):
                other = slice(j, j + 1)
                rows.total(2, (between[other], 1), head, tail)
                if i != j:
                    rows.total(1, (before[other], 1), head, (self.taken[own], -1))
                    rows.total(1, (after[other], 1), tail, (self.sent[own], -1))

    def _add_visits(self) -> None:
        """What micro-batches visit, and their messages."""
        rows, load = self.rows, self.load
        there, back = load.hop_bytes
        rows.each((self.seen.ravel(), 1), (self.holds.ravel(), -1))
        for kind in (self.begin, self.end):
            rows.total(1, (kind, 1))
        slower = (there + back) / 2 if back <= there else there / 2
        some = self.most < load.blocks
        for i, one in enumerate(self.nodes):
            own = slice(i, i + 1)
            visits = (self.seen[i], 1)
            rows.total(0, visits, (self.out[own], -1), (self.end[own], -1))
            rows.total(0, visits, (self.into[own], -1), (self.begin[own], -1))
            rows.total(0, (self.seen[i][some], 1), (self.out[own], -1), (self.into[own], -1))
            rows.total(0, (self.work[own], 1), (self.extra[own], -1), (self.seen[i], -self.most))
            rows.total(0, (self.extra[own], 1), (self.begin[own], -load.ends), (self.end[own], -load.ends))
            per_s = one.hop_bytes_per_s / slower / self.total
            crossing = self.gpus[i] / self.total - per_s * self.fill_s
            for out, into, most in ((self.out, self.into, 2), (self.sent, self.taken, 2 * len(self.visits))):
                rows.total(crossing, (out[own], 1), (into[own], 1), (self.until, -per_s), (self.apart, -most))
        rows.total(load.ends, (self.extra, 1))
        rows.total(float(self.gpus.sum()) / self.total, (self.apart, 1))

    def _add_reductions(self) -> None:
        """What nodes send after A."""
        rows, blocks = self.rows, self.load.blocks
        rows.total(self.end_s, (self.until, 1))
        for i, one in enumerate(self.nodes):
            own, per_s = slice(i, i + 1), one.ring_bytes_per_s / self.load.block_bytes
            rows.total(per_s * self.end_s, (self.reduced[own], 1), (self.more[own], 1), (self.until, per_s))
            rows.total(0, (self.holds[i], self.fewest), (self.alone[own], -1), (self.reduced[own], -1))
        every = np.tile(self.fewest, len(self.gpus))
        rows.total(2 * blocks, (self.holds.ravel(), 2 * every), (self.reduced, -1))

    def _add_work(self) -> None:
        """What nodes work by A, and all of them with their messages."""
        rows, load = self.rows, self.load
        whole = load.blocks + load.ends
        rows.total(-whole * (1 - ROUNDING), (self.work, -1))
        rows.total(self.late, (self.late_of, 1), (self.apart, -whole))
        rows.total(self.late_of_all, (self.late_of, 1))
        for i, speed in enumerate(self.speed):
            own = slice(i, i + 1)
            rows.total(self.late_at[i], (self.late_of[own], 1))
            rows.total(-speed * self.fill_s, (self.work[own], 1), (self.late_of[own], -1), (self.until, -speed))
        every, count = float(self.speed.sum()), len(self.nodes)
        network = [(one.hop_bytes_per_s, one.latency_s) for one in self.nodes]
        there_s, back_s = (np.array([size / rate + delay for rate, delay in network]) for size in load.hop_bytes)
        least_s = (whole - self.late_of_all) / every + self.fill_s
        rows.total(-least_s, (self.until, -1))
        idle = self.slowest * (least_s - self.fill_s) - whole
        gone = float(self.gpus.sum()) * count * float(back_s.max()) / self.total
        half = self.slowest * (there_s + back_s) / 2
        for late, least_idle in ((self.late, idle), (self.late_of_all, max(0.0, idle))):
            rows.total(
                late + self.slowest * gone - every * self.fill_s,
                (self.work, 1),
                (self.out, half),
                (self.into, half),
                (self.apart, least_idle - self.slowest * count * float(there_s.max())),
                (self.until, -every),
            )
