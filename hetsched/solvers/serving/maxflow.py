"""Solver `maxflow`: HexGen-2's search for disaggregated plans (Jiang et al. 2025, ICLR, arXiv 2502.07903, section 3).

Phase 1 partitions the GPUs into groups of about equal memory along slow links (spectral, Kernighan-Lin), and the groups
into those that prefill and those that decode, with the most bandwidth between the two; how many of each is searched.
Phase 2 gives each group its layout and lets as many requests flow as can. Phase 3 changes groups by what the flow
leaves idle and what it fills, until nothing improves. Beyond the paper: groups that do both phases, where the mode
allows it, starts by what each GPU is better at, and another climb from a shaken best. The driver simulates the best.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from hetsched.algorithms.balanced_partition import balanced_groups, two_sides
from hetsched.cluster import Floats
from hetsched.solvers.serving.designs import composed
from hetsched.solvers.serving.flow_moves import Moves, State, canonical
from hetsched.solvers.serving.neighbours import group_counts, grown, most_groups
from hetsched.solvers.serving.phases import Flowing, Phases
from hetsched.solvers.serving.workshop import SPARE, Draft, Group, Replica, Workshop

APART = ("prefill", "decode")
ROLES = (*APART, "both")
PROMPT_SHARES, FEW_STARTS = (0.1, 0.2, 0.35, 0.5), 10  # of a limit on whole requests; states that tell which is best
SLACK = 0.02  # what a request a second of capacity is worth that the flow does not use yet
LEAST_GAIN = 1e-6
# Few GPUs have few states; the more there are, the dearer is one.
LEAST_STEPS, STEPS_A_GPU, STEPS_FOR = 800, 150, 80_000
FEW_GROUPS, COUNTS = 10, 8  # up to so many groups all counts are tried; else so many of them


@dataclass(frozen=True, eq=False)
class Standing:
    """A state with its flow. loads: (groups,), what share of its capacity each uses."""

    state: State
    flowing: Flowing
    value: float
    loads: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MaxFlow:
    """climbs: how many of the starts are refined; patience: neighbours looked at in a row without a gain."""

    climbs: int = 6
    patience: int = 400
    shakes: int = 3
    name: str = "maxflow"
    apart: bool = True

    def steps(self, workshop: Workshop) -> int:
        """Starts and neighbours."""
        gpus = len(workshop.problem.cluster.devices)
        return int(max(LEAST_STEPS, min(STEPS_A_GPU * gpus, STEPS_FOR // max(1, gpus))))

    def search(self, workshop: Workshop, rng: np.random.Generator) -> Iterator[Draft | None]:
        """Starts, then climbs for ever; a draft where a state is better than all with the same roles before."""
        phases = _divided(workshop)
        best: dict[frozenset[str], float] = {}
        for standing in self._standings(phases, best, rng):
            if standing is None:
                yield None
                continue
            kind = standing.flowing.roles
            if standing.value > best.get(kind, 0.0):
                best[kind] = standing.value
                yield phases.draft(standing.flowing)
            else:
                yield None

    def _standings(
        self, phases: Phases, best: dict[frozenset[str], float], rng: np.random.Generator
    ) -> Iterator[Standing | None]:
        """best: by roles, the value of the best so far; None for a state that can't be better."""
        workshop = phases.workshop
        apart, seen = Moves(workshop, APART), dict[State, None]()
        both = Moves(workshop, ROLES) if workshop.problem.mode == "auto" else apart
        starts: list[Standing] = []
        for state in _starts(phases):
            if state in seen:
                continue
            seen[state] = None
            starts.append(standing_of(phases, state))
            yield starts[-1]
        if not starts:
            return
        lessons = phases.workshop.lessons
        for moves in dict.fromkeys((apart, both)):
            for start in self._composed(phases, moves, seen):
                starts.append(start)
                yield start
        starts.sort(key=lambda standing: -standing.value)
        tops: list[Standing] = []
        for start in starts[: self.climbs]:
            yield from self._climb(phases, apart, start, tops, seen, best, rng)
        if both is not apart:
            yield from self._climb(phases, both, tops[0], tops, seen, best, rng)
        known = 0  # states in a row that were seen before: where there are only such, all is done
        composed_of: dict[Moves, tuple[int, int]] = {}
        for moves in cycle((both, apart)):
            if lessons != phases.workshop.lessons:
                lessons = phases.workshop.lessons
                best.clear()
                tops[:] = sorted((standing_of(phases, top.state) for top in tops), key=lambda top: -top.value)
                yield from tops
            for start in self._composed_anew(phases, moves, seen, composed_of):
                yield start
                yield from self._climb(phases, moves, start, tops, seen, best, rng)
            chosen = tops[min(int(rng.exponential(1.0)), len(tops) - 1)]
            state = moves.shaken(chosen.state, int(rng.integers(1, self.shakes + 1)), rng)
            known = known + 1 if state in seen else 0
            if known > self.patience:
                return
            if known:
                continue
            seen[state] = None
            start = standing_of(phases, state)
            yield start
            yield from self._climb(phases, moves, start, tops, seen, best, rng)

    def _composed(self, phases: Phases, moves: Moves, seen: dict[State, None]) -> Iterator[Standing]:
        """The state that an integer programme makes of all groups that are known by now, where it is new."""
        if phases.workshop.problem.objective == "cost":
            return
        state = composed(phases, moves.roles)
        if state and state not in seen:
            seen[state] = None
            yield standing_of(phases, state)

    def _composed_anew(
        self, phases: Phases, moves: Moves, seen: dict[State, None], composed_of: dict[Moves, tuple[int, int]]
    ) -> Iterator[Standing]:
        """The same, where more is known than when it was last; composed_of: what was."""
        known = phases.workshop.lessons, phases.tried
        if composed_of.get(moves) != known:
            composed_of[moves] = known
            yield from self._composed(phases, moves, seen)

    def _climb(
        self,
        phases: Phases,
        moves: Moves,
        top: Standing,
        tops: list[Standing],
        seen: dict[State, None],
        best: dict[frozenset[str], float],
        rng: np.random.Generator,
    ) -> Iterator[Standing | None]:
        """From a state to better ones, the first that is found each time; `tops` has the best of where they end."""
        improved, lessons = True, 0  # what was worked out before the last lesson is so anew
        while improved:
            if lessons != phases.workshop.lessons:
                lessons, top = phases.workshop.lessons, standing_of(phases, top.state)
            improved, tried = False, 0
            for state in moves.of(top.state, top.loads, rng):
                if state in seen:
                    continue
                seen[state] = None
                tried += 1
                standing = better_of(phases, state, top.value * (1.0 + LEAST_GAIN), best)
                yield standing
                if lessons != phases.workshop.lessons:
                    improved = True
                    break
                if standing is not None and standing.value > top.value * (1.0 + LEAST_GAIN):
                    top, improved = standing, True
                    break
                if tried >= self.patience:
                    break
        if all(top.state != other.state for other in tops):
            tops.append(top)
            tops.sort(key=lambda standing: -standing.value)
            del tops[self.climbs :]


def _divided(workshop: Workshop) -> Phases:
    """Phases among which a limit on whole requests, if there is one, is divided so that most flows at the start."""
    slo = workshop.problem.load.slo
    if slo.e2e is None and slo.scale is None:
        return Phases(workshop)
    tried: list[tuple[float, float]] = []
    for share in PROMPT_SHARES:
        workshop.share_prompts(share)
        phases = Phases(workshop)
        starts = islice(_starts(phases), FEW_STARTS)
        tried.append((max((standing_of(phases, state).value for state in starts), default=0.0), share))
    workshop.share_prompts(max(tried)[1])
    return Phases(workshop)


def standing_of(phases: Phases, state: State) -> Standing:
    """A state's flow and value."""
    return _standing(phases, state, [phases.replica(group, role) for group, role in state])


def better_of(phases: Phases, state: State, value: float, best: Mapping[frozenset[str], float]) -> Standing | None:
    """As `standing_of`; None where its replicas alone, were links free, are worth neither `value` nor its roles' best.

    Most neighbours are seen so not to be better, at a small part of what a flow takes.
    """
    made = [phases.replica(group, role) for group, role in state]
    if phases.workshop.problem.objective != "cost":
        rates = dict.fromkeys(ROLES, 0.0)
        for replica in made:
            if replica is not None:
                rates[replica.role] += replica.rate_per_s
        roles = frozenset(role for role in ROLES if rates[role] > 0.0)
        flow = min(rates["prefill"], rates["decode"])
        spare = rates["prefill"] + rates["decode"] - 2.0 * flow
        if _worth(flow + rates["both"], spare) <= min(value, best.get(roles, 0.0)):
            return None
    return _standing(phases, state, made)


def _standing(phases: Phases, state: State, made: Sequence[Replica | None]) -> Standing:
    flowing = phases.flowing([replica for replica in made if replica is not None])
    kept, value = _within_means(phases, flowing)
    network = kept.network
    sent, taken, _, _ = network.loads(network.flow[1])
    load = dict(zip([*kept.prefills, *kept.decodes], [*sent.tolist(), *taken.tolist()], strict=True))
    load |= dict.fromkeys(kept.both, 1.0)
    return Standing(state, kept, value, tuple(0.0 if r is None else load.get(r, 0.0) for r in made))


def _worth(value_per_s: float, spare_per_s: float) -> float:
    """Of a flow, and of what could be done besides if the other side kept up."""
    return value_per_s + SLACK * min(spare_per_s, value_per_s)


def _within_means(phases: Phases, flowing: Flowing) -> tuple[Flowing, float]:
    """The flow and its value; for least money without the replicas that it can do without."""
    problem = phases.workshop.problem
    if problem.objective != "cost":
        spare = flowing.network.prefill_per_s.sum() + flowing.network.decode_per_s.sum() - 2.0 * flowing.network.flow[0]
        return flowing, _worth(flowing.value_per_s, float(spare))
    wanted = (problem.load.rate_per_s or 0.0) * SPARE
    while True:
        usd = phases.workshop.usd_of(flowing.replicas)
        fewer = [phases.flowing([r for r in flowing.replicas if r is not out]) for out in flowing.replicas]
        cheaper = [f for f in fewer if f.value_per_s >= wanted and phases.workshop.usd_of(f.replicas) < usd]
        if not cheaper:
            break
        flowing = min(cheaper, key=lambda f: phases.workshop.usd_of(f.replicas))
    return flowing, 1.0 / (1.0 + usd) if flowing.value_per_s >= wanted else flowing.value_per_s / wanted - 1.0


def _starts(phases: Phases) -> Iterator[State]:
    """Phase 1: partitions into each number of groups, and of these into phases, for several ratios."""
    workshop = phases.workshop
    bandwidth = _bandwidths(workshop)
    memory = np.array([workshop.memory_bytes(device) for device in range(len(bandwidth))])
    for groups in _partitions(workshop, bandwidth, memory):
        prefill, decode = (
            np.array([_rate(phases.replica(group, role)) for group in groups]) for role in ("prefill", "decode")
        )
        between = _between(bandwidth, groups)
        better = np.argsort(-_advantage(prefill, decode), kind="stable")
        for first in _ratios(prefill, decode):
            sides = [two_sides(between, first), np.isin(np.arange(len(groups)), better[:first])]
            for side in sides:
                yield canonical([(g, APART[not chosen]) for g, chosen in zip(groups, side, strict=True)])


def _partitions(workshop: Workshop, bandwidth: Floats, memory: Floats) -> Iterator[list[Group]]:
    counts = [count for count in group_counts(workshop, FEW_GROUPS, COUNTS) if 2 <= count <= len(memory)]
    for number in counts or ([2] if len(memory) > 1 else []):
        labels = balanced_groups(bandwidth, memory, number)
        yield [frozenset(np.flatnonzero(labels == k).tolist()) for k in range(number)]
    yield from (list(start) for start in workshop.starts if len(start) > 1)
    machines: dict[int, set[int]] = {}
    for device, node in enumerate(workshop.problem.cluster.node_numbers):
        machines.setdefault(node, set()).add(device)
    if len(machines) > 1:
        yield [frozenset(devices) for devices in machines.values()]
    if most_groups(workshop) <= FEW_GROUPS:
        yield from (groups for groups in grown(workshop) if len(groups) > 1)


def _ratios(prefill: Floats, decode: Floats) -> list[int]:
    """How many groups are to prefill: all numbers where they are few, else those round an even match."""
    groups = len(prefill)
    if groups <= FEW_GROUPS // 2:
        return list(range(1, groups))
    even = groups * decode.sum() / max(prefill.sum() + decode.sum(), 1e-12)
    around = {int(np.clip(round(even * factor), 1, groups - 1)) for factor in (0.7, 1.0, 1.4)}
    return sorted(around)


def _advantage(prefill: Floats, decode: Floats) -> Floats:
    """How much better a group is at prefill than at decode, over the others."""
    return np.asarray(np.log(np.maximum(prefill, 1e-6)) - np.log(np.maximum(decode, 1e-6)))


def _rate(replica: Replica | None) -> float:
    return 0.0 if replica is None else replica.rate_per_s


def _bandwidths(workshop: Workshop) -> Floats:
    """(devices, devices), symmetric, finite."""
    everywhere = np.arange(len(workshop.problem.cluster.devices))
    _, bandwidth = workshop.problem.cluster.links(everywhere, everywhere)
    np.fill_diagonal(bandwidth, 0.0)
    return np.asarray((bandwidth + bandwidth.T) / 2.0)


def _between(bandwidth: Floats, groups: list[Group]) -> Floats:
    """(groups, groups): the bandwidth of all links between two groups."""
    member = np.zeros((len(groups), len(bandwidth)))
    for number, group in enumerate(groups):
        member[number, sorted(group)] = 1.0
    between = member @ bandwidth @ member.T
    np.fill_diagonal(between, 0.0)
    return np.asarray(between)
