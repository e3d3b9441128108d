"""`pipeline-dp`: its terms are the cost models', its objective their price where that is claimed, and for one mix it
comes near the best of all pipelines of that mix, each priced."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost import COST_MODELS
from hetsched.cost.chains import Chain
from hetsched.cost.pipeline_terms import FIRST, LAST, MIDDLE, ONLY
from hetsched.cost.published.flashflex_chains import FlashFlexChains
from hetsched.cost.roofline_chains import RooflineChains
from hetsched.cost.schedule import play
from hetsched.errors import InfeasibleError
from hetsched.problem import Choices, Problem
from hetsched.search import solve
from hetsched.solvers.arena import Arena, Arenas
from hetsched.solvers.hierarchical import starts
from hetsched.solvers.pipeline_dp import Dealer, PipelineDp, mix_of
from hetsched.workload import TrainingJob
from tests.bound.enumerate_plans import chains_of, compositions
from tests.bound.test_bound import tiny_model
from tests.cost.test_chains import cluster_of, model_of

SHAPES = [(1, 2, 1), (2, 1), (2, 2), (1, 1, 1, 1), (4, 1), (1, 3)]


def arena_of(model: str, seed: int, batch: int, schedule: str) -> Arena:
    """One pipeline of a model of 3 to 6 blocks, its embeddings untied, on 3 to 5 GPUs; every link different."""
    rng = np.random.default_rng(seed)
    counts = SHAPES[seed % len(SHAPES)]
    kinds = rng.choice(["A100-SXM-80GB", "V100-SXM2-16GB", "RTX-3090-24GB"], len(counts))
    nodes = tuple(Node(f"n{k}", f"r{k}", (find_gpu(str(kinds[k]), "test"),) * count) for k, count in enumerate(counts))
    size = len(counts), len(counts)
    bandwidth = np.exp(rng.uniform(np.log(3e8), np.log(2e11), size))
    cluster = Cluster("mix", nodes, Network(bandwidth, np.exp(rng.uniform(np.log(1e-6), np.log(2e-3), size))))
    spec = replace(tiny_model(rng, int(rng.integers(3, 7))), tied_embeddings=False)
    choices = Choices(1, micro_batch=1, schedule=schedule, zero=0, recompute=bool(rng.integers(2)))
    return next(iter(Arenas(Problem(cluster, spec, TrainingJob(batch, 256), choices), COST_MODELS[model](0.92))))


def passes_s(arena: Arena, chain: Chain, count: int) -> float:
    """Seconds of a pipeline's passes, alone on the network, by the cost model."""
    pricer = arena.pricer
    if isinstance(pricer, FlashFlexChains):
        return pricer.chain_s(chain, count)
    assert isinstance(pricer, RooflineChains)
    hops = [pricer.hop(a, b) for (a, _), (b, _) in pairwise(chain)]
    return max(play(arena.options.schedule, pricer.stage_works(chain), hops, count))


def objective_s(arena: Arena, chain: Chain, count: int) -> float:
    """What the programme says of a chain: its terms, summed here."""
    terms = arena.pricer.terms([group for group, _ in chain], count, 1)
    last, total, pace, ways = len(chain) - 1, 0.0, 0.0, [0.0][:0]
    for s in range(last, -1, -1):
        role = ONLY if not last else FIRST if s == 0 else LAST if s == last else MIDDLE
        assert chain[s][1] <= terms.most[role, last - s, s]
        own = terms.base_s[role, s] + chain[s][1] * terms.block_s[s]
        hop = terms.through_s[s, s + 1] if s < last else 0.0
        total += own + hop
        ways = [own, *(own + hop + way for way in ways)]
        pace = max(pace, own + (terms.held_s[s, s + 1] if s < last else 0.0))
        pace = max(pace, terms.busy_s[s, s + 1] if s < last else 0.0)
        if terms.trips:
            pace = max(pace, *(way / (stages + 1) for stages, way in enumerate(ways)))
    return float(total + (count - 1) * pace)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("model", ["roofline", "flashflex"])
def test_the_terms_hold_what_fits_and_what_one_micro_batch_takes(model: str, schedule: str, zero: int) -> None:
    """Chains of real models with tensor-parallel groups: limits are the pricer's, and so are seconds."""
    spec = model_of("gpt2" if model == "roofline" else "llama-2-7b")
    choices = Choices(micro_batch=2, zero=zero, recompute=False, schedule=schedule)
    problem = Problem(cluster_of(1), spec, TrainingJob(64, 512 if model == "roofline" else 2048), choices)
    seen = wide = tight = 0
    for start in islice(starts(Arenas(problem, COST_MODELS[model](0.92)), np.random.default_rng(1)), 0, None, 3):
        pricer, pipelines = start.arena.pricer, len(start.standing.chains)
        for chain, share in zip(start.standing.chains, pricer.shares(start.standing.chains), strict=True):
            assert objective_s(start.arena, chain, 1) == pytest.approx(passes_s(start.arena, chain, 1), rel=1e-12)
            terms = pricer.terms([group for group, _ in chain], share, pipelines)
            last = len(chain) - 1
            for s in range(last + 1):
                role = ONLY if not last else FIRST if s == 0 else LAST if s == last else MIDDLE
                most = int(terms.most[role, last - s, s])
                assert chain[s][1] <= most
                if isinstance(pricer, RooflineChains) and most < spec.num_layers - 2 and last:
                    more = [(group, most + (at == s) if at == s else 1) for at, (group, _) in enumerate(chain)]
                    assert not pricer.fits(tuple(more), share, pipelines)
                    tight += 1
            seen += 1
            wide += any(len(group) > 1 for group, _ in chain)
    assert seen > 10
    assert wide > 0


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_its_objective_is_the_price_where_it_claims_to_be(count: int) -> None:
    """And never above it, where the schedule is GPipe's; 1F1B's is a little less, with many micro-batches.

    40 pipelines of each of 12 instances.
    """
    same = {"flashflex": 0, "roofline": 0}
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        for model, schedule in (("flashflex", "gpipe"), ("roofline", "gpipe"), ("roofline", "1f1b")):
            arena = arena_of(model, seed, 40, schedule)
            every = list(chains_of(arena.inventory.counts, arena.inventory.nodes, arena.problem.model.num_layers))
            for at in rng.permutation(len(every))[:40].tolist():
                chain = every[at]
                played, said = passes_s(arena, chain, count), objective_s(arena, chain, count)
                if schedule == "1f1b":
                    ratios.append(played / said)
                    continue
                assert said <= played * (1 + 1e-9)
                if _claimed(arena, chain):
                    assert said == pytest.approx(played, rel=1e-9)
                    same[model] += 1
    assert min(same.values()) > 30
    if count > 5:  # stages at most
        assert min(ratios) > 0.96
        assert max(ratios) < 1 + 1e-9
        assert np.mean(ratios) > 0.99


def _claimed(arena: Arena, chain: Chain) -> bool:
    """Stages that rise and then fall; one stage that is the slowest forward and backward, no hop being slower."""
    pricer = arena.pricer
    if isinstance(pricer, FlashFlexChains):
        hops = [*(pricer.hop_s(a, b) for (a, _), (b, _) in pairwise(chain)), 0.0]
        times = [pricer.block_s(group) * count + hop for (group, count), hop in zip(chain, hops, strict=True)]
        top = times.index(max(times))
        return times[: top + 1] == sorted(times[: top + 1]) and times[top:] == sorted(times[top:], reverse=True)
    assert isinstance(pricer, RooflineChains)
    works = pricer.stage_works(chain)
    links = [pricer.hop(a, b) for (a, _), (b, _) in pairwise(chain)]
    forward = max([work.forward_s for work in works] + [link.forward_occupied_s for link in links])
    backward = max([work.backward_s for work in works] + [link.backward_occupied_s for link in links])
    return any(work.forward_s == forward and work.backward_s == backward for work in works)


# Mean and greatest. Measured: 0.07 and 1.6 %, 0.04 and 1.1 %, 0 and 0. What is left are links that a pipeline shares
# with itself, activations and gradients that cross above all, the optimiser step, and 1F1B of few micro-batches.
GAPS = {("roofline", "1f1b"): (0.002, 0.03), ("roofline", "gpipe"): (0.001, 0.02), ("flashflex", "gpipe"): (1e-4, 1e-3)}


@pytest.mark.parametrize(("model", "schedule"), GAPS)
def test_a_mix_becomes_nearly_its_best_pipeline(model: str, schedule: str) -> None:
    """Of all pipelines of teams of one class, priced as whole plans."""
    gaps = []
    for seed in range(12):
        for batch in (4, 48):
            arena = arena_of(model, seed, batch, schedule)
            inventory = arena.inventory
            every = chains_of(inventory.counts, range(len(inventory.counts)), arena.problem.model.num_layers)
            degrees = (1, 2, 3, 4)
            best = min(arena.pricer.stand([chain]).seconds for chain in every)
            place = Dealer(degrees, 10**8).deal(arena, [tuple(enumerate(inventory.counts))])
            assert place is not None
            gaps.append(place.seconds / best - 1)
    assert min(gaps) > -1e-9
    assert np.mean(gaps) <= GAPS[model, schedule][0]
    assert max(gaps) <= GAPS[model, schedule][1]
    assert np.mean(np.array(gaps) < 1e-9) >= 0.8


@pytest.mark.parametrize("model", ["roofline", "flashflex"])
def test_layers_of_stages_in_order(model: str) -> None:
    """The exact split of sum + (m - 1) · slowest against all splits, under both models' limits."""
    seen = 0
    for seed in range(20):
        for count in (1, 3, 40):
            arena = arena_of(model, seed, count, "gpipe")
            blocks = arena.problem.model.num_layers
            every = list(chains_of(arena.inventory.counts, arena.inventory.nodes, blocks))
            groups = tuple(group for group, _ in every[(7 * seed) % len(every)])
            found = arena.pricer.split(groups, 1)
            assert found is not None
            chains = [tuple(zip(groups, sizes, strict=True)) for sizes in compositions(blocks, len(groups))]
            best = min(objective_s(arena, chain, count) for chain in chains)
            assert objective_s(arena, found, count) == pytest.approx(best, rel=1e-12)
            seen += len(chains) > 1
    assert seen > 20


def test_what_is_too_much_work_is_done_in_parts() -> None:
    """With less and less work allowed a mix still becomes a plan that fits, ever slower; at last the hand's own."""
    problem = Problem(cluster_of(2), model_of("llama-2-7b"), TrainingJob(64, 2048), Choices(replicas=1, micro_batch=1))
    start = next(iter(starts(Arenas(problem, COST_MODELS["flashflex"](1.0)), np.random.default_rng(0))))
    mixes = [mix_of(chain) for chain in start.standing.chains]
    places = [Dealer((1, 2, 4), work).deal(start.arena, mixes) for work in (10**8, 10**6)]
    whole, parts = (place.seconds if place else np.inf for place in places)
    assert whole <= parts < np.inf
    assert Dealer((1, 2, 4), 1000).deal(start.arena, mixes) is None
    found = [
        candidate.cost
        for candidate in islice(
            PipelineDp(most_work=1000).search(problem, COST_MODELS["flashflex"](1.0), np.random.default_rng(0)), 3
        )
    ]
    assert found
    assert all(cost.feasible for cost in found)


def test_what_fits_nowhere_is_said() -> None:
    problem = Problem(cluster_of(0), model_of("llama-2-70b"), TrainingJob(8, 2048))
    with pytest.raises(InfeasibleError, match="GiB"):
        solve(problem, PipelineDp(), COST_MODELS["roofline"](0.92))
