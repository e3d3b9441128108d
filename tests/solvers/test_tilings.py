"""Starts of like pipelines: runs in a line, and the hands that they make."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_model
from hetsched.cost import COST_MODELS
from hetsched.cost.account import MEMORY_FRACTION
from hetsched.problem import Choices, Problem
from hetsched.readers import read_cluster
from hetsched.solvers.arena import Arenas, hand_of
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


@pytest.mark.parametrize("cluster", ["dtfm-datacenter", "home-office", "ten-cities", "a100-l4-t4-24"])
@pytest.mark.parametrize("choices", [Choices(), Choices(replicas=2), Choices(stages=3), Choices(replicas=2, stages=2)])
def test_starts_are_as_asked_for_and_fit_the_cluster(cluster: str, choices: Choices) -> None:
    model = find_model("opt-1.3b")
    assert model is not None
    problem = Problem(read_cluster(SPECS / f"{cluster}.yaml"), model, TrainingJob(64, 1024), choices)
    priced_by = COST_MODELS["roofline"](MEMORY_FRACTION)
    arenas, seen = Arenas(problem, priced_by), 0
    for place in Tilings(arenas, np.random.default_rng(0)).starts():
        hand = hand_of(place.standing.chains)
        used = Counter(member for groups in hand for group in groups for member in group)
        assert all(count <= arenas.inventory.counts[member] for member, count in used.items())
        assert choices.replicas in (None, len(hand))
        assert all(choices.stages in (None, len(groups)) for groups in hand)
        assert place.seconds == pytest.approx(place.candidate().cost.iteration_s, rel=1e-9)
        seen += 1
    assert seen


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
