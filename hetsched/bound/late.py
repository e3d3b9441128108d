"""What the backwards that come late in 1F1B add up to at most, as a linear programme of positions and memory.

Symbols are those of `few_nodes`. Of what a stage works that stands at r = S - s and holds l blocks, with embedding and
head counted in, l (1 + (1 - phi) (min(r, m) - 1)) may come after A.

1. D pipelines of m >= S have one stage at most at each r, and if so one at each r before it, and one at 1. On a team
   of t GPUs of one kind it keeps r micro-batches of activations of each block, the last stage logits too: it holds c
   whole blocks at most, as in `seats`, and one at least. With n <= D pipelines, x stages at r on teams of a kind and
   size, z their blocks:
       x <= z <= c x,  sum of z = L n,  sum x at 1 = n,  at r > 1 <= that at r - 1,  sum t x <= the GPUs of each kind,
   and late are (1 + (1 - phi) (r - 1)) z. Embedding and head are so once a pipeline, and 1 - phi times for each stage
   that others follow, N - D at most. Neighbouring r far from the end are one place: the least leaves most room, the
   greatest is latest; and of such places the stages for each r become fewer from one to the next.
2. Of pipelines of m < S no more can come late than they work in all: m L'.
3. Each block takes its states and min(r, m) times its activations on its stage: so the memory of a node's devices
   bounds what of its own is late, and that of all what is late in all, of which D L' are in the first 1 of each.
4. A team that is slower than its GPUs could be apart wastes that: its node has as much less than V_i, A - F_0 long,
   that is the team's waste v or more. Late blocks that are y <= y' leave max(0, y - v) <= (1 - v / y')+ y, and so many
   count. A - F_0 is what all do less what is late by 3, over V, or more.
"""

from dataclasses import dataclass

import numpy as np

from hetsched.bound.node_rows import Load
from hetsched.bound.programme import Rows
from hetsched.bound.seats import Seats
from hetsched.cluster import Floats

ROUNDING = 1e-6
TOGETHER = 1.25  # up to so many times as many pipelines are not told apart


@dataclass(frozen=True, eq=False)
class Most:
    """What is late at most, in blocks: of pipelines of m >= S, of all, and (nodes,) of all on each."""

    deep: float
    every: float
    of_node: Floats


@dataclass(frozen=True, eq=False)
class Late:
    """The most that may be late, in blocks; node_bytes: (nodes,) that are free on the GPUs of each.

    blocks_per_s: V.
    """

    seats: Seats
    load: Load
    node_bytes: Floats
    blocks_per_s: float

    def most(self, fewest: float, upto: float, wasting: bool = True) -> Most | None:
        """Of any number of pipelines in a range; None where there is none. wasting: whether 4 holds."""
        room, load = self.seats.room, self.load
        within = (room.replicas >= fewest) & (room.replicas < upto)
        if not within.any():
            return None
        replicas = room.replicas[within]
        of_node, every = self._of_nodes(replicas), float(self._of_all(replicas).max())
        least_s = (load.micro_batches * (load.blocks + load.ends) - every) / self.blocks_per_s
        first, last, deep = int(replicas.min()), int(replicas.max()), 0.0
        while first <= last:
            together = min(last, max(first, int(first * TOGETHER)))
            deep = max(deep, self._by_position(first, together, least_s if wasting else 0.0))
            first = together + 1
        return Most(min(deep, every), every, of_node)

    def _of_nodes(self, replicas: Floats) -> Floats:
        """(nodes,): by 3."""
        room, load, phi = self.seats.room, self.load, self.load.stage_phi
        states = room.model.block_parameters * room.parameter[replicas.astype(np.intp) - 1] / room.activation
        alike = np.maximum(phi - (1 - phi) * states, 0.0) * replicas * load.blocks
        found: Floats = (1 - phi) * self.node_bytes / room.activation + alike.max() + (len(room.usable) + 1) * load.ends
        return found

    def _of_all(self, replicas: Floats) -> Floats:
        """(len(replicas),): by 3."""
        room, load, phi = self.seats.room, self.load, self.load.stage_phi
        followed = np.maximum(len(room.usable) - replicas, 0.0)
        states = replicas * room.model.parameters * room.parameter[replicas.astype(np.intp) - 1]
        kept = (room.usable.sum() - states) / room.activation
        behind = np.minimum(followed * load.blocks, np.maximum(kept - replicas * load.blocks, 0.0))
        found: Floats = replicas * (load.blocks + load.ends) + (1 - phi) * (behind + followed * load.ends)
        return found

    def _by_position(self, fewest: int, most: int, least_s: float) -> float:
        """By 1 and 4, where pipelines are from `fewest` to `most`, and A - F_0 is `least_s` or more."""
        seats, load, phi = self.seats, self.load, self.load.stage_phi
        wide, rows, fits = len(seats.places), Rows(), seats.fits(most)
        place, team = np.nonzero(fits >= 1)
        pipelines, stages, held = rows.new(1), rows.new(len(place)), rows.new(len(place))
        rows.each((held, 1), (stages, -np.minimum(fits[place, team], load.blocks)))
        rows.each((stages, 1), (held, -1))
        rows.total(most, (pipelines, 1))
        rows.total(0, (pipelines, 1), (stages[place == 0], -1))
        rows.total(0, (held, 1), (pipelines, -load.blocks))
        rows.total(0, (held, -1), (pipelines, load.blocks))
        for at in range(wide):
            own, before = stages[place == at], stages[place == at - 1]
            rows.total(0, (own, 1), (pipelines, -seats.widths[at]))
            if at:
                rows.total(0, (own, 1), (before, -seats.widths[at] / seats.widths[at - 1]))
        for gpu, (_, count) in seats.kinds.items():
            rows.total(count, (stages, (seats.degrees * seats.own[gpu])[team]))
        times = 1 + (1 - phi) * (seats.places + seats.widths - 2)
        own = times[place] * np.minimum(fits[place, team], load.blocks)
        counts = np.maximum(0.0, 1 - seats.wastes[team] * least_s / own)
        found = rows.most((held, times[place] * counts), (pipelines, load.ends))
        followed = max(0, len(seats.room.usable) - fewest)
        return (max(0.0, found) + (1 - phi) * followed * load.ends) * (1 + ROUNDING)
