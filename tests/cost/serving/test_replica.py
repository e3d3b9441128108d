"""A replica's times: straight lines in the context, tables equal to the functions, room for what fits."""

import numpy as np
import pytest

from hetsched.cluster import Cluster
from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.cost.serving.stage import causal_pairs
from hetsched.plan import Stage
from hetsched.precision import Precision
from hetsched.readers import resolve_model

LLAMA = resolve_model("llama-3.1-8b", "test")


@pytest.fixture
def two_stages(random_cluster) -> ReplicaTimes:  # type: ignore[no-untyped-def]
    cluster: Cluster = random_cluster(0, (2, 1, 3))
    stages = [Stage((0, 20), ("n0/0", "n0/1")), Stage((20, 32), ("n1/0",))]
    return replica_times(cluster, LLAMA, stages)


def test_pairs_are_those_of_a_mask() -> None:
    new, past = 5, 3
    mask = np.tril(np.ones((past + new, past + new)))[past:]
    assert causal_pairs(new, past) == mask.sum()


def test_decode_is_a_line_in_the_context_and_the_table_holds_it(two_stages: ReplicaTimes) -> None:
    table = two_stages.decode_table(64)
    rng = np.random.default_rng(0)
    sizes, context = rng.integers(1, 65, 50), rng.integers(1, 10**6, 50)
    for stage in range(two_stages.depth):
        tabled = table.base_s[stage, sizes] + table.per_context_token_s[stage, sizes] * context
        np.testing.assert_allclose(tabled, two_stages.decode_s(stage, sizes, context), rtol=1e-9)
        np.testing.assert_allclose(table.hop_s[stage, sizes], two_stages.hop_s(stage, sizes))


def test_a_mixed_step_takes_at_least_its_parts_and_less_than_both(two_stages: ReplicaTimes) -> None:
    pairs = causal_pairs(512, 1024)
    for stage in range(2):
        prefill, decode = two_stages.prefill_s(stage, 512, pairs), two_stages.decode_s(stage, 32, 32 * 900)
        both = two_stages.step_s(stage, 512, pairs, 1, 32, 32 * 900)
        assert max(prefill, decode) <= both < prefill + decode


def test_the_cache_is_what_the_tightest_stage_holds(random_cluster) -> None:  # type: ignore[no-untyped-def]
    cluster: Cluster = random_cluster(0, (2, 1, 3))
    small = replica_times(cluster, LLAMA, [Stage((0, 32), ("n2/0", "n2/1", "n2/2"))])
    assert small.fits == (small.kv_room_bytes[0] > small.kv_bytes_per_token(0))
    split = replica_times(cluster, LLAMA, [Stage((0, 24), ("n0/0",)), Stage((24, 32), ("n1/0",))])
    rooms = [split.kv_room_bytes[s] / split.kv_bytes_per_token(s) for s in range(2)]
    assert split.kv_capacity_tokens == int(min(rooms))
    quantised = replica_times(cluster, LLAMA, [Stage((0, 32), ("n1/0",))], Precision(weight_bits=4, kv_bits=8))
    whole = replica_times(cluster, LLAMA, [Stage((0, 32), ("n1/0",))])
    assert quantised.kv_bytes_per_token(0) == whole.kv_bytes_per_token(0) / 2
    assert quantised.kv_capacity_tokens > 2 * whole.kv_capacity_tokens > 0
