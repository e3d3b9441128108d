"""The judge's rates: overload does not pass because a run is short, and equal replicas get equal rates."""

from dataclasses import replace

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cost.serving.placed import even_stages, one_machine
from hetsched.cost.serving.plan_cost import price_serving
from hetsched.plan import Stage
from hetsched.readers import resolve_model
from hetsched.requests import sampled
from hetsched.serving.judge import Judge
from hetsched.serving_problem import ServingProblem
from hetsched.solvers.serving.phases import Phases
from hetsched.solvers.serving.workshop import Workshop
from hetsched.workload import Limit, ServingLoad, Slo
from tests.serving.exhaustive import instance

MODEL = resolve_model("llama-3.1-8b", "test")
GPU = find_gpu("L4-24GB", "test")


@pytest.mark.parametrize("slo", [Slo(ttft=Limit(0.5)), Slo(tpot=Limit(0.2)), Slo()])
@pytest.mark.parametrize("objective", ["throughput", "attainment", "cost"])
def test_a_rate_is_kept_only_where_no_queue_grows(slo: Slo, objective: str) -> None:
    """Limits on the first token alone, or on the others, say nothing of requests that pile up in between."""
    if objective == "attainment" and not slo.limits:
        return
    cluster = one_machine(GPU, 2, None)
    requests = sampled(ServingLoad(300, 40), 300, np.random.default_rng(0))
    load = ServingLoad(300, 40, None if objective == "throughput" else 100.0, slo=slo)
    problem = ServingProblem(cluster, MODEL, load, requests, objective=objective)
    workshop = Workshop(problem, 0.92, None)
    layers = even_stages(cluster, GPU, MODEL, 1, 1)[0].layers
    draft = workshop.assembled([workshop.made([Stage(layers, (f"node/{k}",))]) for k in range(2)])
    judge = Judge(problem, None)
    verdict = judge.verdict(draft)
    assert verdict is not None
    if objective == "throughput":
        assert 0.0 < verdict.rate_per_s <= judge.most_per_s(draft) < 100.0
    else:
        assert not verdict.keeps
    assert {type(verdict.keeps), type(verdict.rate_per_s)} == {bool, float}  # as JSON has them


def test_a_limit_of_years_bounds_nothing() -> None:
    """A run as long as that is not played: the rate is what the plan does when it is full."""
    cluster = one_machine(GPU, 1, None)
    load = ServingLoad(300, 40, slo=Slo(e2e=Limit(1e9)))
    problem = ServingProblem(cluster, MODEL, load, sampled(load, 300, np.random.default_rng(0)))
    workshop = Workshop(problem, 0.92, None)
    draft = workshop.assembled([workshop.made([Stage((0, MODEL.num_layers), ("node/0",))])])
    judge = Judge(problem, None, count=300)
    assert judge.highest(draft, 1000.0) == pytest.approx(judge.most_per_s(draft), rel=0.03)


def test_a_loose_limit_lets_no_more_through_than_can_be_served() -> None:
    """An end-to-end limit of a minute; a run of 800 requests alone would fit into it at three times the capacity."""
    cluster = one_machine(GPU, 2, None)
    load = ServingLoad(300, 40, slo=Slo(e2e=Limit(60.0)))
    requests = sampled(load, 500, np.random.default_rng(0))
    problem = ServingProblem(cluster, MODEL, load, requests)
    workshop = Workshop(problem, 0.92, None)
    layers = even_stages(cluster, GPU, MODEL, 1, 1)[0].layers
    replicas = [workshop.made([Stage(layers, (f"node/{k}",))]) for k in range(2)]
    draft = workshop.assembled(replicas)
    verdict = Judge(problem, None).verdict(draft)
    assert verdict is not None
    capacity = price_serving(cluster, draft.plan).capacity_per_s
    assert 0.8 * capacity < verdict.rate_per_s < 1.1 * capacity
    judge = Judge(problem, None)
    assert judge.rate_alone(replicas[0]) == judge.rate_alone(replicas[1])
    assert abs(judge.rate_alone(replicas[0]) / (verdict.rate_per_s / 2) - 1) < 0.15


@pytest.mark.parametrize(
    ("seed", "devices", "limit"),
    [(114, ("n0/0", "n0/1"), "room"), (112, ("n0/0", "n1/0"), "link"), (118, ("n0/0", "n0/1"), "prompts")],
)
def test_a_full_plan_of_two_phases_does_what_it_does_in_the_long_run(
    seed: int, devices: tuple[str, str], limit: str
) -> None:
    """Whatever limits it: the decode replica's room for sequences, the link between both, or prompts.

    While KV caches wait their requests make no tokens; counted as if they did, the first did 1.8 times as much, and the
    second, whose decode replica is never full, 2.1 times. What replicas and networks do alone promises the same.
    """
    problem = instance(seed, 6)
    workshop, judge = Workshop(problem, 0.92, None), Judge(problem, None)
    phases, layers = Phases(workshop), (0, problem.model.num_layers)
    roles = zip(devices, ("prefill", "decode"), strict=True)
    made = [workshop.made([Stage(layers, (name,))], role) for name, role in roles]
    draft = phases.draft(phases.flowing(made))
    assert draft is not None
    short, long = (replace(judge, count=count).play(draft, None) for count in (1500, 4500))
    assert (long.loads[1].peak_batch == made[1].max_batch) == (limit == "room")
    per_s = (long.served - short.served) / (long.span_s - short.span_s)
    assert judge.most_per_s(draft) == pytest.approx(per_s, rel=0.02)
    assert judge.promised_per_s(draft) == pytest.approx(per_s, rel=0.02)


@pytest.mark.parametrize("seed", [102, 116])
def test_a_full_replica_of_both_phases_does_what_it_does_in_the_long_run(seed: int) -> None:
    """Also where the link between its stages is what works most (102), and prompts are most of the work (both)."""
    problem = instance(seed, 6)
    workshop, judge = Workshop(problem, 0.92, None), Judge(problem, None)
    names = {102: ("n2/0", "n1/0"), 116: ("n0/0",)}[seed]
    layers = {102: ((0, 2), (2, 3)), 116: ((0, 3),)}[seed]
    made = workshop.made([Stage(blocks, (name,)) for blocks, name in zip(layers, names, strict=True)])
    draft = workshop.assembled([made])
    short, long = (replace(judge, count=count).play(draft, None) for count in (1500, 4500))
    per_s = (long.served - short.served) / (long.span_s - short.span_s)
    assert judge.most_per_s(draft) == pytest.approx(per_s, rel=0.03)
    assert judge.rate_alone(made) == pytest.approx(per_s, rel=0.03)


def test_lengths_are_spread_as_those_they_are_of() -> None:
    """Means of any number of requests are those of all, where chance would leave 3 %."""
    requests = instance(102, 6).requests
    for count in (250, 800, 2900):
        some = requests.spread(count, np.random.default_rng(1))
        assert len(some) == count
        assert some.mean_input_tokens == pytest.approx(requests.mean_input_tokens, rel=0.01)
        assert some.mean_output_tokens == pytest.approx(requests.mean_output_tokens, rel=0.02)
        assert set(zip(some.input_tokens, some.output_tokens, strict=True)) <= set(
            zip(requests.input_tokens, requests.output_tokens, strict=True)
        )
