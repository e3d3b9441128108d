"""Cells of plans that are told apart by what they fix for all pipelines, and what of them can end by a time.

The proofs, with the numbers that stand here, are in `roofline`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.capacity import SLACK, Kind, Line, can_do
from hetsched.bound.few_nodes import FewNodes
from hetsched.bound.kin import Kin
from hetsched.bound.links import Reach
from hetsched.bound.node_rows import Setting
from hetsched.bound.nodes import NodeNetworks
from hetsched.bound.parts import Parts
from hetsched.bound.rounds import Blocks, Reductions, Way, most_in_rounds
from hetsched.bound.speeds import Case, Make
from hetsched.bound.spread import (
    Burden,
    Chain,
    Holding,
    Places,
    Spread,
    holdings,
    narrower,
    nests_of,
    spread_of,
    ways_of,
)
from hetsched.cluster import Floats

ALIKE = 0.1  # logarithm of seconds

Flags = NDArray[np.bool_]
Divided = Callable[[int], Sequence[Reach]]  # each division's links, where one of two teams has so many GPUs at most


class Cell:
    """Plans of one setting and one class of speeds, for every number of pipelines that fits: `replicas`, (n,)."""

    def __init__(
        self,
        kin: Kin,
        case: Case,
        divided: Divided,
        networks: NodeNetworks | None,
        few: FewNodes | None,
    ) -> None:
        job, options, level, sizes = kin.job, kin.options, kin.level, kin.sizes
        model, choices, cluster = kin.problem.model, kin.problem.choices, kin.problem.cluster
        self.job, self.options, self.level, self.blocks = job, options, level, model.num_layers
        self.micro_batches = kin.micro_batches
        devices = int((level.device > 0).sum())
        most = max(self.micro_batches, kin.problem.most_replicas(job.micro_batch))
        replicas = np.arange(1, min(devices, most) + 1, dtype=np.float64)
        stages = np.arange(1, min(self.blocks, devices) + 1, dtype=np.float64)
        if choices.replicas is not None:
            replicas = replicas[replicas == choices.replicas]
        if choices.stages is not None:
            stages = stages[stages == choices.stages]
        fewest = kin.room(replicas).fewest_devices()
        self.replicas, self.stages = replicas[np.isfinite(fewest)], stages
        self.most_micro_batches = kin.room(self.replicas).most_micro_batches(stages)
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
        self.networks, self.few = networks, few
        coarser = [parts for parts in self.parts[1:] if parts.several and len(parts.sizes) < len(self.parts[0].sizes)]
        coarser.sort(key=lambda parts: len(parts.sizes))
        self.nested = [*coarser[::2], self.parts[0]] if coarser else []  # with all it takes twice as long, to no gain
        self._known: dict[tuple[Chain, bool], tuple[Floats, Floats]] = {}

    @property
    def least_s(self) -> float:
        """Computing alone, by all devices."""
        return self.micro_batches * self.blocks / float(self.level.device.sum())

    @property
    def promise(self) -> tuple[int, int, float]:
        """Where this is less plans may end earlier: small micro-batches wait less."""
        return round(np.log(self.least_s) / ALIKE), self.job.micro_batch, self.least_s

    def blocks_of(self, make: Make) -> Blocks:
        """Blocks of pipelines of a make."""
        return Blocks(self.blocks, 1 / make.team, make.forward_s, make.backward_s, make.first, make.last)

    def possible(self, end_s: float, among: Flags, rounds: bool) -> Flags:
        """(n,): which numbers of pipelines, of those `among`, are not excluded from ending by `end_s`."""
        if end_s < self.least_s * (1 - SLACK):
            return np.zeros_like(among)
        if rounds and not self.few:
            among = self._networks_allow(end_s, among)
        for parts in self.parts:
            among = self._held((), [parts], end_s, among, rounds, rounds and parts not in self.nested)
        if rounds and self.nested:
            among = self._held((), self.nested, end_s, among, rounds, refine=True)
        return self._may_be_seated(end_s, among) if rounds else among

    def _may_be_seated(self, end_s: float, among: Flags) -> Flags:
        """The same by what stages have room for, and by nodes, up to the first group that has a number it allows."""
        if self.few is None:
            return among
        left = among.copy()
        for fewest, group in self._groups(among, self.few.setting):
            found = self._first_of(end_s, fewest, group)
            left[group if found is None else group[self.replicas[group] < found]] = False
            if found is not None:
                break
        return left

    def _first_of(self, end_s: float, fewest: int, group: Places) -> int | None:
        """The first number of pipelines of a group that is not excluded."""
        if self.few is None or not self.few.allow(end_s, fewest, roughly=True):
            return None
        found = self.few.seats.first(end_s, [int(number) for number in self.replicas[group]])
        if found is None or not self.few.allow(end_s, fewest):
            return None
        return found if self.networks is None or self.networks.allow(end_s, found) else None

    def _groups(self, among: Flags, setting: Setting) -> Iterator[tuple[int, Places]]:
        """Of each group of numbers that has some `among` them, the fewest pipelines and the places of these."""
        starts = setting.fewest_pipelines
        for fewest, most in zip(starts, (*starts[1:], np.inf), strict=True):
            group = np.flatnonzero(among & (self.replicas >= fewest) & (self.replicas < most))
            if len(group):
                yield fewest, group

    def _held(
        self, chain: Chain, finer: Sequence[Parts], end_s: float, among: Flags, rounds: bool, refine: bool
    ) -> Flags:
        """The same of plans that hold blocks as the chain says, and somehow in finer divisions; refine: also in halves.

        Whether one can end is looked at first where little is said of how.
        """
        if finer:
            holders = holdings(finer[0], self.blocks, self.sizes.tied > 0, chain)
            chains = [(*chain, holder) for holder in holders]
        else:
            chains = narrower(chain) if refine else []
            if not chains:
                return among
        left = np.zeros_like(among)
        for one in chains:
            found = self._tested(one, end_s, among & ~left, rounds)
            if found.any():
                left |= self._held(one, finer[1:], end_s, found, rounds, refine)
        return left

    def _tested(self, chain: Chain, end_s: float, among: Flags, rounds: bool) -> Flags:
        """The same as `_case`; what can't end by a time can't by an earlier one."""
        none = np.zeros(len(among)), np.full(len(among), np.inf)
        excluded, allowed = self._known.setdefault((chain, rounds), none)
        found = among & (allowed <= end_s)
        todo = np.flatnonzero(among & ~found & (excluded < end_s))
        if len(todo):
            possible = self._case(chain, end_s, todo, rounds)
            found[todo] = possible
            excluded[todo[~possible]] = end_s
            allowed[todo[possible]] = end_s
        return found

    def _networks_allow(self, end_s: float, among: Flags) -> Flags:
        """The same by what the networks of nodes allow."""
        if self.networks is None:
            return among
        left = among.copy()
        for _, group in self._groups(among, self.networks.setting):
            if not self.networks.allow(end_s, int(self.replicas[group[0]])):
                left[group] = False
        return left

    def _case(self, chain: Chain, end_s: float, at: Places, rounds: bool) -> Flags:
        """(len(at),): the same of plans that hold blocks as the chain says."""
        burden = Burden(self.blocks, self.sizes.block, self.micro_batches, self.level.slowest)
        spread = spread_of(chain, at, self.replicas[at], end_s, burden)
        found = np.zeros(len(at), dtype=np.bool_)
        for single in (False, True):
            tied_s = np.max([one.parts.tied_s[single, one.home][at] for one in chain], axis=0)
            todo = spread.allowed & np.isfinite(tied_s)
            if single:
                alone_s = spread.stage_s + spread.once_s + spread.per_byte * self.sizes.block * self.blocks + tied_s
                todo &= alone_s < end_s
            todo = np.flatnonzero(todo & ~found)
            if len(todo):
                tied = single, tied_s[todo]
                found[todo] = self._with_tied(chain, end_s, at[todo], spread.of(todo), tied, rounds)
        return found

    def _with_tied(
        self,
        chain: Chain,
        end_s: float,
        at: Places,
        spread: Spread,
        tied: tuple[bool, Floats],
        rounds: bool,
    ) -> Flags:
        """(len(at),): the same where some pipeline has one stage, or none."""
        single, tied_s = tied
        replicas, stages, level, wanted = self.replicas[at], self.stages, self.level, float(self.micro_batches)
        if single and any(one.some and one.local[0] > 1 for one in chain):
            return np.zeros(len(at), dtype=np.bool_)
        any_ways, lean_ways = (ways_of(chain, stages, lean) for lean in (False, True))
        nests = nests_of(chain, replicas)
        kinds, ways = [], []
        for make in self.makes:
            for way, nest in any_ways if make.waste else lean_ways:
                kinds.append(self._kind(chain[-1], end_s, at, spread, (single, tied_s), way, make, nest))
                ways.append(way)
        found = can_do(kinds, stages, level, replicas, wanted, nests, single, roughly=True)
        if rounds and found.any():
            todo = np.flatnonzero(found)
            reductions = Reductions(
                spread.stage_s[todo],
                spread.least_per_byte[todo] * self.sizes.block,
                (spread.per_byte - spread.least_per_byte)[todo] * self.sizes.block * self.blocks + spread.once_s[todo],
                tied_s[todo],
            )
            kinds = [kind.of(todo) for kind in kinds]
            if self.options.schedule == "1f1b":
                kinds = self._in_rounds(end_s, kinds, ways, reductions)
            nests = [replace(nest, speed=nest.speed[todo]) for nest in nests]
            found[todo] = can_do(kinds, stages, level, replicas[todo], wanted, nests, single)
        return found

    def _in_rounds(
        self, end_s: float, kinds: Sequence[Kind], ways: Sequence[Way], reductions: Reductions
    ) -> list[Kind]:
        """These kinds, which go across in these ways, with no more micro-batches than rounds allow."""
        found = list(kinds)
        for make in self.makes:
            own = [k for k, kind in enumerate(kinds) if kind.make is make]
            caps = most_in_rounds(
                end_s, self.blocks_of(make), self.stages, [ways[k] for k in own], reductions, self.micro_batches
            )
            for k, cap in zip(own, caps, strict=True):
                found[k] = kinds[k].under(cap)
        return found

    def _kind(
        self,
        base: Holding,
        end_s: float,
        at: Places,
        spread: Spread,
        tied: tuple[bool, Floats],
        way: Way,
        make: Make,
        nest: int,
    ) -> Kind:
        """What one pipeline can do by 3 and 5 that goes across so; tied: if one may have one stage, and seconds."""
        (single, tied_s), stages, parts = tied, self.stages[None, :], base.parts
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
        volume = spread.once_s + volume + spread.least_per_byte * (self.sizes.whole - self.sizes.block * self.blocks)
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
        usable = (stages > base.local[0] - 1) & (stages >= self.fewest_stages[at][:, None])
        usable = usable & ((stages > 1) | single) & (end_s - last_s >= round_s * (1 - SLACK))
        if nest:
            usable = usable & (stages > 1)
        return Kind(lines, np.where(usable, cap, -np.inf), make, nest)
