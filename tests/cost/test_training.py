"""Oracles: textbook formulas, and figures worked out on paper."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.catalog import find_gpu, find_model
from hetsched.cluster import Cluster, Network, Node
from hetsched.cost import COST_MODELS
from hetsched.cost.account import memory_bytes
from hetsched.cost.compute import Worker, stage_work
from hetsched.cost.memory import in_flight
from hetsched.cost.network import Lanes, Team, all_reduce_s
from hetsched.cost.placement import place
from hetsched.cost.published.dtfm import DtFm
from hetsched.cost.traffic import gradient_groups
from hetsched.cost.training import Roofline
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

MakeCluster = Callable[..., Cluster]
MakePlan = Callable[..., Plan]

SEEDS = st.integers(0, 2**32)


def model_of(name: str) -> ModelSpec:
    model = find_model(name)
    assert model is not None
    return model


GPT2 = model_of("gpt2")


def plan_of(splits: Sequence[Sequence[int]], devices: Sequence[Sequence[str]], micro_batches: int = 1) -> Plan:
    """Pipelines of gpt2 with these cuts, so many micro-batches of one sequence each."""
    pipelines = tuple(
        Pipeline(
            f"p{p}",
            tuple(Stage(layers, (name,)) for layers, name in zip(pairwise([0, *cuts, 12]), names, strict=True)),
            micro_batches,
        )
        for p, (cuts, names) in enumerate(zip(splits, devices, strict=True))
    )
    return Plan(GPT2, TrainingJob(micro_batches * len(pipelines), 1024), pipelines)


# ---- messages


def ring_s(size_bytes: float, latency_s: np.ndarray, bandwidth_bytes_per_s: np.ndarray) -> float:
    """An all-reduce over nodes of one device each, in order."""
    n = len(latency_s)
    nodes = tuple(Node(f"n{k}", "r", (find_gpu("A100-SXM-80GB", "test"),)) for k in range(n))
    cluster = Cluster("ring", nodes, Network(bandwidth_bytes_per_s, latency_s))
    return all_reduce_s(cluster, [Team((k,), k) for k in range(n)], size_bytes, Lanes())


def test_a_ring_moves_an_nth_of_the_bytes_in_each_step() -> None:
    """Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002: 2 (n - 1) (α + S / (n β)); a link is used one way."""
    for n in (2, 3, 8):
        latency, bandwidth = np.full((n, n), 0.01), np.full((n, n), 5e8)
        np.fill_diagonal(latency, np.nan)
        expected = 2 * (n - 1) * (0.01 + 1e9 / n / 5e8)
        assert ring_s(1e9, latency, bandwidth) == pytest.approx(expected)
        bandwidth[0, 1] /= 4
        slower = 2 * (n - 1) * (0.01 + 4e9 / n / 5e8)
        assert ring_s(1e9, latency, bandwidth) == pytest.approx(slower)
    bandwidth = np.full((4, 4), 5e8)
    bandwidth[1, 0] = bandwidth[0, 2] = 1e3  # against the ring, and across it
    assert ring_s(1e9, np.zeros((4, 4)), bandwidth) == pytest.approx(6 * 0.5)
    assert ring_s(1e9, np.zeros((1, 1)), np.full((1, 1), np.inf)) == 0.0


def test_the_ring_goes_round_the_pipelines_in_order() -> None:
    """Three replicas whose links are fast one way round and slow the other: their order says which."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    bandwidth = np.full((3, 3), 1e7)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        bandwidth[a, b] = 1e9
    nodes = tuple(Node(f"n{k}", "r", (gpu,)) for k in range(3))
    cluster = Cluster("ring", nodes, Network(bandwidth, np.zeros((3, 3))))
    forth = Roofline().price(cluster, plan_of([[]] * 3, [["n0/0"], ["n1/0"], ["n2/0"]]))
    back = Roofline().price(cluster, plan_of([[]] * 3, [["n2/0"], ["n1/0"], ["n0/0"]]))
    one_way = 4 * GPT2.parameters * 2 / 3 / 1e9
    assert forth.breakdown_s["data_parallel"] == pytest.approx(one_way)
    assert back.breakdown_s["data_parallel"] == pytest.approx(100 * one_way)


def test_hops_go_from_stage_to_stage_and_back(random_cluster: MakeCluster) -> None:
    cluster = random_cluster(5, (1, 1, 1))
    plan = replace(plan_of([[3, 7]], [["n2/0", "n0/0", "n1/0"]]), options=Options(compression=Compression(4, 8, 16)))
    bandwidth, latency = cluster.network.bandwidth_bytes_per_s, cluster.network.latency_s
    message, scales = 1024 * 768 * 2, 1024 * 4
    for hop, (a, b) in zip(place(cluster, plan).hops(0), ((2, 0), (0, 1)), strict=True):
        assert hop.forward_occupied_s == pytest.approx((message / 4 + scales) / bandwidth[a, b])
        assert hop.backward_occupied_s == pytest.approx((message / 2 + scales) / bandwidth[b, a])
        assert (hop.forward_latency_s, hop.backward_latency_s) == (latency[a, b], latency[b, a])


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_gradient_groups_hold_each_block_where_it_stands(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int
) -> None:
    cluster = random_cluster(seed, (3, 4, 2))
    plan = random_plan(seed, cluster)
    groups = gradient_groups(plan)
    of_blocks = [(group, group.layers) for group in groups if group.layers is not None]
    blocks = [block for _, layers in of_blocks for block in reversed(range(*layers))]
    assert blocks == (list(reversed(range(12))) if len(plan.pipelines) > 1 else [])
    for group, layers in of_blocks:
        for block in range(*layers):
            holders = [
                (p, s)
                for p, pipeline in enumerate(plan.pipelines)
                for s, stage in enumerate(pipeline.stages)
                if block in range(*stage.layers)
            ]
            assert list(group.members) == holders
    tied = [group for group in groups if group.layers is None]
    ends = {(p, s) for p, pipeline in enumerate(plan.pipelines) for s in (0, len(pipeline.stages) - 1)}
    assert [set(group.members) for group in tied] == ([ends] if plan.model.tied_embeddings and len(ends) > 1 else [])
    if len(plan.pipelines) > 1:
        assert sum(group.parameters for group in groups) == plan.model.parameters


# ---- compute


def test_a_block_is_as_fast_as_its_arithmetic() -> None:
    """24 s h² + 4 s² h FLOPs forward (Narayanan et al. 2021, arXiv 2104.04473, appendix), twice that backward."""
    gpu = replace(find_gpu("A100-SXM-80GB", "test"), efficiency=0.4)
    job = TrainingJob(4, 1024, micro_batch=4)
    block = 4 * (24 * 1024 * 768**2 + 4 * 1024**2 * 768) / (312e12 * 0.4) + 1e-4
    work = stage_work(Worker(gpu), GPT2, job, (3, 5), recompute=False)
    assert [work.forward_s, work.backward_s] == pytest.approx([2 * block, 4 * block])
    again = stage_work(Worker(gpu), GPT2, job, (3, 5), recompute=True)
    assert [again.forward_s, again.backward_s] == pytest.approx([2 * block, 6 * block])


def test_a_short_message_waits_for_the_weights() -> None:
    """One token: the block's weights are read once."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    work = stage_work(Worker(gpu), GPT2, TrainingJob(1, 1), (3, 4), recompute=False)
    assert work.forward_s == pytest.approx(7_087_872 * 2 / (gpu.memory_bytes_per_s * 0.8) + 1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_split_does_the_work_of_the_whole(recompute: bool) -> None:
    gpu, job = find_gpu("V100-SXM2-16GB", "test"), TrainingJob(2, 512, micro_batch=2)
    whole = stage_work(Worker(gpu), GPT2, job, (0, 12), recompute)
    parts = [stage_work(Worker(gpu), GPT2, job, layers, recompute) for layers in pairwise([0, 1, 6, 12])]
    assert sum(part.forward_s for part in parts) == pytest.approx(whole.forward_s)
    assert sum(part.backward_s for part in parts) == pytest.approx(whole.backward_s)
    assert parts[0].forward_s * 5 < parts[2].forward_s


# ---- memory


def needs(plan: Plan) -> dict[str, int]:
    """Bytes a device, without the reserve, on nodes of four cards of 80 GiB."""
    gpu = find_gpu("A100-SXM-80GB", "test")
    nodes = tuple(Node(f"n{k}", "r", (gpu,) * 4) for k in range(6))
    cluster = Cluster("memory", nodes, Network(np.full((6, 6), 1e9), np.zeros((6, 6))))
    reserve = 2**30 + int(0.03 * gpu.memory_bytes)
    return {name: needed - reserve for name, needed in memory_bytes(cluster, plan).items()}


def test_memory_of_one_device_by_hand() -> None:
    """gpt2, one sequence of 1,024 in bf16: weight 2, fp32 gradient 4, fp32 master and moments 12 a parameter."""
    plan = plan_of([[]], [["n0/0"]], micro_batches=3)
    states = 124_439_808 * 18
    block = 1024 * (4 * 768 + 2 * 768 + 2 * 768 + 2 * 3072) * 2  # norms; q and output; k and v; the MLP's two
    logits = 1024 * 50257 * (2 + 4 + 4)
    assert needs(plan) == {"n0/0": states + 12 * block + logits}
    gpipe = replace(plan, options=Options(schedule="gpipe"))
    log_softmax = 1024 * 50257 * 4  # in fp32, of each micro-batch whose loss is known and whose backward is to come
    assert needs(gpipe)["n0/0"] - needs(plan)["n0/0"] == 2 * (12 * block + log_softmax)
    recompute = replace(plan, options=Options(recompute=True))
    saved = 12 * block - (12 * 1024 * 768 * 2 + block)
    assert needs(plan)["n0/0"] - needs(recompute)["n0/0"] == saved
    full = replace(plan, workload=replace(plan.workload, dtype="fp32"))
    square = 1024 * 12 * 1024 * 4  # no fused attention in fp32
    assert needs(full)["n0/0"] == 124_439_808 * 16 + 24 * block + 12 * square + 1024 * 50257 * 12


def test_tensor_parallelism_splits_what_it_can() -> None:
    """Weights, states, logits and the inside of a block over 4 devices; the norms' inputs and outputs stay whole."""
    plan = plan_of([[]], [["n0/0"]])
    team = Stage((0, 12), ("n0/0", "n0/1", "n0/2", "n0/3"))
    wide = replace(plan, pipelines=(replace(plan.pipelines[0], stages=(team,)),))
    whole, split = 1024 * 4 * 768 * 2 * 12, 1024 * (4 * 768 + 2 * 3072) * 2 * 12
    logits = 1024 * 50257 * 10
    expected = (124_439_808 * 18 + split + logits) // 4 + whole
    assert needs(wide) == dict.fromkeys(team.devices, expected)


@pytest.mark.parametrize(("zero", "each"), [(0, 18), (1, 2 + 4 + 3), (2, 2 + 1 + 3), (3, 0.5 + 1 + 3)])
def test_zero_shares_states_over_the_replicas(zero: int, each: float) -> None:
    """Rajbhandari et al. 2020, arXiv 1910.02054, over 4 replicas."""
    plan = plan_of([[]] * 4, [[f"n{k}/0"] for k in range(4)])
    rest = needs(plan)["n0/0"] - 124_439_808 * 18
    sharded = replace(plan, options=Options(zero=zero))
    assert needs(sharded)["n2/0"] == pytest.approx(124_439_808 * each + rest)


def test_micro_batches_in_flight() -> None:
    """1F1B: stage s of P has at most P - s forwards that wait for their backward; GPipe has all."""
    for depth in (1, 3, 6):
        for micro_batches in (1, 2, 5, 9):
            for s in range(depth):
                held = most = 0
                warm = min(depth - 1 - s, micro_batches)
                for step in [1] * warm + [1, -1] * (micro_batches - warm) + [-1] * warm:
                    held += step
                    most = max(most, held)
                assert held == 0
                assert in_flight("1f1b", s, depth, micro_batches) == most
                assert in_flight("gpipe", s, depth, micro_batches) == micro_batches


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_memory_grows_with_the_work_and_shrinks_by_zero(
    random_cluster: MakeCluster, random_plan: MakePlan, seed: int
) -> None:
    cluster = random_cluster(seed, (2, 1, 3))
    plan = random_plan(seed, cluster)
    here = needs(plan)
    job = plan.workload
    twice = replace(plan, workload=replace(job, micro_batch=2 * job.micro_batch, global_batch=2 * job.global_batch))
    shorter = replace(plan, workload=replace(job, seq_len=job.seq_len // 2))
    more = replace(
        plan,
        pipelines=tuple(replace(p, micro_batches=p.micro_batches + 1) for p in plan.pipelines),
        workload=replace(job, global_batch=job.global_batch + job.micro_batch * len(plan.pipelines)),
    )
    for name, needed in here.items():
        assert needs(twice)[name] > needed
        assert needs(shorter)[name] < needed
        assert needs(more)[name] >= needed
    for zero in range(3):
        less, most = (needs(replace(plan, options=replace(plan.options, zero=level))) for level in (zero + 1, zero))
        for name in here:
            assert less[name] < most[name] if len(plan.pipelines) > 1 else less[name] == most[name]


def test_a_limit_that_is_broken(random_cluster: MakeCluster) -> None:
    """One stage of GPT3-XL on an 11 GiB card: 1.3e9 parameters need 18 bytes each."""
    cluster = random_cluster(0, (1, 1), kinds=("RTX-2080Ti-11GB", "A100-SXM-80GB"))
    model = model_of("gpt3-xl")

    def on(device: str) -> Plan:
        return Plan(model, TrainingJob(1, 2048), (Pipeline("p0", (Stage((0, 24), (device,)),), 1),))

    broken, fits = (Roofline(0.9).price(cluster, on(name)) for name in ("n0/0", "n1/0"))
    assert fits.feasible
    (violation,) = broken.violations
    assert (violation.device, violation.limit) == ("n0/0", "memory")
    assert violation.needed == broken.memory_bytes["n0/0"] > 1.3e9 * 18
    assert violation.available == pytest.approx(0.9 * 11 * 2**30)
    over = (violation.needed - 0.9 * 11 * 2**30) / 2**30
    assert f"n0/0 needs {violation.needed / 2**30:.1f} GiB" in violation.message
    assert f"({over:.1f} GiB too much)" in violation.message
    assert broken.predicted()["violations"][0]["needed_bytes"] == broken.memory_bytes["n0/0"]
    assert fits.rank() < broken.rank()
    assert fits.rank("cost") < broken.rank("cost")
    just = broken.memory_bytes["n0/0"] / (11 * 2**30)
    assert Roofline(just * 1.0001).price(cluster, on("n0/0")).feasible
    assert not Roofline(just * 0.9999).price(cluster, on("n0/0")).feasible


# ---- utilisation and money


def test_utilisation_counts_the_model_and_what_is_recomputed(random_cluster: MakeCluster) -> None:
    """6 FLOPs a token and matrix weight, and 12 L s h of attention (PaLM, arXiv 2204.02311, appendix B)."""
    cluster = random_cluster(3, (2, 1), kinds=("A100-SXM-80GB", "RTX-3090-24GB"))
    plan = plan_of([[4]], [["n0/0", "n1/0"]], micro_batches=6)
    cost = Roofline().price(cluster, plan)
    weights, tokens = 12 * 12 * 768**2 + 50257 * 768, 6 * 1024
    attention = 12 * 12 * 1024 * 768
    peak = sum(cluster.device(name).gpu.half_flops_per_s for name in ("n0/0", "n1/0"))
    assert cost.mfu == pytest.approx(tokens * (6 * weights + attention) / (cost.iteration_s * peak))
    assert cost.hfu == cost.mfu
    assert cost.tokens_per_s == pytest.approx(tokens / cost.iteration_s)
    again = Roofline().price(cluster, replace(plan, options=Options(recompute=True)))
    blocks = tokens * (2 * 12 * 12 * 768**2 + attention / 3)
    assert again.hfu - again.mfu == pytest.approx(blocks / (again.iteration_s * peak))


@pytest.mark.parametrize("model", COST_MODELS)
def test_the_price_of_the_nodes_in_use(random_cluster: MakeCluster, model: str) -> None:
    cluster = random_cluster(8, (2, 1, 3))
    plan = plan_of([[5]], [["n2/2", "n0/1"]], micro_batches=4)
    cost = COST_MODELS[model](0.9).price(cluster, plan)
    rate = (cluster.nodes[0].usd_per_hour or 0) + (cluster.nodes[2].usd_per_hour or 0)
    assert cost.usd_per_hour == pytest.approx(rate)
    per_token = rate * cost.iteration_s / 3600 / (4 * 1024)
    assert cost.usd_per_million_tokens == pytest.approx(per_token * 1e6)
    assert cost.rank("cost") == (0, cost.usd_per_million_tokens)
    assert cost.rank("time") == (0, cost.iteration_s)
    unpriced = COST_MODELS[model](0.9).price(random_cluster(8, (2, 1, 3), priced=False), plan)
    assert (unpriced.usd_per_hour, unpriced.usd_per_million_tokens) == (None, None)
    assert unpriced.rank("cost") == unpriced.rank("time")


# ---- what has no price


@pytest.mark.parametrize("model", COST_MODELS)
def test_a_device_that_the_cluster_lacks(random_cluster: MakeCluster, model: str) -> None:
    plan = plan_of([[5]], [["n0/0", "elsewhere/3"]])
    with pytest.raises(HetschedError, match="elsewhere/3"):
        COST_MODELS[model](0.9).price(random_cluster(0), plan)


def test_tensor_parallel_stages_have_no_place_in_dtfm(random_cluster: MakeCluster) -> None:
    plan = plan_of([[]], [["n0/0"]])
    wide = replace(plan, pipelines=(replace(plan.pipelines[0], stages=(Stage((0, 12), ("n0/0", "n0/1")),)),))
    with pytest.raises(HetschedError, match="tensor parallel"):
        DtFm(0.9).price(random_cluster(0), wide)
