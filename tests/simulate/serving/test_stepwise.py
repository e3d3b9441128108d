"""The simulator equals a slow one that goes token by token, for replicas of any shape under any load."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetsched.cluster import Cluster
from hetsched.cost.network import Lanes
from hetsched.cost.serving.kv_transfer import kv_parts, part_s
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.plan import ServingOptions, ServingPlan
from hetsched.requests import Requests
from hetsched.simulate.serving.result import ServingRun
from hetsched.simulate.serving.run import Settings, simulate_serving
from tests.simulate.serving.conftest import MODEL, random_requests
from tests.simulate.serving.stepwise import Request, play, play_disaggregated

Make = Callable[..., tuple[ServingPlan, dict[str, ReplicaTimes]]]
SHARED = [HealthCheck.function_scoped_fixture]  # the fixtures hold nothing that a run changes

shapes = st.tuples(st.integers(1, 4), st.integers(260, 1500), st.integers(1, 12))
options = st.builds(
    ServingOptions,
    chunked_prefill_tokens=st.sampled_from([0, 0, 16, 64, 300]),
    max_prefill_tokens=st.sampled_from([1, 150, 8192]),
)
gaps_s = st.sampled_from([1e-4, 2e-3, 1e-2, 0.1])


def asked(requests: Requests) -> list[Request]:
    rows = zip(requests.arrival_s, requests.input_tokens, requests.output_tokens, strict=True)
    return [Request(float(at), int(prompt), int(output)) for at, prompt, output in rows]


def check_equal(run: ServingRun, slow: list[Request]) -> None:
    assert not run.rejected.any()
    np.testing.assert_allclose(run.first_s, [job.token_times[0] for job in slow], rtol=1e-9)
    np.testing.assert_allclose(run.finish_s, [job.token_times[-1] for job in slow], rtol=1e-9)
    assert run.preemptions.tolist() == [job.preemptions for job in slow]
    assert [len(job.token_times) for job in slow] == run.requests.output_tokens.tolist()


@settings(max_examples=40, deadline=None, suppress_health_check=SHARED)
@given(shape=shapes, option=options, gap_s=gaps_s, seed=st.integers(0, 10**6))
def test_one_replica(
    serving_cluster: Cluster,
    serving_plan: Make,
    shape: tuple[int, int, int],
    option: ServingOptions,
    gap_s: float,
    seed: int,
) -> None:
    plan, times = serving_plan([shape], option)
    requests = random_requests(seed, 30, gap_s)
    slow = asked(requests)
    (replica,) = play(slow, [(times["r0"], shape[2])], option, lambda *_: 0)
    run = simulate_serving(serving_cluster, plan, requests, times=times)
    check_equal(run, slow)
    (load,) = run.loads
    assert load.kv_peak_tokens == replica.peak_kv <= shape[1]
    by_prefill = requests.output_tokens.sum() - load.decoded_tokens  # the first, and one after each preemption
    assert len(slow) <= by_prefill <= len(slow) + run.preemptions.sum()


@settings(max_examples=15, deadline=None, suppress_health_check=SHARED)
@given(pair=st.tuples(shapes, shapes, shapes), gap_s=gaps_s, seed=st.integers(0, 10**6))
def test_the_least_loaded_of_three(
    serving_cluster: Cluster, serving_plan: Make, pair: tuple[tuple[int, int, int], ...], gap_s: float, seed: int
) -> None:
    plan, times = serving_plan(pair)
    requests = random_requests(seed, 40, gap_s)
    slow = asked(requests)
    replicas = [(times[f"r{k}"], shape[2]) for k, shape in enumerate(pair)]
    play(slow, replicas, ServingOptions(), lambda _, under_way: under_way.index(min(under_way)))
    run = simulate_serving(serving_cluster, plan, requests, Settings("least-loaded"), times=times)
    assert run.replica.tolist() == [job.replica for job in slow]
    check_equal(run, slow)


@pytest.mark.parametrize("routing", ["shares", "random"])
def test_replicas_played_one_by_one_or_together_are_equal(
    serving_cluster: Cluster, serving_plan: Make, routing: str
) -> None:
    plan, times = serving_plan([(1, 800, 6), (3, 500, 5), (2, 400, 9)])
    requests = random_requests(7, 80, 1e-2)
    run = simulate_serving(serving_cluster, plan, requests, Settings(routing, seed=5), times=times)
    choices = run.replica.tolist()
    slow = asked(requests)
    replicas = [(times[p.name], p.max_batch) for p in plan.pipelines]
    play(slow, replicas, plan.options, lambda number, _: int(choices[number]))
    check_equal(run, slow)


@settings(max_examples=25, deadline=None, suppress_health_check=SHARED)
@given(pair=st.tuples(shapes, shapes), option=options, gap_s=gaps_s, seed=st.integers(0, 10**6))
def test_prefill_and_decode_apart(
    serving_cluster: Cluster,
    serving_plan: Make,
    pair: tuple[tuple[int, int, int], tuple[int, int, int]],
    option: ServingOptions,
    gap_s: float,
    seed: int,
) -> None:
    plan, times = serving_plan([(1, *pair[0][1:]), (1, *pair[1][1:])], option, roles=("prefill", "decode"))
    requests = random_requests(seed, 30, gap_s)
    (part,) = kv_parts(serving_cluster, MODEL, plan.precision, plan.pipelines[0].stages, plan.pipelines[1].stages)
    per_token_s, latency_s = part_s(serving_cluster, part, Lanes())
    slow = asked(requests)
    play_disaggregated(
        slow,
        (times["r0"], pair[0][2]),
        (times["r1"], pair[1][2]),
        option,
        lambda tokens: (tokens * per_token_s, latency_s),
    )
    check_equal(simulate_serving(serving_cluster, plan, requests, times=times), slow)
