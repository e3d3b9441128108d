"""Simulations whose answer is known: queueing theory, schedules by hand, and what must never be lost."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.network import Lanes
from hetsched.cost.serving.kv_transfer import kv_parts, part_s, route_s
from hetsched.cost.serving.reference import alone
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.plan import Route, ServingOptions, ServingPipeline, ServingPlan, equal_routes
from hetsched.requests import Requests, poisson
from hetsched.simulate.serving.limits import highest_rate, saturated_per_s
from hetsched.simulate.serving.run import Settings, simulate_serving
from hetsched.workload import Limit, ServingLoad, Slo
from tests.simulate.serving.conftest import MODEL, random_requests, stages_on

Make = Callable[..., tuple[ServingPlan, dict[str, ReplicaTimes]]]


def same(count: int, arrival_s: object, prompt: int, output: int) -> Requests:
    return Requests(
        np.broadcast_to(np.asarray(arrival_s, dtype=float), (count,)).copy(),
        np.full(count, prompt),
        np.full(count, output),
    )


def test_one_request_alone_takes_what_its_steps_take(serving_cluster: Cluster, serving_plan: Make) -> None:
    for depth in (1, 3):
        plan, times = serving_plan([(depth, 4000, 4)])
        for prompt, output in ((1, 1), (100, 1), (700, 50)):
            run = simulate_serving(serving_cluster, plan, same(1, 2.0, prompt, output), times=times)
            first_s, last_s = alone(times["r0"], prompt, output)
            assert run.ttft_s[0] == pytest.approx(float(first_s))
            assert run.e2e_s[0] == pytest.approx(float(last_s))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_equal_requests_one_at_a_time_wait_as_in_an_m_d_1_queue(
    serving_cluster: Cluster, serving_plan: Make, load: float
) -> None:
    """Pollaczek and Khinchine: the mean wait is rho / (2 mu (1 - rho)) where each is served in 1 / mu."""
    plan, times = serving_plan([(1, 1000, 1)])
    service_s = float(alone(times["r0"], 300, 20)[1])
    count = 40_000
    requests = same(count, poisson(count, load / service_s, np.random.default_rng(11)), 300, 20)
    run = simulate_serving(serving_cluster, plan, requests, times=times)
    wait_s = float((run.e2e_s - service_s).mean())
    assert wait_s == pytest.approx(load / (2 / service_s * (1 - load)), rel=0.05)
    assert run.loads[0].busy[0] == pytest.approx(load, rel=0.02)


def test_unequal_requests_wait_as_in_an_m_g_1_queue(serving_cluster: Cluster, serving_plan: Make) -> None:
    """The mean wait is lambda E[S^2] / (2 (1 - rho))."""
    plan, times = serving_plan([(1, 4000, 1)])
    rng, count = np.random.default_rng(5), 40_000
    outputs = rng.geometric(1 / 40, count)
    service_s = alone(times["r0"], 200, outputs)[1]
    rate = 0.6 / float(service_s.mean())
    requests = Requests(poisson(count, rate, rng), np.full(count, 200), outputs)
    run = simulate_serving(serving_cluster, plan, requests, times=times)
    expected = rate * float((service_s**2).mean()) / (2 * (1 - 0.6))
    assert float((run.e2e_s - service_s).mean()) == pytest.approx(expected, rel=0.08)


def test_a_schedule_by_hand(serving_cluster: Cluster, serving_plan: Make) -> None:
    """Two requests share a replica: prefill, decode, the second's prefill goes first, then both decode."""
    plan, times = serving_plan([(1, 1000, 2)], overhead_s=0.001)
    replica = times["r0"]

    def prefill_s(tokens: int) -> float:
        return float(replica.prefill_s(0, tokens, tokens * (tokens + 1) / 2)) + 0.001

    def decode_s(*contexts: int) -> float:
        return float(replica.decode_s(0, len(contexts), sum(contexts))) + 0.001

    first_ends = prefill_s(100)
    comes = first_ends + decode_s(101) / 2  # while the first makes its second token
    requests = Requests(np.array([0.0, comes]), np.array([100, 50]), np.array([4, 2]))
    run = simulate_serving(serving_cluster, plan, requests, times=times)
    at = first_ends + decode_s(101) + prefill_s(50)
    assert run.first_s == pytest.approx([first_ends, at])
    at += decode_s(102, 51)
    assert run.finish_s[1] == pytest.approx(at)
    assert run.finish_s[0] == pytest.approx(at + decode_s(103))


def test_stages_work_on_several_groups_at_once(serving_cluster: Cluster, serving_plan: Make) -> None:
    """Where each has its own, P requests on P stages take hardly longer than one; on one stage they would batch."""
    plan, times = serving_plan([(4, 4000, 4)], overhead_s=0.0)
    free = replace(times["r0"], hops=tuple(replace(hop, latency_s=0.0, per_token_s=0.0) for hop in times["r0"].hops))
    run = simulate_serving(serving_cluster, plan, same(4, 0.0, 10, 400), times={"r0": free})
    alone_s = float(alone(free, 10, 400)[1])
    stages_s = [float(free.decode_s(stage, 1, 200)) for stage in range(4)]
    bound_s = 4 * max(stages_s) * 399  # the slowest stage does each step of each request
    assert max(alone_s, bound_s) <= run.e2e_s.max() <= 1.1 * max(alone_s, bound_s)


def test_tokens_and_requests_are_conserved(serving_cluster: Cluster, serving_plan: Make) -> None:
    shapes = [(1, 700, 8), (2, 500, 6), (1, 600, 9), (3, 900, 7)]
    plan, times = serving_plan(shapes, roles=("prefill", "both", "decode", "decode"))
    requests = random_requests(3, 400, 0.02)
    run = simulate_serving(serving_cluster, plan, requests, times=times)
    assert run.served == len(requests) == sum(load.requests for load in run.loads)
    assert (run.ttft_s > 0).all()
    assert (run.finish_s >= run.first_s).all()
    made = sum(load.decoded_tokens for load in run.loads)
    assert made <= requests.output_tokens.sum() - len(requests) <= made + run.preemptions.sum()
    for load, (_, capacity, most) in zip(run.loads, shapes, strict=True):
        assert 0 < load.kv_mean_tokens <= load.kv_peak_tokens <= capacity
        assert load.peak_batch <= most
        assert all(0 < busy <= 1 for busy in load.busy)


def test_a_request_that_never_fits_is_rejected(serving_cluster: Cluster, serving_plan: Make) -> None:
    plan, times = serving_plan([(1, 300, 4)])
    requests = Requests(np.arange(3.0), np.array([10, 290, 290]), np.array([5, 12, 11]))
    run = simulate_serving(serving_cluster, plan, requests, times=times)
    assert run.rejected.tolist() == [False, True, False]
    assert run.attainment(Slo(e2e=Limit(1e9))) == pytest.approx(2 / 3)
    assert run.predicted(None)["rejected"] == 1


def test_equal_seeds_equal_runs_and_shares_are_kept(serving_cluster: Cluster, serving_plan: Make) -> None:
    plan, times = serving_plan([(1, 2000, 8), (1, 2000, 8), (2, 2000, 8)])
    plan = replace(plan, routes=(Route(None, "r0", 0.5), Route(None, "r1", 0.2), Route(None, "r2", 0.3)))
    requests = random_requests(1, 1000, 0.5)
    for routing, within in (("shares", 1.0), ("random", 60.0)):
        runs = [
            simulate_serving(serving_cluster, plan, requests, Settings(routing, seed), times=times)
            for seed in (4, 4, 5)
        ]
        assert np.array_equal(runs[0].finish_s, runs[1].finish_s)
        assert np.array_equal(runs[0].finish_s, runs[2].finish_s) == (routing == "shares")
        assert [load.requests for load in runs[0].loads] == pytest.approx([500, 200, 300], abs=within)


def test_kv_on_its_way_shares_the_network(serving_plan: Make) -> None:
    """Two prefill nodes send to two GPUs of one node at once: each gets half of what comes in there."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    nodes = (Node("a", "r", (gpu,)), Node("b", "r", (gpu,)), Node("c", "r", (gpu, gpu)))
    network = Network(np.full((3, 3), 1e9), np.zeros((3, 3)))
    cluster = Cluster("three", nodes, network)
    names = {"p0": "a/0", "p1": "b/0", "d0": "c/0", "d1": "c/1"}
    pipelines = tuple(
        ServingPipeline(name, stages_on([device]), 4, "prefill" if name[0] == "p" else "decode")
        for name, device in names.items()
    )
    routes = (
        Route(None, "p0", 0.5),
        Route(None, "p1", 0.5),
        Route("p0", "d0", 1.0),
        Route("p1", "d1", 1.0),
    )
    plan = ServingPlan(MODEL, ServingLoad(), pipelines, routes, ServingOptions())
    _, times = serving_plan([(1, 5000, 4)])
    known = dict.fromkeys(names, times["r0"])
    gaps = {}
    for count in (1, 2):
        run = simulate_serving(cluster, plan, same(count, 0.0, 1000, 2), Settings(record=0), times=known)
        (sent,) = [moment for moment in run.moments if moment.what == "transfer"]
        gaps[count] = sent.end_s - sent.start_s
    assert gaps[1] == pytest.approx(1000 * 12 * 2 * 768 * 2 / 1e9)
    assert gaps[2] == pytest.approx(2 * gaps[1])
    stages = [pipeline.stages for pipeline in pipelines]
    parts = kv_parts(cluster, MODEL, plan.precision, stages[0], stages[2])
    assert route_s(cluster, parts, 1000) == pytest.approx(gaps[1])


@pytest.mark.parametrize("bandwidth", [1e6, 1e12])
def test_kv_sent_while_the_prompt_is_worked_on(serving_plan: Make, bandwidth: float) -> None:
    """It begins with the prompt; it ends when the network is done, or a block after the first token is made."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    network = Network(np.full((2, 2), bandwidth), np.full((2, 2), 1e-3))
    cluster = Cluster("two", (Node("a", "r", (gpu,)), Node("b", "r", (gpu,))), network)
    pipelines = (
        ServingPipeline("p0", stages_on(["a/0"]), 4, "prefill"),
        ServingPipeline("d0", stages_on(["b/0"]), 4, "decode"),
    )
    options = ServingOptions(kv_overlap=True)
    plan = ServingPlan(MODEL, ServingLoad(), pipelines, equal_routes(pipelines), options)
    _, times = serving_plan([(1, 5000, 4)])
    known = {"p0": times["r0"], "d0": times["r0"]}
    run = simulate_serving(cluster, plan, same(1, 5.0, 1000, 2), times=known)
    whole_s = 1000 * 12 * 2 * 768 * 2 / bandwidth
    step_s = float(times["r0"].decode_s(0, 1, 1001)) + times["r0"].overhead_s
    lands_s = max(5.0 + whole_s, float(run.first_s[0]) + whole_s / 12) + 1e-3
    assert run.finish_s[0] == pytest.approx(lands_s + step_s, rel=1e-12)
    apart = replace(plan, options=ServingOptions())
    waits = simulate_serving(cluster, apart, same(1, 5.0, 1000, 2), times=known)
    assert waits.finish_s[0] == pytest.approx(float(run.first_s[0]) + whole_s + 1e-3 + step_s, rel=1e-12)


def test_kv_goes_from_the_stages_that_hold_it_to_those_that_need_it(
    serving_cluster: Cluster, serving_plan: Make
) -> None:
    plan, _ = serving_plan([(2, 900, 4), (3, 900, 4)], roles=("prefill", "decode"))
    stages = [pipeline.stages for pipeline in plan.pipelines]  # [0, 5, 12) and [0, 3, 8, 12)
    parts = kv_parts(serving_cluster, MODEL, plan.precision, *stages)
    per_block = 2 * 768 * 2
    assert [part.bytes_per_token / per_block for part in parts] == [3, 2, 3, 4]
    assert sum(part.bytes_per_token for part in parts) == 12 * per_block
    slowest = max(1000 * part_s(serving_cluster, part, Lanes())[0] for part in parts)
    assert route_s(serving_cluster, parts, 1000) >= slowest


def test_slo_limits(serving_cluster: Cluster, serving_plan: Make) -> None:
    plan, times = serving_plan([(1, 4000, 8)])
    run = simulate_serving(serving_cluster, plan, random_requests(2, 300, 0.02), times=times)
    ttft_s = float(np.percentile(run.ttft_s, 80))
    assert run.attainment(Slo(ttft=Limit(ttft_s))) == pytest.approx(0.8, abs=0.01)
    assert run.keeps(Slo(ttft=Limit(ttft_s, 75.0)))
    assert not run.keeps(Slo(ttft=Limit(ttft_s, 90.0)))
    both = run.meets(Slo(ttft=Limit(ttft_s), e2e=Limit(float(np.median(run.e2e_s)))))
    assert np.array_equal(both, (run.ttft_s <= ttft_s) & (run.e2e_s <= np.median(run.e2e_s)))
    assert run.attainment(Slo(scale=Limit(1.0 - 1e-9)), times["r0"]) < 0.2
    assert run.attainment(Slo(scale=Limit(1e6)), times["r0"]) == 1.0


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_what_a_plan_keeps_up_with(serving_cluster: Cluster, serving_plan: Make, share: float) -> None:
    """Of equal requests in equal crowds, and of mixed ones: so many come in the long run, at the replica that is full
    first. Two replicas do not keep up with twice what one does where one of them gets more than half."""
    one, times = serving_plan([(1, 4000, 8)])
    two, both = serving_plan([(1, 4000, 8), (1, 4000, 8)])
    two = replace(two, routes=(Route(None, "r0", share), Route(None, "r1", 1.0 - share)))
    for requests in (same(4000, 0.0, 200, 30), random_requests(3, 4000, 0.0)):
        long = simulate_serving(serving_cluster, one, requests, times=times)
        rate = saturated_per_s(long)
        assert rate == pytest.approx(long.requests_per_s, rel=0.01)
        short = simulate_serving(serving_cluster, two, requests.first(150), times=both)
        assert saturated_per_s(short) == pytest.approx(rate / (1.0 - share), rel=0.1)


@pytest.mark.parametrize("true_rate", [0.037, 0.9, 1.0, 5.0, 800.0])
def test_the_highest_rate_is_found_from_anywhere(true_rate: float) -> None:
    for guess in (0.01, 1.0, 300.0):
        asked: list[float] = []
        found = highest_rate(lambda rate, asked=asked: asked.append(rate) or rate <= true_rate, guess)  # type: ignore[misc]
        assert true_rate / 1.021 <= found <= true_rate
        assert len(asked) <= 40
    assert highest_rate(lambda _: False, 1.0) == 0.0
