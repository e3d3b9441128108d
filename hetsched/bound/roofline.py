"""A lower bound under `roofline`: no plan that fits has a shorter iteration.

Plans are told apart by what they fix for all pipelines (micro-batch size, schedule, recompute, ZeRO), by the class of
their slowest team (`speed_levels`), and by D, how many pipelines they have. For each such cell, `Cell.possible` says
whether what follows leaves room for a plan that ends by T. The bound is the largest T found, by bisection, at which it
leaves none in any cell: every plan is in a cell, so none ends by T.

A pipeline has S stages and does m micro-batches. Stage s holds l_s blocks (L in all), and works f_s + b_s = w_s a
micro-batch; a message takes u_s to the next stage, and d_s back. C = sum w_s + H, H = sum (u_s + d_s). E_s is when the
stage ends its last backward; after it come all-reduces and the optimiser's step, q_s in all, so T >= E_s + q_s.
V_s >= w is the team's best speed in blocks a second, w the class's slowest, so V_s w_s >= l_s, and summed over a
pipeline sum V_s w_s >= L' = L + what embedding and head count as blocks.

1. E_s >= m w_s: all its work.
2. In 1F1B stage 0 begins forward i + S after backward i, and from forward i until backward i at least C goes by. Take
   i = 0, S, 2 S, ...: k = ceil(m / S) such rounds follow one another. After the last, stage s still has
   r = (m - 1) mod S backwards to do: E_s >= k C - sum_{j < s} (b_j + d_j) + r b_s.
3. Add up (V_s - w) times 1 and w times 2, over s. k S = m + S - 1 - r, and (S - 1 - r) sum w_s >= (S - 1 - r) sum b_s
   outweighs what of the b_j is taken away (at most S - 1 of each, r + S - 1 - r are added). Each d_j keeps a factor of
   at least 1, so the least hops may stand for all:
       T V >= m (L' + w H) - w sum_j (S - 1 - j) d_j + w sum q_s,      V = sum V_s.
   In GPipe stage s ends all forwards, and the last micro-batch's goes to the end, before the first gradient returns:
   E_s >= m w_s + sum_j f_j - f_s + sum u_j + sum_{j >= s} d_j, so with weights V_s on m w_s and w on the rest
       T V >= m L' + w ((S - 1) sum f_j + S sum u_j + sum_j (j + 1) d_j) + w sum q_s,
   and a link carries m messages there before any back: T >= m (busy there + busy back).
4. All-reduces. A stage of B bytes of gradients, in groups of one block or more, takes at least a + c B: the least time
   is concave in the bytes, so it is above the chord from one block to all. So sum q_s >= S a + c (all bytes), and a
   tied embedding counts on the first and the last stage. ZeRO 3's gathers are half such times, or more, before each
   forward and each backward.
5. A tied embedding comes last, and stage 0 ends its backwards last, E_0 >= m w_s for all s and E_0 >= (m / S) C: so
   (T - its all-reduce - that of one block) V >= m (L' + w H), and T less these is C or more in both schedules.
6. Parts (regions; or nodes). Call a block's group local where all its members stand in one part, and let K parts have
   local blocks. K = 0: all are reduced across parts. Else z is the share of blocks that are not local, each part among
   the K has D seats or more, and every pipeline visits them all: at least K - 1 of its hops go across. By 1 on the
   seats of local blocks, T V_K >= (1 - z) (M L + w D c (bytes of all blocks)), V_K of the K fastest parts, M
   micro-batches in all; which says how small z can be. K = 1: pipelines and blocks both leave the
   part for all its devices can't do.
   However that be, S stages in parts of at most n devices go across ceil(S / n) - 1 times.
7. Together: 3 and 5 say m <= g(S, V), linear in V, which lies between w S and the fastest team's speed times S. The
   pipelines' V add up to at most that of all devices, so for any price x >= 0
       M <= x V_all + D max over S and V of (g(S, V) - x V).
   Some prices are tried; a cell where this fails has no plan.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.links import Reach, reaches
from hetsched.bound.parts import Parts
from hetsched.bound.room import Room
from hetsched.bound.speeds import SpeedLevel, speed_levels
from hetsched.cluster import Floats
from hetsched.cost.memory import hidden_bytes
from hetsched.cost.traffic import compressed_bytes
from hetsched.plan import Options
from hetsched.problem import Problem
from hetsched.workload import TrainingJob

Flags = NDArray[np.bool_]
PRICES = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)  # of what a block a second brings where links are free
ACCURACY = 1e-3
GROWTH = 1.5
SLACK = 1e-9
LONGEST_S = 1e12


class Cell:
    """Plans of one setting and one class of speeds, for every number of pipelines that fits: `replicas`, (n,)."""

    def __init__(
        self,
        problem: Problem,
        job: TrainingJob,
        options: Options,
        level: SpeedLevel,
        memory_fraction: float,
        divisions: Sequence[Reach],
    ) -> None:
        model, choices, cluster = problem.model, problem.choices, problem.cluster
        self.job, self.options, self.level, self.blocks = job, options, level, model.num_layers
        self.micro_batches = -(-job.global_batch // job.micro_batch)
        devices = int((level.device > 0).sum())
        replicas = np.arange(1, min(devices, self.micro_batches) + 1, dtype=np.float64)
        stages = np.arange(1, min(self.blocks, devices) + 1, dtype=np.float64)
        if choices.replicas is not None:
            replicas = replicas[replicas == choices.replicas]
        if choices.stages is not None:
            stages = stages[stages == choices.stages]
        fewest = Room(cluster, model, job, options, level, memory_fraction, replicas).fewest_devices()
        self.replicas, self.stages = replicas[np.isfinite(fewest)], stages
        room = Room(cluster, model, job, options, level, memory_fraction, self.replicas)
        self.most_micro_batches = room.most_micro_batches(stages)
        self.fewest_stages = fewest[np.isfinite(fewest)] / level.degree.max()
        wide, bits = job.dtype_bytes, options.compression
        hidden = hidden_bytes(model, job)
        self.hop_bytes = (
            compressed_bytes(hidden, wide, bits.activation_bits),
            compressed_bytes(hidden, wide, bits.activation_grad_bits),
        )
        each = compressed_bytes(float(wide), wide, bits.grad_bits)
        self.block_bytes = model.block_parameters * each
        self.all_bytes = (model.parameters - model.tied_parameters) * each
        self.tied_bytes = model.tied_parameters * each
        at_node = np.asarray(np.bincount(cluster.node_of, weights=level.device), dtype=np.float64)
        self.parts = [
            Parts(reach, self.replicas, self.hop_bytes, (self.block_bytes, self.all_bytes, self.tied_bytes), at_node)
            for reach in (divisions if len(self.replicas) else ())
        ]

    @property
    def least_s(self) -> float:
        """Computing alone, by all devices."""
        return self.micro_batches * self.blocks / float(self.level.device.sum())

    def possible(self, end_s: float, among: Flags) -> Flags:
        """(n,): which numbers of pipelines, of those `among`, are not excluded from ending by `end_s`."""
        for parts in self.parts:
            left = np.zeros_like(among)
            for local in parts.cases(self.blocks):
                at = np.flatnonzero(among & ~left)
                if len(at):
                    left[at] = self._case(parts, end_s, at, local)
            among = left
        return among

    def _case(self, parts: Parts, end_s: float, at: NDArray[np.intp], local: int) -> Flags:
        """(len(at),): the same where `local` parts have local blocks."""
        level, stages, total = self.level, self.stages[None, :], self.micro_batches
        slow, replicas = level.slowest, self.replicas[at]
        latency, per_byte, across, outside, allowed = self._spread(parts, end_s, at, local)
        crossing = np.minimum(np.maximum(local - 1, np.ceil(stages / parts.largest) - 1), stages - 1)
        near, far = parts.near, parts.far
        there = near.forward_s * (stages - 1) + (far.forward_s - near.forward_s) * crossing
        back = near.backward_s * (stages - 1) + (far.backward_s - near.backward_s) * crossing
        positions = near.backward_s * stages * (stages - 1) / 2
        work = np.full((len(at), 1), self.blocks + level.extra_blocks)
        if self.options.zero == 3:
            work = work + (slow * parts.local_per_byte[at] * self.all_bytes)[:, None]
        if self.options.schedule == "1f1b":
            each = work + slow * (there + back)
            once = -slow * (positions + (far.backward_s - near.backward_s) * crossing * (stages - 1))
            extra_hop_s = far.forward_s + far.backward_s - near.forward_s - near.backward_s
            wanted = total * (1 + outside * slow * extra_hop_s / each.max(axis=1))
        else:
            each = work + 0 * stages
            once = slow * ((stages - 1) * self.blocks * level.forward_s + stages * there + positions)
            wanted = np.full(len(at), float(total))
        volume = per_byte * self.block_bytes * self.blocks + across * (self.all_bytes - self.block_bytes * self.blocks)
        update_s = self.blocks * level.update_s / (replicas if self.options.zero else np.ones_like(replicas))
        reduce_s = stages * latency[:, None] + volume[:, None]
        valid = (stages > local - 1) & (stages >= self.fewest_stages[at][:, None])
        found = np.zeros(len(at), dtype=np.bool_)
        for deep, tied in ((True, parts.tied_deep[at][:, None]), (False, parts.tied_any[at][:, None])):
            after_s = reduce_s + np.where(stages > 1, 2, 1) * tied + update_s[:, None]
            last_s = (
                np.where(stages > 1, (latency + parts.local_per_byte[at] * self.block_bytes)[:, None], reduce_s) + tied
            )
            round_s = work / level.team + there + back
            counts, speeds = [], (slow * stages, level.team * stages)
            for speed in speeds:
                count = np.minimum((end_s * speed - slow * after_s - once) / each, (end_s - last_s) * speed / each)
                if self.options.schedule == "gpipe":
                    busy_s = far.busy_s if local > 1 else near.busy_s
                    count = np.where((stages > 1) & (busy_s > 0), np.minimum(count, end_s / max(busy_s, 1e-30)), count)
                count = np.minimum(count, self.most_micro_batches[at])
                usable = (
                    valid
                    & (count >= 1 - SLACK)
                    & ((stages > 1) | (not deep))
                    & (end_s - last_s >= round_s * (1 - SLACK))
                )
                counts.append(np.where(usable, count, -np.inf))
            here = self._room_for(counts, speeds, end_s / each, replicas) >= wanted * (1 - SLACK)
            if not deep:  # some pipeline has one stage
                here &= (counts[1][:, self.stages == 1] >= 1 - SLACK).any(axis=1)
            found |= here
        return found & allowed

    def _room_for(self, counts: list[Floats], speeds: tuple[Floats, Floats], gain: Floats, replicas: Floats) -> Floats:
        """(n,): the most micro-batches of all pipelines together (7); counts: (n, S) at least and at most speed."""
        every = float(self.level.device.sum())
        usual = np.clip(every / replicas / self.level.team, self.stages.min(), self.stages.max())
        column = np.minimum(np.searchsorted(self.stages, usual), len(self.stages) - 1)
        gain = np.broadcast_to(gain, counts[0].shape)[np.arange(len(replicas)), column]
        most = np.full(len(replicas), np.inf)
        for share in PRICES:
            price = (share * gain)[:, None]
            best = np.maximum(*((c - price * s).max(axis=1) for c, s in zip(counts, speeds, strict=True)))
            most = np.minimum(most, price[:, 0] * every + replicas * best)
        return most

    def _spread(
        self, parts: Parts, end_s: float, at: NDArray[np.intp], local: int
    ) -> tuple[Floats, Floats, Floats, Floats, Flags]:
        """What 6 says of `local` parts: seconds a stage and a byte of blocks, a byte of embedding and head; the share
        of work that is outside where it is one part; and where there can be so many.
        """
        nothing = np.zeros(len(at))
        if not local:
            per_byte = parts.across_per_byte[at]
            return parts.across_s[at], per_byte, per_byte, nothing, np.isfinite(per_byte)
        per_byte, further = parts.local_per_byte[at], parts.across_per_byte[at]
        speed, there_are = parts.fastest(self.replicas[at], local)
        computing = float(self.micro_batches * self.blocks)
        reducing = self.level.slowest * self.replicas[at] * per_byte * self.block_bytes * self.blocks
        split = np.maximum(0.0, 1 - end_s * speed / (computing + reducing))
        outside = np.maximum(0.0, 1 - end_s * speed / computing) if local == 1 else nothing
        split = np.maximum(split, outside)
        if not parts.several:
            return parts.local_s[at], per_byte, per_byte, nothing, there_are & (split <= 0)
        mixed = per_byte + np.where(split > 0, split * (further - per_byte), 0.0)
        return parts.local_s[at], mixed, per_byte, outside, there_are


def cells_of(problem: Problem, memory_fraction: float) -> Iterator[Cell]:
    """The cells of all plans. ZeRO 2 takes no more time than 0 and 1, and less memory."""
    choices = problem.choices
    zeros = (2, 3) if choices.zero is None else (choices.zero,)
    recomputes = (False, True) if choices.recompute is None else (choices.recompute,)
    divisions = reaches(problem.cluster)
    for size, recompute in product(problem.micro_batches, recomputes):
        job = TrainingJob(problem.job.global_batch, problem.job.seq_len, size, problem.job.dtype)
        for level in speed_levels(problem.cluster, problem.model, job, recompute):
            for schedule, zero in product(problem.schedules, zeros):
                options = Options(schedule, recompute, zero, choices.compression)
                cell = Cell(problem, job, options, level, memory_fraction, divisions)
                if len(cell.replicas) and len(cell.stages):
                    yield cell


def roofline_bound_s(problem: Problem, memory_fraction: float) -> tuple[float, str]:
    """Seconds, and what binds; infinity where no plan fits."""
    left = [(cell, np.ones(len(cell.replicas), dtype=np.bool_)) for cell in cells_of(problem, memory_fraction)]
    if not left:
        return np.inf, "no plan fits the memory"
    low = min(cell.least_s for cell, _ in left) * (1 - SLACK)
    high = low * GROWTH
    least = low
    while not (found := _possible(left, high)):
        low, high = high, high * GROWTH
        if high > LONGEST_S:
            return np.inf, "no plan of this shape fits"
    left = found
    while high > low * (1 + ACCURACY):
        middle = (low + high) / 2
        if found := _possible(left, middle):
            left, high = found, middle
        else:
            low = middle
    return low, _because(left, low, least)


def _possible(left: list[tuple[Cell, Flags]], end_s: float) -> list[tuple[Cell, Flags]]:
    found = [(cell, cell.possible(end_s, among)) for cell, among in left]
    return [(cell, among) for cell, among in found if among.any()]


def _because(left: list[tuple[Cell, Flags]], bound_s: float, least_s: float) -> str:
    if least_s >= 0.9 * bound_s:
        return "all GPUs together compute that long"
    cell, among = left[0]
    number = int(cell.replicas[among][0])
    pipelines = f"{number} pipeline{'s' * (number > 1)} of micro-batches of {cell.job.micro_batch}"
    return f"computing takes {least_s:.3g} s on all GPUs; the rest is what {pipelines} send over the fastest links"
