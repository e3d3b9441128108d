"""Cells of plans that are told apart by what they fix for all pipelines, and what of them can end by a time.

The proofs, with the numbers that stand here, are in `roofline`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.capacity import FEW_PRICES, SLACK, Kind, Line, can_do
from hetsched.bound.few_nodes import FewNodes
from hetsched.bound.links import Hop, Reach
from hetsched.bound.nodes import NodeNetworks
from hetsched.bound.parts import Parts
from hetsched.bound.room import Room
from hetsched.bound.rounds import Blocks, Reductions, most_in_rounds
from hetsched.bound.seats import Seats
from hetsched.bound.sizes import MessageSizes
from hetsched.bound.speeds import Case, Make, SpeedLevel
from hetsched.cluster import Floats
from hetsched.plan import Options
from hetsched.problem import Problem
from hetsched.workload import TrainingJob

Flags = NDArray[np.bool_]
Divided = Callable[[int], Sequence[Reach]]  # each division's links, where one of two teams has so many GPUs at most


@dataclass(frozen=True, slots=True)
class Spread:
    """Over how many parts (`local`) blocks are spread that are local to one, by number of pipelines, (n,).

    stage_s: seconds a stage reduces, whatever its bytes; per_byte: more a byte of blocks, on average; least_per_byte:
    of any block; ends_per_byte: of embedding and head. allowed: where there can be so many.
    """

    local: int
    stage_s: Floats
    per_byte: Floats
    least_per_byte: Floats
    ends_per_byte: Floats
    allowed: Flags

    def or_else(self, other: "Spread") -> "Spread":
        """The same with the seconds of a coarser division where all-reduces take more by it."""
        more = other.least_per_byte > self.per_byte
        return replace(
            self,
            stage_s=np.where(more, other.stage_s, self.stage_s),
            per_byte=np.where(more, other.per_byte, self.per_byte),
            least_per_byte=np.where(more, other.least_per_byte, self.least_per_byte),
            ends_per_byte=np.where(more, other.ends_per_byte, self.ends_per_byte),
            allowed=self.allowed & other.allowed,
        )

    def of(self, at: NDArray[np.intp]) -> "Spread":
        """The same for some numbers of pipelines."""
        return Spread(
            self.local,
            self.stage_s[at],
            self.per_byte[at],
            self.least_per_byte[at],
            self.ends_per_byte[at],
            self.allowed[at],
        )


@dataclass(frozen=True, slots=True)
class Way:
    """How pipelines go across parts: at least so often, (S,); the hops inside a part and across."""

    crossing: Floats
    near: Hop
    far: Hop


Outer = tuple[Parts, int]  # a coarser division, and how many of its parts have local blocks


class Cell:
    """Plans of one setting and one class of speeds, for every number of pipelines that fits: `replicas`, (n,)."""

    def __init__(
        self,
        problem: Problem,
        job: TrainingJob,
        options: Options,
        level: SpeedLevel,
        memory_fraction: float,
        sizes: MessageSizes,
        case: Case,
        divided: Divided,
        networks: NodeNetworks | None,
        seats: Seats | None,
        few: FewNodes | None,
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
        self.sizes = sizes
        at_node = np.asarray(np.bincount(cluster.node_of, weights=level.device), dtype=np.float64)
        self.makes = case.makes
        widths = int(level.degree.max()), case.lean, case.rings, case.tied
        every, lean, rings, tied = map(divided, widths)
        self.parts = [
            Parts(*reaches, self.replicas, sizes, at_node)
            for reaches in (zip(every, lean, rings, tied, strict=True) if len(self.replicas) else ())
        ]
        self.networks, self.seats, self.few = networks, seats, few
        grouped = [parts for parts in self.parts[1:] if parts.several and len(parts.sizes) < len(self.parts[0].sizes)]
        self.outers = grouped

    @property
    def least_s(self) -> float:
        """Computing alone, by all devices."""
        return self.micro_batches * self.blocks / float(self.level.device.sum())

    def blocks_of(self, make: Make) -> Blocks:
        """Blocks of pipelines of a make."""
        return Blocks(self.blocks, 1 / make.team, make.forward_s, make.backward_s, make.first, make.last)

    def possible(self, end_s: float, among: Flags, rounds: bool) -> Flags:
        """(n,): which numbers of pipelines, of those `among`, are not excluded from ending by `end_s`."""
        if end_s < self.least_s * (1 - SLACK):
            return np.zeros_like(among)
        if rounds and not self.seats:
            among = self._networks_allow(end_s, among)
        for parts in self.parts:
            among = self._any_case(parts, end_s, among, rounds)
        for outer in self.outers if rounds else ():
            left = np.zeros_like(among)
            for local in outer.cases(self.blocks):
                at = np.flatnonzero(among & ~left)
                both = np.zeros_like(among)
                both[at] = self._case(outer, end_s, at, local, rounds)
                left |= self._any_case(self.parts[0], end_s, both, rounds, (outer, local))
            among = left
        return self._may_be_seated(end_s, among) if rounds and self.seats else among

    def _may_be_seated(self, end_s: float, among: Flags) -> Flags:
        """The same by what stages have room for, and by nodes; of each group one number at least is looked at."""
        if self.seats is None or self.few is None:
            return among
        left, starts = among.copy(), self.few.fewest_pipelines
        for fewest, most in zip(starts, (*starts[1:], np.inf), strict=True):
            group = np.flatnonzero(among & (self.replicas >= fewest) & (self.replicas < most))
            first = self.seats.first(end_s, [int(number) for number in self.replicas[group]])
            left[group if first is None else group[self.replicas[group] < first]] = False
        left = self._networks_allow(end_s, left)
        for fewest, most in zip(starts, (*starts[1:], np.inf), strict=True):
            group = np.flatnonzero(left & (self.replicas >= fewest) & (self.replicas < most))
            if len(group) and not self.few.allow(end_s, fewest):
                left[group] = False
        return left

    def _networks_allow(self, end_s: float, among: Flags) -> Flags:
        """The same by what the networks of nodes allow."""
        if self.networks:
            starts = self.networks.fewest_pipelines
            for fewest, most in zip(starts, (*starts[1:], np.inf), strict=True):
                group = among & (self.replicas >= fewest) & (self.replicas < most)
                if group.any() and not self.networks.allow(end_s, int(self.replicas[group][0])):
                    among = among & ~group
        return among

    def _any_case(self, parts: Parts, end_s: float, among: Flags, rounds: bool, outer: Outer | None = None) -> Flags:
        left = np.zeros_like(among)
        for local in parts.cases(self.blocks):
            at = np.flatnonzero(among & ~left)
            if len(at):
                left[at] = self._case(parts, end_s, at, local, rounds, outer)
        return left

    def _case(
        self,
        parts: Parts,
        end_s: float,
        at: NDArray[np.intp],
        local: int,
        rounds: bool,
        outer: Outer | None = None,
    ) -> Flags:
        """(len(at),): the same where `local` parts have local blocks; and so many of a coarser division's."""
        spread = self._spread(parts, end_s, at, local)
        if outer is not None:
            spread = spread.or_else(self._spread(outer[0], end_s, at, outer[1]))
        found = np.zeros(len(at), dtype=np.bool_)
        for single, home in product((False, True), (False, True)):
            tied_s = parts.tied_s[single, home][at]
            away = home and self.sizes.tied > 0
            if (
                (away and not local)
                or (home and not away)
                or (away and np.all(parts.tied_s[single, False][at] <= tied_s))
            ):
                continue
            todo = np.flatnonzero(~found & spread.allowed & np.isfinite(tied_s))
            if len(todo):
                tied = single, away, tied_s[todo]
                found[todo] = self._with_tied(parts, end_s, at[todo], spread.of(todo), tied, rounds, outer)
        return found

    def _ways(
        self, parts: Parts, at: NDArray[np.intp], local: int, home: bool, outer: Outer | None, lean: bool
    ) -> tuple[list[Way], list[Floats]]:
        """How pipelines go across, lean ones or any; and by 6 (K = 1), from the inside, the speeds of nested parts."""
        stages, replicas = self.stages, self.replicas[at]
        visits = local if home and local > 1 else local - 1
        least = np.minimum(np.maximum(np.ceil(stages / parts.largest) - 1, max(visits, 0)), stages - 1)
        near, far = parts.hops[lean]
        ways, nests = [Way(least, near, far)], []
        if local == 1 and parts.several:
            ways.append(Way(np.minimum(np.maximum(least, 1 + home), stages - 1), near, far))
            nests.append(parts.fastest(replicas, 1)[0])
        if outer is not None and outer[1] == 1:
            ways.append(Way(np.minimum(1.0 + home, stages - 1), near, outer[0].hops[lean][1]))
            nests.append(outer[0].fastest(replicas, 1)[0])
        return ways, nests

    def _with_tied(
        self,
        parts: Parts,
        end_s: float,
        at: NDArray[np.intp],
        spread: Spread,
        tied: tuple[bool, bool, Floats],
        rounds: bool,
        outer: Outer | None,
    ) -> Flags:
        """(len(at),): the same where (some pipeline has one stage, all begin and end in one part), or not."""
        single, home, tied_s = tied
        replicas, stages, level, wanted = self.replicas[at], self.stages, self.level, float(self.micro_batches)
        (any_ways, nests), (lean_ways, _) = (
            self._ways(parts, at, spread.local, home, outer, lean) for lean in (False, True)
        )
        kinds, ways = [], []
        for make in self.makes:
            for nest, way in enumerate(any_ways if make.waste else lean_ways):
                kinds.append(self._kind(parts, end_s, at, spread, (single, tied_s), way, make, nest))
                ways.append(way)
        found = can_do(kinds, stages, level, replicas, wanted, nests, single, FEW_PRICES)
        if rounds and found.any():
            todo = np.flatnonzero(found)
            reductions = Reductions(
                spread.stage_s[todo],
                spread.least_per_byte[todo] * self.sizes.block,
                (spread.per_byte - spread.least_per_byte)[todo] * self.sizes.block * self.blocks,
                tied_s[todo],
            )
            kinds = [kind.of(todo) for kind in kinds]
            if self.options.schedule == "1f1b":
                kinds = [
                    kind.under(
                        most_in_rounds(
                            end_s,
                            self.blocks_of(kind.make),
                            stages,
                            way.crossing,
                            (way.near, way.far),
                            reductions,
                            self.micro_batches,
                        )
                    )
                    for kind, way in zip(kinds, ways, strict=True)
                ]
            nests = [nest[todo] for nest in nests]
            found[todo] = can_do(kinds, stages, level, replicas[todo], wanted, nests, single)
        return found

    def _kind(
        self,
        parts: Parts,
        end_s: float,
        at: NDArray[np.intp],
        spread: Spread,
        tied: tuple[bool, Floats],
        way: Way,
        make: Make,
        nest: int,
    ) -> Kind:
        """What one pipeline can do by 3 and 5 that goes across so; tied: if one may have one stage, and seconds."""
        (single, tied_s), stages = tied, self.stages[None, :]
        slow, near, far, crossing = make.slowest, way.near, way.far, way.crossing
        there = near.forward_s * (stages - 1) + (far.forward_s - near.forward_s) * crossing
        back = near.backward_s * (stages - 1) + (far.backward_s - near.backward_s) * crossing
        positions = near.backward_s * stages * (stages - 1) / 2
        work = np.full((len(at), 1), self.blocks + make.first + make.last)
        if self.options.zero == 3:
            work = work + (slow * parts.local_per_byte[at] * self.sizes.whole)[:, None]
        if self.options.schedule == "1f1b":
            each = work + slow * (there + back)
            once = -slow * (positions + (far.backward_s - near.backward_s) * crossing * (stages - 1))
        else:
            each = work + 0 * stages
            once = slow * ((stages - 1) * self.blocks * make.forward_s + stages * there + positions)
        volume = spread.per_byte * self.sizes.block * self.blocks
        volume = volume + spread.ends_per_byte * (self.sizes.whole - self.sizes.block * self.blocks)
        peers = self.replicas[at] if self.options.zero else 1.0
        reduce_s = stages * spread.stage_s[:, None] + volume[:, None]
        after_s = reduce_s + np.where(stages > 1, 2, 1) * tied_s[:, None]
        after_s = after_s + np.broadcast_to(self.blocks * self.level.update_s / peers, (len(at),))[:, None]
        least_s = (spread.stage_s + parts.local_per_byte[at] * self.sizes.block)[:, None]
        last_s = np.where(stages > 1, least_s, reduce_s) + tied_s[:, None]
        round_s = work / make.team + there + back
        lines = [Line(-(slow * after_s + once) / each, end_s / each), Line(0 * each, (end_s - last_s) / each)]
        busy_s = np.where(crossing > 0, far.busy_s, near.busy_s)
        if self.options.schedule == "gpipe":
            lines.append(Line(1 + 0 * each, (end_s - last_s - round_s) / work))
        else:
            busy_s = busy_s / 2  # one way or the other takes half of both
        with np.errstate(divide="ignore", invalid="ignore"):
            linked = 1 + (end_s - last_s - round_s) / busy_s
        cap = np.minimum(self.most_micro_batches[at], np.where((stages > 1) & (busy_s > 0), linked, np.inf))
        usable = (stages > spread.local - 1) & (stages >= self.fewest_stages[at][:, None])
        usable = usable & ((stages > 1) | single) & (end_s - last_s >= round_s * (1 - SLACK))
        if nest:
            usable = usable & (stages > 1)
        return Kind(lines, np.where(usable, cap, -np.inf), make, nest)

    def _spread(self, parts: Parts, end_s: float, at: NDArray[np.intp], local: int) -> Spread:
        """What 6 says of `local` parts."""
        if not local:
            further = parts.across_per_byte[at]
            return Spread(local, parts.across_s[at], further, further, further, np.isfinite(further))
        per_byte, further = parts.local_per_byte[at], parts.across_per_byte[at]
        speed, there_are = parts.fastest(self.replicas[at], local)
        computing = float(self.micro_batches * self.blocks)
        reducing = self.level.slowest * self.replicas[at] * per_byte * self.sizes.block * self.blocks
        split = np.maximum(0.0, 1 - end_s * speed / (computing + reducing))
        if local == 1:
            split = np.maximum(split, 1 - end_s * speed / computing)
        if not parts.several:
            return Spread(local, parts.local_s[at], per_byte, per_byte, per_byte, there_are & (split <= 0))
        mixed = per_byte + np.where(split > 0, split * (further - per_byte), 0.0)
        return Spread(local, parts.local_s[at], mixed, per_byte, per_byte, there_are)
