"""The whole search, mode and all, against every plan of a few GPUs; and variants of layouts."""

from itertools import pairwise

import pytest

from hetsched.plan import Stage
from hetsched.serving.judge import Judge
from hetsched.serving.search import plan_serving
from hetsched.solvers.serving.phases import Phases
from hetsched.solvers.serving.variants import variants
from hetsched.solvers.serving.workshop import Workshop
from tests.serving.exhaustive import BEYOND, best_of_all, every_plan, instance


@pytest.mark.parametrize(("seed", "most"), [(3, 3), (9, 3), (11, 3), (103, 6), (129, 6)])
def test_as_good_as_every_plan(seed: int, most: int) -> None:
    """`bench_disaggregated.py exact` does so for 30 instances of up to six GPUs; and no plan is better than all."""
    problem = instance(seed, most)
    judge = Judge(problem, None)
    optimum, _ = best_of_all(problem, judge)
    assert optimum is not None
    found = judge.verdict(plan_serving(problem, None, 0.92, None).best.draft)
    assert found is not None
    assert 0.97 * optimum.rate_per_s <= found.rate_per_s <= 1.01 * optimum.rate_per_s


def test_nothing_does_more_than_its_replicas_by_themselves() -> None:
    """Of three GPUs every plan is played: that those which promise less than the best need not be is so."""
    problem = instance(113, 6)
    judge = Judge(problem, None)
    workshop = Workshop(problem, 0.92, None)
    phases, beyond = Phases(workshop), list[float]()
    for bound_per_s, replicas in every_plan(workshop, judge):
        draft = phases.draft(phases.flowing(replicas))
        if draft is not None:
            verdict = judge.verdict(draft)
            assert verdict is not None
            beyond.append(verdict.rate_per_s / bound_per_s)
    assert len(beyond) > 20
    assert max(beyond) < BEYOND


def test_variants_use_the_same_gpus_and_hold_all_blocks() -> None:
    problem = instance(15, 5, blocks=9)
    cluster = problem.cluster
    names = [f"{node.name}/{k}" for node in cluster.nodes for k in range(len(node.gpus))]
    stages = tuple(Stage((3 * k, 3 * k + 3), (name,)) for k, name in enumerate(names[:3]))
    found = variants(cluster, problem.model, stages)
    assert found[0] == stages
    assert len(set(found)) == len(found) > 6
    for each in found:
        assert sorted(name for stage in each for name in stage.devices) == sorted(names[:3])
        ends = [0, *(stage.layers[1] for stage in each)]
        assert [stage.layers for stage in each] == list(pairwise(ends))
        assert ends[-1] == 9
    assert any(len(stage.devices) == 2 for each in found for stage in each)
