"""Starts of like pipelines: runs in a line, bands of nodes, and the hands that they make."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_model
from hetsched.cost import COST_MODELS
from hetsched.cost.account import MEMORY_FRACTION
from hetsched.cost.chains import Group
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster
from hetsched.solvers.arena import Arenas, Place, hand_of
from hetsched.solvers.bands import banded
from hetsched.solvers.tilings import Tilings, runs, spread
from hetsched.workload import TrainingJob

SPECS = Path(__file__).parents[2] / "cluster_specs"


@settings(deadline=None, max_examples=100)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=6), size=st.integers(1, 12), whole=st.booleans())
def test_runs(counts: list[int], size: int, whole: bool) -> None:
    line = [(member,) for member, count in enumerate(counts) for _ in range(count)]
    found = runs(line, size, whole)
    assert all(len(run) == size for run in found)
    used = Counter(team for run in found for team in run)
    assert all(used[member,] <= count for member, count in enumerate(counts))
    if not whole:
        assert len(found) == len(line) // size
    elif size <= min(counts):
        assert all(len(set(run)) == 1 for run in found)
        assert len(found) == sum(count // size for count in counts)
    else:
        # a run that no node holds alone, or that meets nodes too small for it, begins with one of the latter
        assert all(len(set(run)) == 1 or counts[run[0][0]] < size for run in found)


@pytest.mark.parametrize("most", range(1, 100))
def test_spread(most: int) -> None:
    found = spread(most)
    assert found[0] == 1
    assert found[-1] == most
    assert all(a < b <= a + max(1, a // 3) for a, b in pairwise(found))


def starts_of_tilings(arenas: Arenas) -> Iterator[Place]:
    return Tilings(arenas, np.random.default_rng(0)).starts()


def starts_in_bands(arenas: Arenas) -> Iterator[Place]:
    return chain.from_iterable(banded(arenas, np.random.default_rng(0)))


@pytest.mark.parametrize("starts", [starts_of_tilings, starts_in_bands])
@pytest.mark.parametrize("cluster", ["dtfm-datacenter", "home-office", "ten-cities", "a100-l4-t4-24"])
@pytest.mark.parametrize("choices", [Choices(), Choices(replicas=2), Choices(stages=3), Choices(replicas=2, stages=2)])
def test_starts_are_as_asked_for_and_fit_the_cluster(
    starts: Callable[[Arenas], Iterator[Place]], cluster: str, choices: Choices
) -> None:
    model = find_model("opt-1.3b")
    assert model is not None
    problem = Problem(read_cluster(SPECS / f"{cluster}.yaml"), model, TrainingJob(64, 1024), choices)
    priced_by = COST_MODELS["roofline"](MEMORY_FRACTION)
    arenas, seen = Arenas(problem, priced_by), 0
    for place in islice(starts(arenas), 120):
        hand = hand_of(place.standing.chains)
        used = Counter(member for groups in hand for group in groups for member in group)
        assert all(count <= arenas.inventory.counts[member] for member, count in used.items())
        assert choices.replicas in (None, len(hand))
        assert all(choices.stages in (None, len(groups)) for groups in hand)
        assert place.seconds == pytest.approx(place.candidate().cost.iteration_s, rel=1e-9)
        seen += 1
    assert seen


def test_bands_share_out_their_nodes_by_speed() -> None:
    """Three pipelines go through the same nodes in the same order, cut into two bands anywhere, and leave none idle; of
    a band's runs none is faster than another by more than two teams' speed, one at each of its ends.
    """
    model = find_model("llama-2-7b")
    assert model is not None
    problem = Problem(read_cluster(SPECS / "flashflex-a-slow.yaml"), model, TrainingJob(48, 4096))
    arenas = Arenas(problem, COST_MODELS["roofline"](MEMORY_FRACTION))
    counts, block_s = arenas.inventory.counts, arenas.usual.pricer.block_s

    def shared_out(hand: list[list[Group]], cut: int) -> bool:
        bands = [
            [[group for group in groups if (group[0] < cut) == first] for groups in hand] for first in (True, False)
        ]
        speeds = [[sum(1 / block_s(group) for group in run) for run in band] for band in bands]
        fastest = [max(1 / block_s(group) for run in band for group in run) for band in bands]
        in_order = all(groups == before + after for groups, before, after in zip(hand, *bands, strict=True))
        return in_order and all(max(runs) - min(runs) <= 2 * team for runs, team in zip(speeds, fastest, strict=True))

    hands = [hand_of(place.standing.chains) for place in next(banded(arenas, np.random.default_rng(0)))]
    whole = [
        hand
        for hand in hands
        if len(hand) == 3
        and Counter(k for groups in hand for group in groups for k in group) == Counter(dict(enumerate(counts)))
    ]
    assert {cut for cut in range(1, len(counts)) if any(shared_out(hand, cut) for hand in whole)} == {1, 2, 3, 4}


def test_pipelines_keep_whole_runs_in_each_node() -> None:
    model = find_model("gpt3-xl")
    assert model is not None
    problem = Problem(read_cluster(SPECS / "dtfm-datacenter.yaml"), model, TrainingJob(512, 2048))
    arenas = Arenas(problem, COST_MODELS["roofline"](MEMORY_FRACTION))
    places = list(Tilings(arenas, np.random.default_rng(0)).starts())
    hands = {tuple(map(tuple, hand_of(place.standing.chains))) for place in places}
    seven_of_two = [
        hand
        for hand in hands
        if [len(groups) for groups in hand] == [14] * 4 and all(len(set(g[:7])) == len(set(g[7:])) == 1 for g in hand)
    ]  # 14 stages of each pipeline in two nodes of eight, one GPU in each idle
    assert seven_of_two
