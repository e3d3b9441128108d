"""What the networks of nodes allow: a linear programme that every plan satisfies.

Links are fast inside nodes and slow between them, so a plan that holds more of the model in each node sends less from
stage to stage and more between pipelines. `roofline` lets each stage have the best link to itself; here all that stands
in a node shares its network. Symbols are those of `roofline`: T when the plan ends, A when all gradients may begin, D
pipelines; pipeline p has S_p stages and does m_p micro-batches; node i sends and receives U_i bytes/s at most.

1. Every block's ring has a stage of each pipeline, so no block is reduced before each pipeline has done what comes
   before the last backward of any of its stages: A, the most of that over pipelines. With `roofline`'s m = k S + n, 1
   <= n <= S, micro-batch k S begins after k C and goes down to the end before its gradient is at any stage, so A >= k C
   + F, F = sum (f_s + u_s). Where F >= phi C that makes S A >= M_p C with M_p = (m_p - S_p)+ + phi min(m_p, S_p)
   micro-batches; they add up to all micro-batches less (1 - phi) S_p of each pipeline, or more. And stage s has done
   all its forwards by then, and m - S + s backwards: A >= (m_p - (1 - phi) (S_p - s)) w_s, which is M_p w_s or more.
2. Before the last backward of any stage all activations have crossed each link, one after another, and one of them all
   others: m_p times a message's time are A at most, less the rest of the way. A node's messages share its network in
   fixed parts: where F flows of activations leave it, and B enter it, one of s bytes and a flows takes s F / (U_i a) or
   more to leave, s B / (U_i a) to enter. So what all take one after another, X_i messages, the mean of those that leave
   a node and those that enter it, have no more bytes than U_i times what is left of A. Z_i: as many gradients on the
   way back, which nothing bounds so: the last may cross a link after A. Unless a node has all blocks, the visits that
   work on one of its blocks all leave it, or all enter it (those that begin there have the blocks before, those that
   end there the blocks after): so W_i is g_i times the most messages at most.
3. A message takes as long as its sender needs, and its receiver: half of each may be counted, with latencies.
4. A >= M_p w_s, for all stages of all pipelines: sum over s in i of V_s A >= W_i, the blocks that node i works in all
   micro-batches, where M_p micro-batches count of each pipeline. With V_s - w times that, and w times S A >= M_p C,
   which is of whole pipelines: the sum over all nodes is at least that of W_i and of w times the time of all messages.
   (Not node by node: a stage works while its messages travel.) Where all micro-batches count, V_s T >= m w_s alone
   holds, and in 1F1B V_s A >= m w_s less (1 - phi) (S_p - s) V_s w_s, of which all nodes together have (1 - phi) S_p
   times the model of each pipeline at most. In GPipe only T and all micro-batches hold: all may work at once.
5. Node i holds g_i blocks, so W_i <= g_i Y_i, Y_i the micro-batches that visit it; each visit but a micro-batch's first
   enters and each but its last leaves: sum X_i >= sum Y_i - M, M those of all pipelines, and sum Z_i too.
6. A block on K > 1 nodes takes 2 (K - 1) / K times its bytes B out of each. A stage reduces its groups one after
   another, so those that are under way at once have no stage in common; and each has of a node's network its part of
   the most flows that such groups ever make, so that all of them together never have more than U_i: q_i = the sum over
   its blocks of 2 (1 - 1 / K) <= U_i (T - A) / B. With K = 2 or more that is g_i or more, and K is the number of nodes
   at most; K = 1 says that all pipelines visit the node, which has a GPU for each. And sum q_i = 2 (sum g_i - L).
7. The stages of D pipelines hold D L blocks in all, and a node's GPUs are no fewer than its stages. Where D = 1 every
   block has K = 1, and A may be T.
8. In 1F1B with m_p >= S_p activations and gradients cross: a message keeps its link for what it takes alone, r times
   over what it takes among both kinds more, where r = s' / s, s' the bytes of a gradient. As many gradients leave a
   node as activations enter it, on as many flows, so among both kinds that is s (F + B) / (U_i a) or more both ways;
   where r <= 1 one keeps a link that leaves for (s F + s' B) / (U_i a), one that enters for (s B + s' F) / (U_i a). The
   last is there when it has taken what it takes alone, so with t for what is left of A
       (m_p - 1) (s F + s' B) + s F <= a U_i t, added up over the F flows that leave: O messages,
       O <= F U_i t / (s F + s' B) + F s' B / (s F + s' B),
   and so for those that enter. x / (s' + (s - s') x) is concave, so F / (s F + s' B) + B / (s B + s' F) is at most
   2 / (s + s'); and what is added is n_i in all at most, as F <= n_i and B <= n_i, the GPUs of the node:
       X_i <= U_i t / (s + s') + n_i / 2.
   One GPU has at most one message each way, and both are on the way of the last micro-batch: there nothing is added.
   Pipelines of fewer micro-batches than stages are apart: of theirs 2 alone holds. Their S_p - 1 or fewer micro-batches
   take up S_p GPUs, which other pipelines lack; and T >= C, so all their messages there and back, with all blocks once
   a micro-batch, take T times their micro-batches at most.
9. In GPipe a pipeline's backwards begin when all its forwards have ended, so stage s reduces nothing before m_p w_s.
   Let stages a of a node have V_a = x_a V_i, sum x_a <= 1, and begin to reduce at e_a = max(A, m w_a) or later, which
   is e = min(T, A / phi) at most. Let b be the one with the least e_b: from then on the node sends, as in 6. So
       W_i / V_i + q_i B / U_i <= sum x_a e_a + T - e_b <= T + (1 - x_b) (e - A),
   and x_b is d or more, the share of V_i that a GPU adds at least. A node of one GPU that lacks a block
   has one stage, with a link to another node which carries all forwards, then all backwards: (s + s') Y_i / U_i + q_i B
   / U_i <= T.

A time is possible if for some A there are nodes enough for every number of blocks g. Of a range of A, A times the
nodes with g blocks, which makes all rows linear, is a variable between both ends of it times these nodes.
"""

from collections.abc import Sequence

import numpy as np

from hetsched.bound.node_classes import NodeClass
from hetsched.bound.node_rows import ROUNDING, Holders, Load, Range, Setting, all_at_once, in_rounds
from hetsched.bound.verdicts import Verdicts
from hetsched.cluster import Floats

HALVINGS = 3
MOST_SIZES = 24  # numbers of blocks that are told apart


class NodeNetworks:
    """The programme of plans of one setting and one class of speeds, whose slowest team does `slowest` blocks a second.

    block_s: the least of a block's forward, and of both passes.
    """

    def __init__(self, classes: Sequence[NodeClass], load: Load, slowest: float, block_s: tuple[float, float]) -> None:
        self.setting = Setting(load, tuple(classes), slowest, *block_s)
        self._verdicts = Verdicts()  # by number of pipelines

    def allow(self, end_s: float, replicas: int) -> bool:
        """Whether they do not exclude that a plan ends by `end_s` which has one pipeline, or so many or more."""
        return self._verdicts.of(replicas, end_s, lambda: self._allow(end_s, replicas))

    def _allow(self, end_s: float, replicas: int) -> bool:
        """The same: of A's range halves are looked at in turn, and halves of those that are not excluded."""
        left = [(0.0, end_s, 0 if replicas > 1 else HALVINGS)]
        while left:
            low_s, high_s, depth = left.pop()
            if self._allow_from(end_s, (low_s, high_s), replicas):
                if depth == HALVINGS:
                    return True
                middle_s = (low_s + high_s) / 2
                left += [(low_s, middle_s, depth + 1), (middle_s, high_s, depth + 1)]
        return False

    def _allow_from(self, end_s: float, begin: Range, replicas: int) -> bool:
        """The same where A is in a range: with blocks that only one node has, or without."""
        setting = self.setting
        for some_alone in (False, True):
            holders = self._holders(end_s - begin[0], some_alone, replicas)
            if not len(holders.number) or (some_alone and not holders.alone.any()):
                continue
            if not all_at_once(setting, holders, end_s, begin, replicas):
                continue
            if setting.load.gpipe or setting.in_rounds <= 0 or in_rounds(setting, holders, end_s, begin, replicas):
                return True
        return False

    def _holders(self, reduce_s: float, some_alone: bool, replicas: int) -> Holders:
        """Where gradients take `reduce_s` at most; some_alone: if some node has blocks that no other has."""
        classes, load = self.setting.classes, self.setting.load
        fewest, most = _sizes(load.blocks)
        number, size, alone = (at.ravel() for at in np.indices((len(classes), len(fewest), 1 + some_alone)))
        reduced = np.array([c.ring_bytes_per_s for c in classes])[number] * reduce_s / load.block_bytes
        room = np.array([c.gpus for c in classes])[number] >= replicas
        kept = np.where(alone == 1, room, fewest[size] <= reduced * (1 + ROUNDING))
        return Holders(number[kept], fewest[size[kept]], most[size[kept]], alone[kept] == 1)


def _sizes(blocks: int) -> tuple[Floats, Floats]:
    """The fewest and the most blocks of numbers that are not told apart."""
    edges = np.arange(1, blocks + 2)
    if blocks > MOST_SIZES:
        edges = np.unique(np.round(np.geomspace(1, blocks + 1, MOST_SIZES + 1)).astype(np.intp))
    return edges[:-1].astype(np.float64), edges[1:].astype(np.float64) - 1
