import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.errors import HetschedError
from hetsched.executor.schedule import Action, actions, in_flight

DEPTHS, MICRO_BATCHES = st.integers(1, 12), st.integers(1, 30)
SCHEDULES = st.sampled_from(["1f1b", "gpipe"])


@given(SCHEDULES, DEPTHS, MICRO_BATCHES)
def test_every_micro_batch_goes_forward_then_back_once(schedule: str, depth: int, micro_batches: int) -> None:
    for stage in range(depth):
        order = actions(schedule, stage, depth, micro_batches)
        for kind in ("forward", "backward"):
            assert [action.micro_batch for action in order if action.kind == kind] == list(range(micro_batches))
        at = {action: place for place, action in enumerate(order)}
        assert all(at[Action("forward", m)] < at[Action("backward", m)] for m in range(micro_batches))


@given(SCHEDULES, DEPTHS, MICRO_BATCHES)
def test_no_more_in_flight_than_stated(schedule: str, depth: int, micro_batches: int) -> None:
    for stage in range(depth):
        counts = [0]
        for action in actions(schedule, stage, depth, micro_batches):
            counts.append(counts[-1] + (1 if action.kind == "forward" else -1))
        assert max(counts) == in_flight(schedule, stage, depth, micro_batches)
        if schedule == "1f1b":
            assert max(counts) == min(depth - stage, micro_batches)


@given(SCHEDULES, DEPTHS, MICRO_BATCHES)
def test_stages_never_wait_in_a_circle(schedule: str, depth: int, micro_batches: int) -> None:
    """Plays the stages with sends that never block; also: a send is taken before as many more follow as are kept."""
    left = [list(actions(schedule, stage, depth, micro_batches)) for stage in range(depth)]
    done: set[tuple[int, Action]] = set()
    while any(left):
        ready = []
        for stage, order in enumerate(left):
            if not order:
                continue
            neighbour = stage - 1 if order[0].kind == "forward" else stage + 1
            if not 0 <= neighbour < depth or (neighbour, order[0]) in done:
                ready.append(stage)
        assert ready, "every stage waits"
        for stage in ready:
            action = left[stage].pop(0)
            done.add((stage, action))
            kept = in_flight(schedule, stage, depth, micro_batches)
            if action.kind == "forward" and stage + 1 < depth and action.micro_batch >= kept:
                assert (stage + 1, Action("forward", action.micro_batch - kept)) in done


def test_one_forward_one_backward_by_hand() -> None:
    words = [f"{action.kind[0]}{action.micro_batch}" for action in actions("1f1b", 1, 4, 5)]
    assert words == ["f0", "f1", "f2", "b0", "f3", "b1", "f4", "b2", "b3", "b4"]


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(HetschedError, match="zigzag"):
        actions("zigzag", 0, 1, 1)
