"""Networks that transfers share while they are under way: worked out on paper, and against small steps of time."""

from collections.abc import Sequence

import numpy as np
import pytest

from hetsched.cost.network import Lanes
from hetsched.simulate.network import Channel, Clock, Flow, SharedNetwork


def channel(flow: Flow, seconds: float) -> Channel:
    """Messages that take so long alone; flows share the uplink and the downlink evenly, all of one speed."""
    i, j, own = flow

    def takes(lanes: Lanes) -> float:
        return seconds * max(lanes.out[i], lanes.into[j], own) / own

    return Channel(takes, [flow])


def ends_of(transfers: Sequence[tuple[float, Channel]]) -> list[float]:
    """When each of the transfers (start, channel) ends."""
    clock = Clock()
    network = SharedNetwork(clock)
    network.know([used for _, used in transfers])
    ends = [0.0] * len(transfers)

    def finish(number: int) -> None:
        ends[number] = clock.now

    for number, (start, used) in enumerate(transfers):
        clock.at(start, lambda k, used=used: network.send(used, finish, k), number)  # type: ignore[misc]
    clock.run()
    return ends


def test_two_that_meet_share_and_one_that_is_left_goes_on_alone() -> None:
    """10 s each; alone for 4 s, both at half the pace for 12 s, then 4 s alone."""
    first, second = channel((0, 1, 1), 10.0), channel((0, 1, 1), 10.0)
    assert ends_of([(0.0, first), (4.0, second)]) == pytest.approx([16.0, 20.0])
    assert first.shared
    assert second.shared


def test_those_that_never_meet_are_alone() -> None:
    first, second = channel((0, 1, 1), 3.0), channel((0, 1, 1), 3.0)
    assert ends_of([(0.0, first), (3.0, second)]) == [3.0, 6.0]
    assert not first.shared
    assert not second.shared


def test_both_directions_are_apart() -> None:
    assert ends_of([(0.0, channel((0, 1, 1), 3.0)), (1.0, channel((1, 0, 1), 3.0))]) == [3.0, 4.0]


def test_shares_are_by_the_gpus_that_send() -> None:
    """Three GPUs and one: 3/4 and 1/4 of an uplink; the wider ends at 4 s, with 2/3 of the other left to do alone."""
    wide, narrow = channel((0, 1, 3), 3.0), channel((0, 2, 1), 3.0)
    assert ends_of([(0.0, wide), (0.0, narrow)]) == pytest.approx([4.0, 4.0 + 2.0])


def test_two_messages_of_one_channel_do_not_slow_each_other() -> None:
    one = channel((0, 1, 1), 3.0)
    assert ends_of([(0.0, one), (1.0, one)]) == [3.0, 4.0]


@pytest.mark.parametrize("seed", range(4))
def test_as_in_small_steps_of_time(seed: int) -> None:
    """Ten transfers among four nodes, moved on by 0.2 ms at a time."""
    rng = np.random.default_rng(seed)
    flows = []
    for _ in range(10):
        i, j = rng.choice(4, 2, replace=False).tolist()
        flows.append((i, j, int(rng.integers(1, 4))))
    starts, alone = rng.uniform(0, 2, 10), rng.uniform(0.2, 1.5, 10)
    found = ends_of([(s, channel(f, a)) for s, f, a in zip(starts.tolist(), flows, alone.tolist(), strict=True)])
    left, ends, step = np.ones(10), np.zeros(10), 2e-4
    for tick in range(200_000):
        now = tick * step
        active = [k for k in range(10) if starts[k] <= now and left[k] > 0]
        if not active and now > 2:
            break
        for k in active:
            i, j, own = flows[k]
            out = sum(flows[n][2] for n in active if flows[n][0] == i)
            into = sum(flows[n][2] for n in active if flows[n][1] == j)
            left[k] -= step / alone[k] * own / max(out, into)
            ends[k] = now + step
    assert found == pytest.approx(ends.tolist(), abs=20 * step)
