"""What the networks of nodes allow: a linear programme that every plan of two pipelines or more satisfies.

Links are fast inside nodes and slow between them, so a plan that holds more of the model in each node sends less from
stage to stage and more between pipelines. `roofline` lets each stage have the best link to itself; here all that stands
in a node shares its network. Symbols are those of `roofline`: T when the plan ends, A when all gradients may begin, D
pipelines; pipeline p has S_p stages and does m_p micro-batches; node i sends and receives U_i bytes/s at most.

1. Every block's ring has a stage of each pipeline, so no block is reduced before each pipeline has done what comes
   before the last backward of any of its stages: A, the most of that over pipelines. With `roofline`'s m = k S + n, 1
   <= n <= S, micro-batch k S begins after k C and goes down to the end before its gradient is at any stage, so A >= k C
   + F, F = sum (f_s + u_s). Where F >= phi C that makes S A >= M_p C with M_p = (m_p - S_p)+ + phi min(m_p, S_p)
   micro-batches; they add up to all micro-batches less (1 - phi) S_p of each pipeline, or more. And each stage has done
   all its forwards by then, and m - S backwards: A >= M_p w_s.
2. Before the last backward of any stage all activations have crossed each link, one after another, and one of them all
   others: m_p times a message's time are A at most, less the rest of the way. A node's messages share its network in
   fixed parts, so the mean of that over its flows is what all take one after another: X_i messages, the mean of those
   that leave a node and those that enter it, have no more bytes than U_i times what is left of A. Z_i: as many
   gradients on the way back, which nothing bounds so: the last may cross a link after A. Unless a node has all blocks,
   the visits that work on one of its blocks all leave it, or all enter it (those that begin there have the blocks
   before, those that end there the blocks after): so W_i is g_i times the most messages at most.
3. A message takes as long as its sender needs, and its receiver: half of each may be counted, with latencies.
4. V_s times T >= m w_s, for all stages of all pipelines: sum over s in i of V_s T >= W_i, the blocks that node i works
   in all micro-batches. With V_s - w times that, and w times A >= M_p w_s: sum of ((V_s - w) T + w A) >= W_i, where M_p
   micro-batches count of each pipeline. With S A >= M_p C instead, which is of whole pipelines: the sum over all nodes
   is at least that of W_i and of w times the time of all messages. (Not node by node: a stage works while its messages
   travel.) In GPipe only the first holds: all may work at once.
5. Node i holds g_i blocks, so W_i <= g_i Y_i, Y_i the micro-batches that visit it; each visit but a micro-batch's first
   enters and each but its last leaves: sum X_i >= sum Y_i - M, M those of all pipelines, and sum Z_i too.
6. A block on K > 1 nodes takes 2 (K - 1) / K times its bytes B out of each. A stage reduces its groups one after
   another, and a node's stages share its network in fixed parts, so that on the mean over its flows T - A is at least
   what all of them take: q_i = the sum over its blocks of 2 (1 - 1 / K) <= U_i (T - A) / B. With K = 2 or more that is
   g_i or more; K = 1 says that all pipelines visit the node. And sum q_i = 2 (sum g_i - L).
7. The stages of D pipelines hold D L blocks in all, and a node's GPUs are no fewer than its stages.

A time is possible if for some A there are nodes enough for every number of blocks g. Of a range of A the upper end
counts where A helps, and the lower end where T - A does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import coo_array

from hetsched.bound.node_classes import NodeClass
from hetsched.cluster import Floats, Indices

HALVINGS = 4  # of A's range
MOST_SIZES = 24  # numbers of blocks that are told apart
SOLVED, INFEASIBLE = 0, 2  # what `milp` says of a programme
ROUNDING = 1e-7


@dataclass(frozen=True, slots=True)
class Load:
    """What plans of one setting must do.

    blocks: L; ends: embedding and head, as so many; micro_batches: all of them; hop_bytes: of a message forwards, and
    back; block_bytes: B; phi: see the module; gpipe: whether that is the schedule, not 1F1B.
    """

    blocks: int
    ends: float
    micro_batches: int
    hop_bytes: tuple[float, float]
    block_bytes: float
    phi: float
    gpipe: bool


class NodeNetworks:
    """The programme of plans of one setting and one class of speeds, whose slowest team does `slowest` blocks a second.

    forward_s: the least of a block.
    """

    def __init__(self, classes: Sequence[NodeClass], load: Load, slowest: float, forward_s: float) -> None:
        self.classes, self.load, self.slowest = classes, load, slowest
        self._through_s = load.blocks * forward_s
        self._in_rounds = load.micro_batches - (1 - load.phi) * sum(c.count * c.gpus for c in classes)
        self._excluded: dict[int, float] = {}  # by number of pipelines, the latest end that is

    def allow(self, end_s: float, replicas: int) -> bool:
        """Whether they do not exclude that a plan of so many pipelines (two at least), or more, ends by `end_s`.

        Of A's range halves are looked at in turn, and halves of those that are not excluded.
        """
        if end_s <= self._excluded.get(replicas, 0.0):
            return False
        left = [(0.0, end_s, 0)]
        while left:
            low_s, high_s, depth = left.pop()
            if self._allow(end_s, low_s, high_s, replicas):
                if depth == HALVINGS:
                    return True
                middle_s = (low_s + high_s) / 2
                left += [(low_s, middle_s, depth + 1), (middle_s, high_s, depth + 1)]
        self._excluded[replicas] = end_s
        return False

    def _allow(self, end_s: float, low_s: float, high_s: float, replicas: int) -> bool:
        """The same where A is between two times: with blocks that only one node has, or without."""
        for some_alone in (False, True):
            holders = self._holders(end_s - low_s, some_alone)
            if not len(holders.number) or not self._possible(holders, end_s, high_s, replicas, False):
                continue
            if self.load.gpipe or self._in_rounds <= 0 or self._possible(holders, end_s, high_s, replicas, True):
                return True
        return False

    def _holders(self, reduce_s: float, some_alone: bool) -> "_Holders":
        """Where gradients take `reduce_s` at most; some_alone: if some node has blocks that no other has."""
        fewest, most = _sizes(self.load.blocks)
        number, size, alone = (at.ravel() for at in np.indices((len(self.classes), len(fewest), 1 + some_alone)))
        limit = np.array([c.ring_bytes_per_s for c in self.classes])[number] * reduce_s / self.load.block_bytes
        kept = (alone == 1) | (fewest[size] <= limit * (1 + ROUNDING))
        return _Holders(number[kept], fewest[size[kept]], most[size[kept]], limit[kept], alone[kept] == 1)

    def _possible(self, holders: "_Holders", end_s: float, begin_s: float, replicas: int, in_rounds: bool) -> bool:
        """Whether nodes enough do all the work; begin_s: A. in_rounds: 4 with messages, and M_p of each pipeline."""
        load, number, most, fewest = self.load, holders.number, holders.most, holders.fewest
        blocks, ends, alone_s = load.blocks, load.ends, begin_s if in_rounds else end_s
        total = self._in_rounds if in_rounds else load.micro_batches
        table = np.array(
            [(c.capacity(end_s, alone_s, self.slowest), c.hop_bytes_per_s, c.latency_s, c.gpus) for c in self.classes]
        )
        capacity, hop_bytes_per_s, latency_s, gpus = table[number].T
        there_s, back_s = (size / hop_bytes_per_s for size in load.hop_bytes)
        others = max(0, math.ceil(blocks / most.max()) - 2)  # messages between nodes on the rest of the way
        left_s = begin_s - self._through_s - others * float((there_s + latency_s).min())
        sends = max(0.0, left_s) / (there_s * total)
        # visits, messages and work are in shares of all micro-batches
        nodes, visits, work, extra, sent, returned, alone = (np.arange(len(number)) + k * len(number) for k in range(7))
        rows = _Rows(7 * len(number))
        rows.each((work, 1), (visits, -most), (extra, -1))
        some = np.flatnonzero(most < blocks)
        rows.each((work[some], 1), (extra[some], -1), (nodes[some], -(most * sends)[some]))
        rows.each((extra, 1), (visits, -ends))
        slow = self.slowest if in_rounds else 0.0
        messages = [(sent, slow * (there_s + latency_s)), (returned, slow * (back_s + latency_s))]
        rows.each((work, 1), (nodes, -capacity / total))
        rows.total(0.0, (work, 1), *messages, (nodes, -capacity / total))
        rows.each((sent, 1), (nodes, -sends))
        rows.each((sent, 1), (visits, -1))
        rows.each((returned, 1), (visits, -1))
        rows.each((nodes, np.where(holders.alone, fewest - holders.limit, 0)), (alone, -1))
        rows.each((alone, 1), (work, -1))
        rows.each((nodes, 1 * holders.alone), (visits, -1))
        rows.each((alone, 1), (nodes, -np.where(holders.alone, most, 0)))
        for k, one in enumerate(self.classes):
            rows.total(one.count, (nodes, number == k))
        rows.total(ends, (extra, 1))
        rows.total(1, (visits, 1), (sent, -1))
        rows.total(1, (visits, 1), (returned, -1))
        rows.total(blocks, (alone, 1))
        rows.total(2 * blocks, (nodes, 2 * fewest - holders.limit))
        rows.total(-replicas * blocks, (nodes, -gpus * most))
        if holders.alone.any():
            rows.total(-1, (nodes, -1 * holders.alone))
        return rows.most(work) >= (blocks + ends) * (1 - ROUNDING)


@dataclass(frozen=True, slots=True)
class _Holders:
    """Nodes of a class (`number`) that hold from `fewest` to `most` blocks, some of them `alone`; all (n,).

    limit: blocks of which they can reduce the gradients.
    """

    number: Indices
    fewest: Floats
    most: Floats
    limit: Floats
    alone: NDArray[np.bool_]


Values = Floats | Indices | NDArray[np.bool_] | float


class _Rows:
    """Rows of a linear programme: coefficients times variables, none of them negative, add up to a limit at most."""

    def __init__(self, variables: int) -> None:
        self._variables = variables
        self._rows: list[Indices] = []
        self._columns: list[Indices] = []
        self._values: list[Floats] = []
        self._limits: list[float] = []

    def each(self, *terms: tuple[Indices, Values]) -> None:
        """A row for each position of the terms' variables, with limit 0."""
        count = len(terms[0][0])
        for columns, values in terms:
            self._add(len(self._limits) + np.arange(count), columns, values)
        self._limits += [0.0] * count

    def total(self, limit: float, *terms: tuple[Indices, Values]) -> None:
        """One row that adds up all."""
        for columns, values in terms:
            self._add(np.full(len(columns), len(self._limits)), columns, values)
        self._limits.append(limit)

    def _add(self, rows: Indices, columns: Indices, values: Values) -> None:
        self._rows.append(rows)
        self._columns.append(columns)
        self._values.append(np.broadcast_to(np.asarray(values, dtype=np.float64), len(columns)))

    def most(self, variables: Indices) -> float:
        """The most that these can add up to; -inf where nothing keeps all rows, inf where the solver does not know."""
        at = np.concatenate(self._rows), np.concatenate(self._columns)
        shape = len(self._limits), self._variables
        matrix = coo_array((np.concatenate(self._values), at), shape=shape).tocsr()
        wanted = np.zeros(self._variables)
        wanted[variables] = -1
        found = milp(wanted, constraints=LinearConstraint(matrix, ub=self._limits))
        if found.status == SOLVED:
            return -float(found.fun or 0.0)
        return -np.inf if found.status == INFEASIBLE else np.inf


def _sizes(blocks: int) -> tuple[Floats, Floats]:
    """The fewest and the most blocks of numbers that are not told apart."""
    edges = np.arange(1, blocks + 2)
    if blocks > MOST_SIZES:
        edges = np.unique(np.round(np.geomspace(1, blocks + 1, MOST_SIZES + 1)).astype(np.intp))
    return edges[:-1].astype(np.float64), edges[1:].astype(np.float64) - 1
