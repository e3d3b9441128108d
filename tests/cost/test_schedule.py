"""Oracle: the longest path over the explicit graph of operations and messages."""

from graphlib import TopologicalSorter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hetsched.cost.schedule as scheduling
from hetsched.cost.compute import StageWork
from hetsched.cost.schedule import Hop, play

Op = tuple[str, int, int]  # what, stage (or link), micro-batch

SCHEDULES = ["1f1b", "gpipe"]
SECONDS = st.one_of(st.sampled_from([0.0, 0.25, 1.0, 2.0]), st.floats(0, 10))


def stage_order(schedule: str, depth: int, s: int, micro_batches: int) -> list[Op]:
    """A stage's work in order: 1F1B's warm-up, then one forward and one backward, then what is left; GPipe's halves."""
    warm = micro_batches if schedule == "gpipe" else min(depth - 1 - s, micro_batches)
    order: list[Op] = [("forward", s, m) for m in range(warm)]
    for m in range(micro_batches - warm):
        order += [("forward", s, warm + m), ("backward", s, m)]
    return order + [("backward", s, m) for m in range(micro_batches - warm, micro_batches)]


def longest_path(schedule: str, work: list[StageWork], hops: list[Hop], micro_batches: int) -> list[float]:
    """When each stage has ended its last backward, and its message has left.

    An operation starts when all it waits for has ended: the one before on the same stage or link, and what it works on.
    A message ends when it leaves the link, `latency` before it arrives.
    """
    depth, stages = len(work), range(len(work))
    seconds: dict[Op, float] = {}
    waits: dict[Op, dict[Op, float]] = {}  # for what, and how long after its end

    def follow(line: list[Op]) -> None:
        for before, after in pairwise(line):
            waits[after].setdefault(before, 0.0)

    for m in range(micro_batches):
        for s in stages:
            seconds["forward", s, m], seconds["backward", s, m] = work[s].forward_s, work[s].backward_s
            waits["forward", s, m] = {("send", s - 1, m): hops[s - 1].forward_latency_s} if s else {}
            last = s == depth - 1
            waits["backward", s, m] = (
                {("forward", s, m): 0.0} if last else {("return", s, m): hops[s].backward_latency_s}
            )
            if not last:
                seconds["send", s, m], seconds["return", s, m] = hops[s].forward_occupied_s, hops[s].backward_occupied_s
                waits["send", s, m], waits["return", s, m] = {("forward", s, m): 0.0}, {("backward", s + 1, m): 0.0}
    for s in stages:
        follow(stage_order(schedule, depth, s, micro_batches))
        if s < depth - 1:
            follow([("send", s, m) for m in range(micro_batches)])
            follow([("return", s, m) for m in range(micro_batches)])
    end: dict[Op, float] = {}
    for op in TopologicalSorter(waits).static_order():
        end[op] = seconds[op] + max((end[before] + after for before, after in waits[op].items()), default=0.0)
    done = [max(end["backward", s, m] for m in range(micro_batches)) for s in stages]
    for s in stages[1:]:  # what is there has left
        early = min(0.0, hops[s - 1].backward_latency_s)
        done[s] = max(done[s], max(end["return", s - 1, m] for m in range(micro_batches)) + early)
    return done


def draw_pipeline(data: Any, seconds: st.SearchStrategy[float], depth: int) -> tuple[list[StageWork], list[Hop]]:
    work = [StageWork(data.draw(seconds), data.draw(seconds)) for _ in range(depth)]
    hops = []
    for _ in range(depth - 1):  # a latency may be below 0: a message that is there while its link is kept
        (there, after), (back, later) = ((data.draw(seconds), data.draw(seconds)) for _ in range(2))
        early = data.draw(st.booleans())
        hops.append(
            Hop(there, -min(there, after), back, -min(back, later)) if early else Hop(there, after, back, later)
        )
    return work, hops


@settings(deadline=None, max_examples=250)
@given(data=st.data(), depth=st.integers(1, 6), micro_batches=st.integers(1, 40), schedule=st.sampled_from(SCHEDULES))
def test_is_the_longest_path(data: Any, depth: int, micro_batches: int, schedule: str) -> None:
    work, hops = draw_pipeline(data, SECONDS, depth)
    found = play(schedule, work, hops, micro_batches)
    assert found == pytest.approx(longest_path(schedule, work, hops, micro_batches), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), depth=st.integers(2, 6), schedule=st.sampled_from(SCHEDULES))
def test_skipping_rounds_that_repeat_changes_nothing(data: Any, depth: int, schedule: str) -> None:
    """Many micro-batches of rough times: most rounds are skipped, and one that is wrong would shift all that follow."""
    work, hops = draw_pipeline(data, st.sampled_from([0.0, 0.125, 0.5, 1.0, 1.5, 3.0]) | st.floats(0, 3), depth)
    found = play(schedule, work, hops, 300)
    assert found == pytest.approx(longest_path(schedule, work, hops, 300), rel=1e-9, abs=1e-12)


NEAR_TIES = [
    (
        [(1, 2), (3, 0.5), (0.25, 0.5), (1.5, 2), (3, 1.5001)],
        [(1.5, 1, 0, 1), (1, 1.003, 0.5, 1.5), (2.01, 0.5, 2, 2), (0.25, 1.5, 0, 1.5)],
    ),
    (
        [(0.25, 3), (0.01, 0.5), (0.25, 0.25), (0.25, 3), (0, 1), (3, 2)],
        [(0.25, 1, 0.5, 1), (0, 1.5, 0.5, 3), (2, 0.2501, 1, 3), (3.01, 1.5, 3, 0), (0, 2, 1, 0.5)],
    ),
]


@pytest.mark.parametrize(("work", "hops"), NEAR_TIES, ids=["5 stages", "6 stages"])
def test_states_that_nearly_repeat_are_not_skipped(
    work: list[tuple[float, float]], hops: list[tuple[float, float, float, float]]
) -> None:
    """What sets the pace is slower by little than what comes next: for long, rounds differ by little."""
    stages, links = [StageWork(*seconds) for seconds in work], [Hop(*seconds) for seconds in hops]
    found = play("1f1b", stages, links, 300)
    assert found == pytest.approx(longest_path("1f1b", stages, links, 300), rel=1e-9)


def test_rounds_that_repeat_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million micro-batches take no more rounds than a hundred, also where every second round alone repeats."""
    played = []
    backward = scheduling._Rounds._backward

    def counted(rounds: scheduling._Rounds, step: int, micro_batches: int) -> None:
        played.append(step)
        backward(rounds, step, micro_batches)

    monkeypatch.setattr(scheduling._Rounds, "_backward", counted)
    work = [StageWork(1.0, 2.0), StageWork(1.5, 2.5), StageWork(0.5, 1.0)]
    hops = [Hop(0.25, 0.5, 0.25, 0.5)] * 2
    ends = play("1f1b", work, hops, 1_000_000)
    assert len(played) < 100
    few, more = (max(longest_path("1f1b", work, hops, micro_batches)) for micro_batches in (400, 600))
    assert max(ends) == pytest.approx(more + (1_000_000 - 600) * (more - few) / 200, rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("depth", "micro_batches"), [(1, 1), (1, 9), (4, 1), (4, 3), (4, 4), (8, 100), (8, 5000)])
def test_equal_stages_and_free_links(schedule: str, depth: int, micro_batches: int) -> None:
    """(M + P - 1) (f + b): Huang et al. 2019, arXiv 1811.06965, and Narayanan et al. 2021, arXiv 2104.04473."""
    work = [StageWork(0.5, 1.25)] * depth
    ends = play(schedule, work, [Hop()] * (depth - 1), micro_batches)
    assert max(ends) == pytest.approx((micro_batches + depth - 1) * 1.75)
    assert ends[0] == max(ends)
    assert ends == pytest.approx([max(ends) - s * 1.25 for s in range(depth)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_micro_batch_passes_every_hop_in_turn(schedule: str) -> None:
    work = [StageWork(1.0, 2.0), StageWork(3.0, 4.0), StageWork(5.0, 6.0)]
    hops = [Hop(0.1, 0.2, 0.3, 0.4), Hop(0.01, 0.02, 0.03, 0.04)]
    assert play(schedule, work, hops, 1)[0] == pytest.approx(21 + 1.0 + 0.1)


def test_a_link_slower_than_the_stages_sets_the_pace() -> None:
    """GPipe queues for the link and waits for the latency once; 1F1B has two micro-batches under way, and waits."""
    work, hops = [StageWork(0.001, 0.001)] * 2, [Hop(2.0, 30.0, 0.0, 0.0)]
    assert max(play("gpipe", work, hops, 50)) == pytest.approx(50 * 2.0 + 30.0, rel=2e-3)
    assert max(play("1f1b", work, hops, 50)) == pytest.approx(25 * (2.0 + 30.0), rel=5e-3)
