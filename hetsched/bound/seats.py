"""What stages have room for in 1F1B, as a linear programme: whole blocks, memory by position, and time.

D pipelines are told apart by their micro-batches, m from m' to m'' in a group. Stage s of S stands at r = S - s from
the end; on a team of t GPUs of one kind, which does V blocks a second, it holds l blocks, a whole number:
1. It keeps min(r, m) micro-batches of activations of each, and the last stage logits too. `Room` says that this and the
   states are no more than what its GPUs have together.
2. It works m w_s by T, w_s >= l / V. And `few_nodes` says that its last forward ends after (m - 1) f_s + (m - r)+ b_s
   and the forwards of all stages but the m-th of its own; with the way back, T >= C + (m - 1) f_s + (m - r)+ b_s, where
   C is L blocks on the fastest team or more.
So l is c at most, which is known of a group, r, and the team. Pipelines have one stage at each r at most, and L blocks.
n_g pipelines of a group, x stages of its pipelines at r on teams of a kind and size are the variables, any numbers:
    sum over g of n_g = D,  of m'' n_g >= M;  sum c x >= L n_g;  sum x at r <= n_g;  sum t x <= the GPUs of each kind.
"""

from collections.abc import Sequence

import numpy as np

from hetsched.bound.programme import Rows
from hetsched.bound.room import Room
from hetsched.bound.speeds import SpeedLevel, TeamSpeed
from hetsched.cluster import Floats, Gpu, Indices

FINE, COARSE = 1.2, 1.6  # how many times as many micro-batches pipelines of a group may do
NEAR = 2.5  # fine up to so many times the mean, from as much less
ROUNDING = 1e-9


class Seats:
    """The programme of plans of one setting and one class of speeds.

    room: for every number of pipelines from 1 on; kinds: bytes that are free on each kind of GPU, and how many.
    """

    def __init__(self, level: SpeedLevel, room: Room, kinds: dict[Gpu, tuple[float, int]]) -> None:
        self.room, self.kinds, self.blocks = room, kinds, room.model.num_layers
        self.teams = sorted((team for team in level.teams if team.gpu in kinds), key=lambda team: team.degree)
        self.degrees = np.array([float(team.degree) for team in self.teams])
        self.own = {gpu: np.array([team.gpu == gpu for team in self.teams]) for gpu in kinds}
        self.way_s = self.blocks / level.team
        self._excluded: dict[int, float] = {}
        self._allowed: dict[int, float] = {}

    def allow(self, end_s: float, replicas: int) -> bool:
        """Whether it does not exclude that a plan of so many pipelines ends by `end_s`."""
        if end_s <= self._excluded.get(replicas, 0.0):
            return False
        if end_s >= self._allowed.get(replicas, np.inf):
            return True
        allowed = self._allow(end_s, replicas)
        (self._allowed if allowed else self._excluded)[replicas] = end_s
        return allowed

    def _groups(self, replicas: int) -> list[tuple[float, float]]:
        """The fewest and the most micro-batches of each."""
        every = self.room.micro_batches
        found, low, mean = [], 1.0, every / replicas
        while low <= every:
            ratio = FINE if mean / NEAR <= low <= mean * NEAR else COARSE
            high = max(low + 1, np.floor(low * ratio))
            found.append((low, float(min(high - 1, every))))
            low = float(high)
        return found

    def _allow(self, end_s: float, replicas: int) -> bool:
        groups = self._groups(replicas)
        rows, blocks = Rows(), float(self.blocks)
        numbers: list[Indices] = []
        used: dict[Gpu, list[tuple[Indices, Floats]]] = {gpu: [] for gpu in self.kinds}
        for low, _ in groups:
            pipelines = rows.new(1)
            stages: list[tuple[Indices, Floats]] = []
            for at in self._most_blocks(end_s, replicas, low):
                chosen = _not_worse(self.teams, at)
                if not chosen:
                    break
                here = rows.new(len(chosen))
                rows.total(0, (here, 1), (pipelines, -1))
                stages.append((here, -at[chosen]))
                for gpu, own in self.own.items():
                    used[gpu].append((here, (self.degrees * own)[chosen]))
            rows.total(0, (pipelines, blocks), *stages)
            numbers.append(pipelines)
        for gpu, (_, count) in self.kinds.items():
            rows.total(count, *used[gpu])
        every = np.concatenate(numbers)
        rows.total(replicas, (every, 1))
        rows.total(-replicas, (every, -1))
        rows.total(-self.room.micro_batches * (1 - ROUNDING), (every, -np.array([high for _, high in groups])))
        return rows.kept(0, 1)

    def _most_blocks(self, end_s: float, replicas: int, micro_batches: float) -> Floats:
        """(stages, teams): c of at least so many micro-batches, by r from 1 on."""
        room = self.room
        behind = np.arange(1, min(self.blocks, sum(count for _, count in self.kinds.values())) + 1)[:, None]
        usable = np.array([team.degree * self.kinds[team.gpu][0] for team in self.teams])
        states = room.model.block_parameters * room.parameter[replicas - 1]
        free = usable - np.where(behind == 1, room.logits, 0.0)
        fits = free / (states + np.minimum(behind, micro_batches) * room.activation)
        speed = np.array([team.blocks_per_s for team in self.teams])
        forward_s = np.array([team.forward_s for team in self.teams])
        backwards = np.maximum(micro_batches - behind, 0) * (1 / speed - forward_s)
        with np.errstate(divide="ignore"):
            ends = (end_s - self.way_s) / ((micro_batches - 1) * forward_s + backwards)
        most = np.minimum(np.minimum(fits, ends), end_s * speed / micro_batches)
        whole: Floats = np.floor(np.minimum(most, self.blocks) * (1 + ROUNDING))
        return np.maximum(whole, 0.0)


def _not_worse(teams: Sequence[TeamSpeed], most: Floats) -> list[int]:
    """Of teams in ascending size those that hold some blocks, and more than any smaller one of the kind."""
    best: dict[Gpu, float] = {}
    found = []
    for number, team in enumerate(teams):
        if most[number] > best.get(team.gpu, 0.0):
            best[team.gpu] = float(most[number])
            found.append(number)
    return found
