"""What stages have room for in 1F1B, as a linear programme: whole blocks, memory by position, and time.

D pipelines are told apart by their micro-batches, m from m' to m'' in a group. Stage s of S stands at r = S - s from
the end; on a team of t GPUs of one kind, which does V blocks a second, it holds l blocks, a whole number:
1. It keeps min(r, m) micro-batches of activations of each, and the last stage logits too. `Room` says that this and the
   states are no more than what its GPUs have together.
2. It works m w_s by T, w_s >= l / V. And `few_nodes` says that its last forward ends after (m - 1) f_s + (m - r)+ b_s
   and the forwards of all stages but the m-th of its own; with the way back, T >= C + (m - 1) f_s + (m - r)+ b_s, where
   C is L blocks on the fastest team or more. So, too, between its first backward, which the way there and back to it
   comes before, and its last it has m - 1 backwards and (m - r)+ forwards to do: T >= C + (m - 1) b_s + (m - r)+ f_s.
So l is c at most, which is known of a group, r, and the team. Pipelines have one stage at each r at most, and L blocks.
Neighbouring r far from the end are one place: the least of them leaves most room, the greatest most time.
n_g pipelines of a group, x stages of its pipelines at r on teams of a kind and size are the variables, any numbers:
    sum over g of n_g = D,  of m'' n_g >= M;  sum c x >= L n_g;  sum x at r <= n_g;  sum t x <= the GPUs of each kind.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hetsched.bound.programme import Rows
from hetsched.bound.room import Room
from hetsched.bound.speeds import SpeedLevel
from hetsched.bound.verdicts import Verdicts
from hetsched.cluster import Floats, Gpu

FINE, COARSE = 1.2, 1.6  # how many times as many micro-batches pipelines of a group may do
NEAR = 2.5  # fine up to so many times the mean, from as much less
EVERY, PLACES = 20, 1.2  # places up to this are all told apart, beyond from one to so many times as much
ROUNDING = 1e-9


class Seats:
    """The programme of plans of one setting and one class of speeds.

    room: for every number of pipelines from 1 on; kinds: bytes that are free on each kind of GPU, and how many.
    """

    def __init__(self, level: SpeedLevel, room: Room, kinds: dict[Gpu, tuple[float, int]]) -> None:
        self.room, self.kinds, self.blocks = room, kinds, room.model.num_layers
        pairs = [pair for pair in zip(level.teams, level.wastes, strict=True) if pair[0].gpu in kinds]
        pairs.sort(key=lambda pair: pair[0].degree)
        self.teams, self.wastes = [team for team, _ in pairs], np.array([waste for _, waste in pairs])
        self.degrees = np.array([float(team.degree) for team in self.teams])
        self.free = np.array([team.degree * kinds[team.gpu][0] for team in self.teams])
        self.own = {gpu: np.array([team.gpu == gpu for team in self.teams]) for gpu in kinds}
        deepest = min(self.blocks, sum(count for _, count in kinds.values()))
        places = [1.0]
        while (last := places[-1]) <= deepest:
            places.append(last + 1 if last < EVERY else np.floor(last * PLACES))
        self.places, self.widths = np.array(places[:-1]), np.diff(places)
        self.way_s = self.blocks / level.team
        self._verdicts = Verdicts()

    def first(self, end_s: float, replicas: Sequence[int]) -> int | None:
        """The first of these numbers of pipelines, in ascending order, of which it allows a plan to end by `end_s`."""
        if len(replicas) > 2 and not self.allow(end_s, replicas[0], replicas[-1]):
            return None
        return next((number for number in replicas if self.allow(end_s, number, number)), None)

    def allow(self, end_s: float, fewest: int, most: int) -> bool:
        """Whether it does not exclude that a plan ends by `end_s` of a number of pipelines in a range."""
        return self._verdicts.of((fewest, most), end_s, lambda: self._allow(end_s, fewest, most))

    def _groups(self, fewest: int, most: int) -> list[tuple[float, float]]:
        """The fewest and the most micro-batches of each."""
        every = self.room.micro_batches
        found, low = [], 1.0
        while low <= every:
            ratio = FINE if every / most / NEAR <= low <= every / fewest * NEAR else COARSE
            high = max(low + 1, np.floor(low * ratio))
            found.append((low, float(min(high - 1, every))))
            low = float(high)
        return found

    def _allow(self, end_s: float, fewest: int, most: int) -> bool:
        low, high = np.array(self._groups(fewest, most)).T
        fits = self._most_blocks(end_s, most, low)
        group, place, team = np.nonzero(self._worth_it(fits))
        rows, wide = Rows(), len(self.places)
        pipelines, teams = rows.new(len(low)), rows.new(len(team))
        rows.several(len(low), (group, teams, -fits[group, place, team]), (np.arange(len(low)), pipelines, self.blocks))
        at = np.arange(len(low) * wide)
        rows.several(
            len(at),
            (group * wide + place, teams, 1.0),
            (at, np.repeat(pipelines, wide), -np.tile(self.widths, len(low))),
        )
        for gpu, (_, count) in self.kinds.items():
            rows.total(count, (teams, (self.degrees * self.own[gpu])[team]))
        rows.total(most, (pipelines, 1))
        rows.total(-fewest, (pipelines, -1))
        rows.total(-self.room.micro_batches * (1 - ROUNDING), (pipelines, -high))
        return rows.kept(0, 1)

    def _worth_it(self, fits: Floats) -> NDArray[np.bool_]:
        """(groups, places, teams): which hold some blocks, and more than any smaller one of the kind; no place after
        one where none does."""
        found = np.zeros(fits.shape, dtype=np.bool_)
        for own in self.own.values():
            held = fits[:, :, own]
            before = np.maximum.accumulate(np.concatenate([np.zeros((*held.shape[:2], 1)), held], axis=2), axis=2)
            found[:, :, own] = held > before[:, :, :-1]
        return found & np.logical_and.accumulate(found.any(axis=2), axis=1)[:, :, None]

    def _most_blocks(self, end_s: float, replicas: int, micro_batches: Floats) -> Floats:
        """(groups, places, teams): c of at least so many micro-batches; replicas: at most."""
        behind, count = self.places[:, None], micro_batches[:, None, None]
        fits = self._fit(replicas, np.minimum(behind, count))
        speed = np.array([team.blocks_per_s for team in self.teams])
        forward_s = np.array([team.forward_s for team in self.teams])
        fewest = np.maximum(count - (behind + self.widths[:, None] - 1), 0)
        passes_s = (count - 1) / speed - (count - 1 - fewest) * np.minimum(forward_s, 1 / speed - forward_s)
        with np.errstate(divide="ignore"):
            ends = (end_s - self.way_s) / passes_s
        most = np.minimum(np.minimum(fits, ends), end_s * speed / count)
        whole: Floats = np.floor(np.minimum(most, self.blocks) * (1 + ROUNDING))
        return np.maximum(whole, 0.0)

    def fits(self, replicas: int) -> Floats:
        """(places, teams): the whole blocks of which so many pipelines or fewer leave room for all that 1F1B keeps."""
        whole: Floats = np.floor(self._fit(replicas, self.places[:, None]) * (1 + ROUNDING))
        return np.maximum(whole, 0.0)

    def _fit(self, replicas: int, kept: Floats) -> Floats:
        """(..., places, teams): blocks, where so many micro-batches of each are kept."""
        room = self.room
        states = room.model.block_parameters * room.parameter[replicas - 1]
        free = self.free - np.where(self.places == 1, room.logits, 0.0)[:, None]
        fits: Floats = free / (states + kept * room.activation)
        return fits
