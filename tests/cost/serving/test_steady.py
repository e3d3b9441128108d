"""A replica in a steady state: closed forms, what never gets worse, and the limits of light and heavy load."""

from itertools import pairwise

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cost.serving.estimate import estimate
from hetsched.cost.serving.placed import degrees, even_stages, one_machine
from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.cost.serving.stage import causal_pairs
from hetsched.cost.serving.steady import SteadyReplica, Traffic
from hetsched.readers import resolve_model

MODEL = resolve_model("llama-3.1-8b", "test")
TRAFFIC = Traffic.of(1000, 250)


def replica(tensor_parallel: int = 1, depth: int = 1, kind: str = "H100-SXM-80GB") -> ReplicaTimes:
    gpu = find_gpu(kind, "test")
    cluster = one_machine(gpu, tensor_parallel * depth, None)
    return replica_times(cluster, MODEL, even_stages(cluster, gpu, MODEL, tensor_parallel, depth))


def test_one_stage_does_a_prompt_and_its_part_of_the_rounds() -> None:
    """Requests a second = 1 / (prompt + outputs · step(B) / B), at the batch that is best: the largest."""
    times = replica()
    steady = SteadyReplica(times, TRAFFIC, max_batch=64, prefill_tokens=1)
    prompt = float(times.prefill_s(0, 1000, causal_pairs(1000)))
    step = float(times.decode_s(0, 64, 64 * 1125)) + times.overhead_s
    assert steady.capacity_per_s == pytest.approx(1 / (prompt + 250 * step / 64))


def test_light_load_sees_an_idle_replica_and_heavy_load_a_queue() -> None:
    times = replica(1, 4)
    steady = SteadyReplica(times, TRAFFIC, max_batch=128)
    light = steady.at(1e-6)
    alone = sum(float(times.decode_s(s, 1, 1125)) + float(times.hop_s(s, 1)) for s in range(4)) + times.overhead_s
    assert light.batch == 1
    assert light.tpot_s == pytest.approx(alone, rel=1e-4)
    assert light.ttft_s == pytest.approx(steady.prompt_s + alone / 2, rel=1e-4)
    rates = np.linspace(0.05, 0.99, 12) * steady.capacity_per_s
    seen = [steady.at(rate) for rate in rates]
    assert all(a.e2e_s <= b.e2e_s and a.batch <= b.batch for a, b in pairwise(seen))
    assert steady.at(1.01 * steady.capacity_per_s).ttft_s == np.inf


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_more_in_flight_never_does_less(shape: tuple[int, int]) -> None:
    capacities = [SteadyReplica(replica(*shape), TRAFFIC, most).capacity_per_s for most in (1, 8, 64, 256)]
    assert capacities == sorted(capacities)


def test_chunks_go_along_with_decode_steps_for_less_than_steps_of_their_own() -> None:
    """Weights are read for the decode step anyway."""
    times, short = replica(), Traffic.of(100, 400)
    apart = SteadyReplica(times, short, 64, prefill_tokens=100)
    assert SteadyReplica(times, short, 64, chunked=True).capacity_per_s > apart.capacity_per_s


def test_a_replica_without_room_serves_nothing() -> None:
    times = replica(kind="T4-16GB")
    assert not times.fits
    assert SteadyReplica(times, TRAFFIC).capacity_per_s == 0.0
    figures = estimate(times, 4, 1000, 250)
    assert not figures.fits
    assert figures.max_batch == 0
    assert min(figures.prefill_s, figures.token_s, figures.memory_bytes, figures.steady_requests_per_s) > 0


def test_memory_is_weights_cache_and_what_is_kept_free() -> None:
    times = replica(4, 2)
    one, more = estimate(times, 1, 1000, 24), estimate(times, 11, 1000, 24)
    kv_bytes = 2 * 16 * MODEL.num_kv_heads // 4 * MODEL.head_dim * 2
    assert more.memory_bytes - one.memory_bytes == pytest.approx(10 * 1024 * kv_bytes, abs=2)
    assert one.memory_bytes > MODEL.parameters * 2 / 8


def test_degrees_share_out_the_heads() -> None:
    assert degrees(MODEL, 8) == [1, 2, 4, 8]
    assert degrees(resolve_model("qwen2-7b", "test"), 8) == [1, 2, 4]  # 28 heads, 4 of them for keys and values
