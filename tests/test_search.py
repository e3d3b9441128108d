"""The stop rules, each at its edge."""

import pytest

from hetsched.search import AnyOf, MaxSeconds, MaxSteps, NoImprovement, Progress, StopRule


@pytest.mark.parametrize(
    ("rule", "stops"),
    [
        (MaxSteps(10), True),
        (MaxSteps(11), False),
        (MaxSeconds(2.5), True),
        (MaxSeconds(2.6), False),
        (NoImprovement(4), True),
        (NoImprovement(5), False),
        (AnyOf((MaxSteps(11), NoImprovement(4))), True),
        (AnyOf((MaxSteps(11), MaxSeconds(2.6))), False),
    ],
)
def test_a_rule_stops_at_its_limit(rule: StopRule, stops: bool) -> None:
    assert rule(Progress(steps=10, seconds=2.5, steps_since_gain=4, best=None)) is stops
