"""Which micro-batch sizes are searched, and that the best of all is found and bounded.

Sizes end where a longer pass no longer makes a token cheaper. Measured with `auto` at every fixed size on home-office,
eight H100 and hexgen2-mixed, gpt2, opt-350m and gpt3-xl at 128, 512 and 1,024 tokens, 512 sequences: of these 27 the
best size is searched in 19, and in the others the best of those that are is 1.5 % off at most.
"""

from dataclasses import replace
from itertools import permutations, product
from math import inf

import numpy as np
import pytest

from hetsched.bound import lower_bound_s
from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost.compute import Worker, stage_work
from hetsched.cost.training import Roofline
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.problem import USUAL_MICRO_BATCH, Choices, Problem
from hetsched.search import AnyOf, MaxSteps, Progress, solve
from hetsched.solvers import SOLVERS
from hetsched.solvers.arena import Arenas
from hetsched.workload import TrainingJob
from tests.bound.enumerate_plans import every_chains
from tests.contract.test_asymmetric_optimum import instance

GPUS = ("RTX-3090-24GB", "A100-SXM-80GB", "H100-SXM-80GB")
LARGE_BATCH = 10**6
ALL_OPEN = Choices()


def model_of(name: str) -> ModelSpec:
    model = find_model(name)
    assert model is not None
    return model


def one_gpu(model: ModelSpec, kind: str, job: TrainingJob, choices: Choices = ALL_OPEN) -> Problem:
    node = Node("n", "r", (find_gpu(kind, "test"),))
    return Problem(Cluster("one", (node,), Network(np.ones((1, 1)), np.ones((1, 1)))), model, job, choices)


def token_s(model: ModelSpec, kind: str, seq_len: int, micro_batch: int) -> float:
    """Of a block in the middle, both passes."""
    job = TrainingJob(LARGE_BATCH, seq_len, micro_batch)
    work = stage_work(Worker(find_gpu(kind, "test")), model, job, (1, 2), recompute=False)
    return (work.forward_s + work.backward_s) / micro_batch / seq_len


@pytest.mark.parametrize(("name", "kind"), list(product(("gpt2", "opt-350m", "gpt3-xl"), GPUS)))
def test_sizes_go_as_far_as_longer_passes_help(name: str, kind: str) -> None:
    model = model_of(name)
    for seq_len in (128, 512, 1024):
        sizes = one_gpu(model, kind, TrainingJob(LARGE_BATCH, seq_len)).micro_batches
        assert sizes == tuple(2**power for power in range(len(sizes)))
        least_s = token_s(model, kind, seq_len, 1024 * sizes[-1])
        assert token_s(model, kind, seq_len, sizes[-1]) < 1.035 * least_s
        if sizes[-1] > USUAL_MICRO_BATCH:
            assert token_s(model, kind, seq_len, sizes[-2]) > 1.03 * least_s


def test_long_sequences_of_large_models_have_the_usual_sizes() -> None:
    for kind in GPUS:
        assert one_gpu(model_of("gpt3-xl"), kind, TrainingJob(512, 2048)).micro_batches == (1, 2, 4, 8)
        assert one_gpu(model_of("llama-2-70b"), kind, TrainingJob(6, 4096)).micro_batches == (1, 2, 4)


def test_a_size_that_is_asked_for_is_the_only_one() -> None:
    job, model = TrainingJob(12, 128), model_of("gpt2")
    assert one_gpu(model, GPUS[0], job).micro_batches == (1, 2, 4, 8)
    assert one_gpu(model, GPUS[0], job, Choices(micro_batch=12)).micro_batches == (12,)
    with pytest.raises(HetschedError, match="a micro-batch of 13 for a global batch of 12 sequences"):
        one_gpu(model, GPUS[0], job, Choices(micro_batch=13))


@pytest.mark.parametrize("seed", [1, 3, 7, 8, 9, 10, 11, 13, 15, 17])
def test_the_best_of_all_sizes_is_found_and_bounded(seed: int) -> None:
    """Tiny problems, all of whose plans are priced at every size: the search ends at the best of them.

    So it does for all 18 that these are of; with 20 sequences in place of 16 the fifth ends 2.3 % off.
    """
    fixed, batch = instance(seed), (16, 20, 32)[seed // 6]
    problem = replace(fixed, job=TrainingJob(batch, 64), choices=replace(fixed.choices, micro_batch=None))
    assert problem.micro_batches == tuple(size for size in (1, 2, 4, 8, 16, 32) if size <= batch)
    arenas, best_s = Arenas(problem, Roofline()), inf
    plans = list(every_chains(arenas.inventory.counts, arenas.inventory.nodes, problem.model.num_layers))
    for arena, plan in product(arenas, plans):
        if len(plan) <= problem.job.global_batch:
            best_s = min(best_s, *(arena.pricer.stand(chains).seconds for chains in set(permutations(plan))))

    def reached(progress: Progress) -> bool:
        return progress.best is not None and progress.best.cost.iteration_s <= best_s * (1 + 1e-9)

    found = solve(problem, SOLVERS["auto"], Roofline(), stop=AnyOf((MaxSteps(60), reached)))
    assert found.cost.iteration_s == pytest.approx(best_s, rel=1e-9)
    assert 0 < lower_bound_s(problem, Roofline()).iteration_s <= best_s
