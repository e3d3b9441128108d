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
   late_i is the sum of l_s (1 + (1 - phi) (min(r, m) - 1)): `late` says how much that is at most.
2. Pipelines of m <= S (apart) have Y of N micro-batches at most. For them 1 counts no messages; but V (A - F_0) is w m
   (A - F_0) or more: by A they have worked m L' of that, but for what is late of theirs, and that is all that they work
   at most. So either none of it counts as late, and m (w (A - F_0) - L') as idle, which may be below 0; or all of it,
   and nothing below 0.
3. A micro-batch that visits a node leaves it or ends there, and enters it or begins there; where the node lacks a block
   it does either. W_i <= g_i Y_i. All messages of pipelines not apart are what 8 of `nodes` allows, twice over.
4. A block is alone (K = 1), and all micro-batches visit its node; or it has K >= 2: with a_i blocks of node i alone,
       sum (g_i - a_i) >= 2 (L - sum a_i).
   Take one such block of each node that has any. The first of these blocks is on the head, the last on the tail, which
   may be one node. All micro-batches leave the head, enter the tail, and do both in the nodes between.
   These two blocks divide the others into those before, between and after. What another node works in two of these
   parts it does in two visits: between them each micro-batch is on the head or the tail. So is it with what the tail
   works before, and the head after; all else that they work may be in the visit of that block, which micro-batches
   leave, and enter, but those that end in the tail, or begin in the head. Visits of a part leave and enter too, but
   those before that begin there, and those after that end there. So a node has V_0 + V_1 + V_2 messages in, and as many
   out, of visits of its parts, but these, and one more a micro-batch each way where it is head or tail, but these. All
   visits before of other nodes are of micro-batches that enter the head, all after of such as leave the tail. There are
   none between where head and tail are one, and three exits and three entries of a micro-batch in a node at most.
   A node that is neither works g_i max(V_0, V_1, V_2) at most: what it holds in each part times V of it.
   Where no block is alone all is one part, and embedding and head are reduced in two nodes each, or more.
5. Node i sends q_i B bytes or more after A, as in 6 of `nodes`. D pipelines have D L blocks on their stages, of which
   node i has at most g_i in each, and in no more than its GPUs.
6. With ZeRO 3 each pass gathers a stage's weights first. That is half an all-reduce, so a half of a block's bytes or
   more go over the stage's own link, which gives each of its t GPUs `Links.gathering` at most: both passes of a block
   take a team, times t, its bytes over that more. f_s is no smaller part of w_s than before. Embedding and head are
   left out.
"""

from functools import cache

import numpy as np

from hetsched.bound.few_node_rows import FewNodeRows
from hetsched.bound.late import Late, Most
from hetsched.bound.node_rows import Setting
from hetsched.bound.verdicts import Verdicts

MOST_NODES = 6


class FewNodes:
    """The programmes of plans of one setting; seats: what stages have room for.

    ends_bytes: of the gradients of embedding and head; gather_s: GPU seconds that a block of several pipelines takes
    more for ZeRO 3.
    """

    def __init__(self, setting: Setting, ends_bytes: float, gather_s: float, late: Late) -> None:
        self.setting, self.seats, self._ends_bytes = setting, late.seats, ends_bytes
        self._gathering = setting.with_gathers(gather_s)
        self._late = cache(late.most)
        self._gathers = gather_s > 0
        self._verdicts = Verdicts()

    def allow(self, end_s: float, replicas: int, roughly: bool = False) -> bool:
        """Whether it does not exclude that a plan ends by `end_s` of a number of pipelines from this one on.

        replicas: one of `Setting.fewest_pipelines`; up to the next. roughly: as a linear programme.
        """
        return self._verdicts.of((replicas, roughly), end_s, lambda: self._allow(end_s, replicas, roughly))

    def _allow(self, end_s: float, replicas: int, roughly: bool) -> bool:
        late = self.late(replicas)
        setting = self._gathering if replicas > 1 else self.setting
        return late is not None and FewNodeRows(setting, self._ends_bytes, end_s, replicas, late).has_plan(roughly)

    def late(self, replicas: int) -> Most | None:
        """See `Late`, of a number of pipelines from this one on."""
        upto = min([start for start in self.setting.fewest_pipelines if start > replicas], default=np.inf)
        return self._late(replicas, upto, wasting=not (self._gathers and replicas > 1))
