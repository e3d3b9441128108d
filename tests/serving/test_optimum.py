"""The whole search, mode and all, against every plan of a few GPUs; and variants of layouts."""

from itertools import pairwise

import pytest

from hetsched.plan import Stage
from hetsched.serving.judge import Judge
from hetsched.serving.search import plan_serving
from hetsched.solvers.serving.variants import variants
from tests.serving.exhaustive import best_of_all, instance


@pytest.mark.parametrize("seed", [3, 9, 11])
def test_within_three_percent_of_every_plan(seed: int) -> None:
    """`bench_disaggregated.py exact` does so for 30 instances of up to six GPUs."""
    problem = instance(seed, 3)
    optimum = best_of_all(problem, Judge(problem, None))
    assert optimum is not None
    assert plan_serving(problem, None, 0.92, None).best.rate_per_s >= 0.97 * optimum.rate_per_s


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
