"""What few nodes allow in 1F1B: an integer programme that every plan satisfies, which tells all nodes apart.

Symbols are those of `nodes`, and what it proves holds here: of few nodes each holds a whole number of blocks, and what
a node does can be said by itself. M micro-batches, N GPUs; r = S - s says where a stage stands, from the end; A is when
the last stages of all pipelines have ended their backwards, which those before them do later; F, U and D' are the
seconds of a micro-batch's forwards, and of all its messages there and back. W_i: blocks that node i works in all
micro-batches; Y_i: micro-batches that visit it, O_i that leave it, I_i that enter it, each counted once.

1. A stage that starts its last forward has m - r backwards behind it, and after it the forward goes to the end:
       A >= F + U + (m - 1) f_s + (m - r)+ b_s.
   With m = k S + n, k >= 1, forward k S begins after k C, and stage s has n forwards and n - 1 backwards to do until
   its last forward ends: A >= k C + F + U + (n - 1) w_s; the mean over all stages is
       S A >= (m - 1) sum w_s + S F + m U + (m - S) D'.
   F is at least F_0, the model's on the fastest team. So V_s (A - F_0) >= l_s (m - 1 - (1 - phi) (min(r, m) - 1)): sum
   over s in i of V_s (A - F_0) >= W_i - late_i, and with V_s - w times the first and w times the second, summed up,
       V (A - F_0) >= sum W_i - sum late_i + w (messages there and back, but the first min(S, m) of those back).
   late_i is the sum of l_s (1 + (1 - phi) (min(r, m) - 1)), in all D L' of the first. There are N - D stages at most
   that others follow; and each block takes its states and min(r, m) times its activations on its stage, so the memory
   of all devices bounds the sum too, as that of a node's bounds its own.
2. Pipelines of m <= S (apart) have Y of N micro-batches at most. For them 1 counts no messages; but V (A - F_0) is w m
   (A - F_0) or more, of which they use m L'.
3. A micro-batch that visits a node leaves it or ends there, and enters it or begins there; where the node lacks a block
   it does either. W_i <= g_i Y_i. O_i + I_i, of pipelines not apart, is what 8 of `nodes` allows, twice over.
4. A block is alone (K = 1), and all micro-batches visit its node; or it has K >= 2: with a_i blocks of node i alone,
       sum (g_i - a_i) >= 2 (L - sum a_i).
   Take one such block of each node that has any. All micro-batches leave the first of these nodes, enter the last, and
   do both in those between. Where no block is alone, embedding and head are reduced in two nodes each, or more.
5. Node i sends q_i B bytes or more after A, as in 6 of `nodes`. D pipelines have D L blocks on their stages, of which
   node i has at most g_i in each, and in no more than its GPUs.
"""

from dataclasses import dataclass

import numpy as np

from hetsched.bound.node_rows import Load, Setting
from hetsched.bound.programme import Rows
from hetsched.bound.room import Room
from hetsched.bound.verdicts import Verdicts
from hetsched.cluster import Floats

MOST_NODES = 6
MOST_SIZES = 32  # numbers of blocks that are told apart
ROUNDING = 1e-6
SEARCHED = 2000  # nodes of the search tree


@dataclass(frozen=True, eq=False)
class Late:
    """What `late` of 1 adds up to at most, in blocks, by number of pipelines: `replicas`, (n,).

    blocks: (n,) of all nodes; of_node: (nodes, n).
    """

    replicas: Floats
    blocks: Floats
    of_node: Floats

    @classmethod
    def of(cls, room: Room, load: Load, node_bytes: Floats) -> "Late":
        """For `room.replicas`, where (nodes,) bytes are free on the GPUs of each."""
        replicas, whole, phi = room.replicas, load.blocks + load.ends, load.stage_phi
        followed = np.maximum(len(room.usable) - replicas, 0.0)
        kept = (room.usable.sum() - replicas * room.model.parameters * room.parameter) / room.activation
        behind = np.minimum(followed * load.blocks, np.maximum(kept - replicas * load.blocks, 0.0))
        every = replicas * whole + (1 - phi) * (behind + followed * load.ends)
        states = room.model.block_parameters * room.parameter / room.activation  # of a block
        alike = np.maximum(phi - (1 - phi) * states, 0.0) * replicas * load.blocks
        ends = (len(room.usable) + 1) * load.ends
        return cls(replicas, every, (1 - phi) * node_bytes[:, None] / room.activation + alike + ends)

    def most(self, fewest: float, upto: float) -> tuple[float, Floats]:
        """Of any number of pipelines in a range, all nodes and (nodes,) each; -inf where there is none."""
        within = (self.replicas >= fewest) & (self.replicas < upto)
        return float(self.blocks[within].max(initial=-np.inf)), self.of_node[:, within].max(axis=1, initial=-np.inf)


class FewNodes:
    """The programme of plans of one setting; ends_bytes: of the gradients of embedding and head."""

    def __init__(self, setting: Setting, ends_bytes: float, late: Late) -> None:
        self.setting, self.ends_bytes, self.late = setting, ends_bytes, late
        self.nodes, self.load, self.slowest = setting.nodes, setting.load, setting.slowest
        self.fill_s = self.load.blocks * setting.forward_s
        self._verdicts = Verdicts()

    def allow(self, end_s: float, replicas: int) -> bool:
        """Whether it does not exclude that a plan ends by `end_s` of a number of pipelines from this one on.

        replicas: one of `Setting.fewest_pipelines`; up to the next.
        """
        return self._verdicts.of(replicas, end_s, lambda: self._allow(end_s, replicas))

    def _allow(self, end_s: float, replicas: int) -> bool:
        upto = min([start for start in self.setting.fewest_pipelines if start > replicas], default=np.inf)
        late = self.late.most(replicas, upto)
        return late[0] > -np.inf and _Programme(self, end_s, replicas, late).has_plan()


class _Programme:
    """Its rows; visits, messages and work are in shares of all micro-batches."""

    def __init__(self, few: FewNodes, end_s: float, replicas: int, late: tuple[float, Floats]) -> None:
        load, nodes, count = few.load, few.nodes, len(few.nodes)
        self.few, self.load, self.end_s, self.replicas = few, load, end_s, replicas
        self.total = float(load.micro_batches)
        self.late, self.late_at = late[0] / self.total, late[1] / self.total
        edges = np.unique(np.round(np.linspace(1, load.blocks + 1, min(load.blocks, MOST_SIZES) + 1)))
        self.fewest, self.most = edges[:-1], edges[1:] - 1
        self.speed = np.array([one.blocks_per_s for one in nodes]) / self.total
        self.gpus = np.array([one.gpus for one in nodes], dtype=np.float64)
        rows = self.rows = Rows()
        self.holds = rows.new(count * len(self.most)).reshape(count, -1)  # whether a node has so many blocks
        self.first, self.middle, self.last = (rows.new(count) for _ in range(3))  # of nodes with some alone
        self.whole = self.holds.size + 3 * count
        self.seen = rows.new(self.holds.size).reshape(count, -1)
        self.work, self.extra, self.alone, self.reduced, self.late_of = (rows.new(count) for _ in range(5))
        self.out, self.into, self.begin, self.end, self.more = (rows.new(count) for _ in range(5))
        self.until, self.apart = rows.new(1), rows.new(1)
        self._add_blocks()
        self._add_alone()
        self._add_visits()
        self._add_reductions()
        self._add_work()

    def has_plan(self) -> bool:
        """Whether it has a solution, as far as is known."""
        return self.rows.kept(self.whole, SEARCHED)

    def _add_blocks(self) -> None:
        """How many blocks nodes hold; of like nodes the first the most."""
        rows, blocks, nodes = self.rows, self.load.blocks, self.few.nodes
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
        rows, kinds = self.rows, (self.first, self.middle, self.last)
        some = [(kind, 1.0) for kind in kinds]
        seen = self.seen.shape[1]
        most = np.minimum(self.load.blocks, self.speed * (self.end_s - self.few.fill_s) + self.late_at)
        rows.each((self.alone, 1), *((kind, -most) for kind in kinds))
        rows.each((self.alone, 1), (self.work, -1))
        rows.total(self.load.blocks, (self.alone, 1))
        for i, visits in enumerate(self.seen):
            here = [(kind[i : i + 1], 1.0) for kind in kinds]
            rows.total(1, *here)
            rows.total(0, *here, (visits, -np.ones(seen)))
            rows.total(0, (self.middle[i : i + 1], 1), (self.last[i : i + 1], 1), (self.into[i : i + 1], -1))
            rows.total(0, (self.middle[i : i + 1], 1), (self.out[i : i + 1], -1))
            rows.total(1, (self.first[i : i + 1], 1), (self.last, 1), (self.out[i : i + 1], -1))
            if self.gpus[i] < self.replicas:
                rows.total(0, *here)
        rows.total(1, (self.first, 1))
        rows.total(1, (self.last, 1))
        rows.total(0, (self.last, 1), (self.first, -1))
        if self.replicas > 1 and self.few.ends_bytes:
            ends = 2 * self.few.ends_bytes / self.load.block_bytes
            rows.total(-ends, (self.more, -1), *((kind, -ends) for kind, _ in some))

    def _add_visits(self) -> None:
        """What micro-batches visit, and their messages."""
        rows, load = self.rows, self.load
        there, back = load.hop_bytes
        rows.each((self.seen.ravel(), 1), (self.holds.ravel(), -1))
        for kind in (self.begin, self.end):
            rows.total(1, (kind, 1))
        slower = (there + back) / 2 if back <= there else there / 2
        some = self.most < load.blocks
        for i, one in enumerate(self.few.nodes):
            own = slice(i, i + 1)
            visits = (self.seen[i], 1)
            rows.total(0, visits, (self.out[own], -1), (self.end[own], -1))
            rows.total(0, visits, (self.into[own], -1), (self.begin[own], -1))
            rows.total(0, (self.begin[own], 1), (self.seen[i], -1))
            rows.total(0, (self.end[own], 1), (self.seen[i], -1))
            rows.total(0, (self.seen[i][some], 1), (self.out[own], -1), (self.into[own], -1))
            rows.total(0, (self.work[own], 1), (self.extra[own], -1), (self.seen[i], -self.most))
            rows.total(0, (self.extra[own], 1), (self.seen[i], -load.ends))
            per_s = one.hop_bytes_per_s / slower / self.total
            crossing = self.gpus[i] / self.total - per_s * self.few.fill_s
            sent = (self.out[own], 1), (self.into[own], 1)
            rows.total(crossing, *sent, (self.until, -per_s), (self.apart, -2))
        rows.total(load.ends, (self.extra, 1))
        rows.total(float(self.gpus.sum()) / self.total, (self.apart, 1))

    def _add_reductions(self) -> None:
        """What nodes send after A."""
        rows, blocks = self.rows, self.load.blocks
        rows.total(self.end_s, (self.until, 1))
        for i, one in enumerate(self.few.nodes):
            own, per_s = slice(i, i + 1), one.ring_bytes_per_s / self.load.block_bytes
            rows.total(per_s * self.end_s, (self.reduced[own], 1), (self.more[own], 1), (self.until, per_s))
            rows.total(0, (self.holds[i], self.fewest), (self.alone[own], -1), (self.reduced[own], -1))
        every = np.tile(self.fewest, len(self.gpus))
        rows.total(2 * blocks, (self.holds.ravel(), 2 * every), (self.reduced, -1))

    def _add_work(self) -> None:
        """What nodes work by A, and all of them with their messages."""
        rows, load, few = self.rows, self.load, self.few
        whole = load.blocks + load.ends
        rows.total(-whole * (1 - ROUNDING), (self.work, -1))
        rows.total(self.late, (self.late_of, 1))
        for i, speed in enumerate(self.speed):
            own = slice(i, i + 1)
            rows.total(self.late_at[i], (self.late_of[own], 1))
            rows.total(-speed * few.fill_s, (self.work[own], 1), (self.late_of[own], -1), (self.until, -speed))
        every, most_left = float(self.speed.sum()), len(few.nodes)
        network = [(one.hop_bytes_per_s, one.latency_s) for one in few.nodes]
        there_s, back_s = (np.array([size / rate + delay for rate, delay in network]) for size in load.hop_bytes)
        least_s = (whole - self.late) / every + few.fill_s
        rows.total(-least_s, (self.until, -1))
        idle = max(0.0, few.slowest * (least_s - few.fill_s) - whole)
        gone = float(self.gpus.sum()) * most_left * float(back_s.max()) / self.total
        half = few.slowest * (there_s + back_s) / 2
        rows.total(
            self.late + few.slowest * gone - every * few.fill_s,
            (self.work, 1),
            (self.out, half),
            (self.into, half),
            (self.apart, idle - few.slowest * most_left * float(there_s.max())),
            (self.until, -every),
        )
