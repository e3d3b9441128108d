"""What one division of a cluster into parts says of plans: hops and all-reduces inside parts and between them."""

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.links import Hop, Reach
from hetsched.bound.sizes import MessageSizes
from hetsched.cluster import Floats

NO_HOP = Hop(0.0, 0.0, 0.0)


class Parts:
    """The least seconds by number of pipelines, (n,), for a division of the nodes.

    every, lean, rings, tied: the division's links, for hops of any pipeline and of lean ones, for rings of blocks, and
    for that of a tied embedding. hops: of any kind and between parts, of any pipeline; and of lean ones. An all-reduce
    of a stage takes at least `local_s` and `local_per_byte` where its members are in one part or not, `across_s` and
    `across_per_byte` where they are in several. tied_s: that of the tied embedding, where (some pipeline has one stage,
    all its members are in one part).
    """

    def __init__(
        self,
        every: Reach,
        lean: Reach,
        rings: Reach,
        tied: Reach,
        replicas: Floats,
        sizes: MessageSizes,
        node_speed: Floats,
    ) -> None:
        self.several = len(every.part_sizes) > 1
        self.largest = float(every.part_sizes.max())
        self.hops = _hops(every, sizes), _hops(lean, sizes)
        local_s, local_per_byte = _chord(rings, False, replicas, sizes.block, sizes.whole)
        self.across_s, self.across_per_byte = _chord(rings, True, replicas, sizes.block, sizes.whole)
        self.local_s = np.minimum(local_s, self.across_s)
        self.local_per_byte = np.minimum(local_per_byte, self.across_per_byte)
        self.tied_s = {
            (single, home): tied.ring_s(not home, replicas if single else 2 * replicas, sizes.tied)
            if sizes.tied
            else np.zeros_like(replicas)
            for single in (False, True)
            for home in (False, True)
        }
        speed = np.bincount(every.part, weights=node_speed)
        order = np.argsort(-speed)
        self.speed, self.sizes = speed[order], every.part_sizes[order]

    def fastest(self, replicas: Floats, local: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_]]:
        """Blocks a second of the fastest parts that hold a device for each pipeline; whether there are so many.

        local: the fewest and the most.
        """
        large = self.sizes[None, :] >= replicas[:, None]
        speeds = np.sort(np.where(large, self.speed[None, :], 0.0), axis=1)[:, ::-1]
        return speeds[:, : local[1]].sum(axis=1), large.sum(axis=1) >= local[0]


def _hops(reach: Reach, sizes: MessageSizes) -> tuple[Hop, Hop]:
    within, far = reach.hop(False, *sizes.hop), reach.hop(True, *sizes.hop)
    far = far or within or NO_HOP
    within = within or far
    near = Hop(
        min(within.forward_s, far.forward_s), min(within.backward_s, far.backward_s), min(within.busy_s, far.busy_s)
    )
    return near, far


def _chord(reach: Reach, across: bool, members: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """a and c of a + c · bytes, which no all-reduce of `low` to `high` bytes takes less than; inf where there is none.

    The least time is a minimum of straight lines in the bytes, so concave: above its chord.
    """
    least, most = reach.ring_s(across, members, low), reach.ring_s(across, members, high)
    none = ~np.isfinite(least)
    least, most = np.where(none, 0.0, least), np.where(none, 0.0, most)
    per_byte = (most - least) / (high - low) if high > low else least / low
    return np.where(none, np.inf, np.maximum(least - per_byte * low, 0.0)), np.where(none, np.inf, per_byte)
