"""Where nothing fits: the limit, the device, by how much, and levers that do what the message says."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster
from hetsched.cost.training import Roofline
from hetsched.errors import InfeasibleError
from hetsched.infeasible import infeasible, levers
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.problem import Choices, Problem
from hetsched.search import MaxSteps, solve
from hetsched.solvers import SOLVERS
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]
MODEL = find_model("gpt3-xl")


def problem_of(cluster: Cluster, choices: Choices, batch: int = 32) -> Problem:
    assert MODEL is not None
    return Problem(cluster, MODEL, TrainingJob(batch, 2048, choices.micro_batch or 1), choices)


def test_a_lever_is_named_where_it_makes_the_plan_fit(random_cluster: MakeCluster) -> None:
    """Four cards of 16 GiB hold the states of a quarter of GPT3-XL each, but not the activations of 8 sequences."""
    cluster = random_cluster(0, (4,), kinds=("V100-SXM2-16GB",))
    choices = Choices(replicas=1, stages=4, micro_batch=8, schedule="1f1b", recompute=False, zero=0)
    with pytest.raises(InfeasibleError) as caught:
        solve(problem_of(cluster, choices), SOLVERS["auto"], Roofline(), stop=MaxSteps(4))
    assert caught.value.exit_code == 3
    assert re.search(r"n0/\d needs \d+\.\d GiB, \d+\.\d GiB are usable \(\d+\.\d GiB too much\)", caught.value.message)
    assert "with --micro-batch 1 that plan fits" in caught.value.hint
    fixed = solve(problem_of(cluster, replace(choices, micro_batch=1)), SOLVERS["auto"], Roofline(), stop=MaxSteps(4))
    assert fixed.cost.feasible


def test_levers_keep_the_batch_and_the_named_gpu_is_large_enough(random_cluster: MakeCluster) -> None:
    cluster = random_cluster(0, (1, 1), kinds=("RTX-2080Ti-11GB",))
    assert MODEL is not None
    pipelines = tuple(Pipeline(f"p{k}", (Stage((0, 24), (f"n{k}/0",)),), 3) for k in range(2))
    plan = Plan(MODEL, TrainingJob(21, 2048, 4), pipelines, Options("gpipe"))
    problem = problem_of(cluster, Choices(), batch=21)
    changed = dict(levers(problem, plan))
    assert {"--recompute", "--zero 3", "--schedule 1f1b", "--micro-batch 1", "--seq-len 1024"} < changed.keys()
    assert sum(pipeline.micro_batches for pipeline in changed["--micro-batch 1"].pipelines) == 21
    model = Roofline()
    error = infeasible(problem, model, plan, model.price(cluster, plan))
    kind = re.search(r"such as (\S+), in place of RTX-2080Ti-11GB", error.hint)
    assert kind is not None
    larger = random_cluster(0, (1, 1), kinds=(find_gpu(kind.group(1), "test").kind,))
    assert model.price(larger, plan).feasible


def test_the_nearest_plan_lacks_no_more_than_one_by_hand(random_cluster: MakeCluster) -> None:
    """Layers by memory, where two kinds of GPU are both a little too small: an even split lacks far more on one."""
    cluster = random_cluster(0, (1, 1), kinds=("A100-SXM-40GB", "V100-SXM2-16GB"))
    model = find_model("opt-2.7b") or find_model("gpt-neo-2.7b")
    assert model is not None
    choices = Choices(replicas=1, micro_batch=1, schedule="1f1b")
    problem = Problem(cluster, model, TrainingJob(8, 2048), choices)
    by_hand = []
    for cut in range(1, model.num_layers):
        stages = Stage((0, cut), ("n0/0",)), Stage((cut, model.num_layers), ("n1/0",))
        plan = Plan(model, problem.job, (Pipeline("p0", stages, 8),), Options("1f1b", recompute=True))
        by_hand.append(Roofline().price(cluster, plan))
    assert not any(cost.feasible for cost in by_hand)
    for solver in ("auto", "hierarchical"):
        candidates = SOLVERS[solver].search(problem, Roofline(), np.random.default_rng(0))
        least = min(candidate.cost.rank()[0] for candidate in islice(candidates, 8))
        assert least <= 1.05 * min(cost.rank()[0] for cost in by_hand)
