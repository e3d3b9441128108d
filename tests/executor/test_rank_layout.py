import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hetsched.errors import HetschedError
from hetsched.executor import run_plan
from hetsched.executor.__main__ import check_place
from hetsched.executor.limits import check_limits
from hetsched.executor.scale import apportion, scaled_plan
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage

Models = Callable[..., ModelSpec]
Plans = Callable[..., Plan]


def test_ranks_follow_nodes_and_know_their_neighbours(model: Models, unequal_plan: Plans) -> None:
    pytest.importorskip("torch")
    from hetsched.executor.groups import seats

    found = seats(unequal_plan(model("llama")))
    assert [seat.device for seat in found] == ["a/0", "a/1", "b/0", "b/1"]
    assert [(seat.previous, seat.next) for seat in found] == [((), (2,)), ((), ()), ((0,), (3,)), ((2,), ())]
    assert [seat.first_sample for seat in found] == [0, 10, 0, 0]


def test_blocks_are_shared_by_the_ranks_that_hold_them(model: Models, unequal_plan: Plans) -> None:
    pytest.importorskip("torch")
    from hetsched.executor.groups import sharings

    found = sharings(unequal_plan(model("llama")))
    assert [shared.ranks for shared in found] == [(1, 3), (1, 2), (0, 1)]
    assert [shared.ranks for shared in found] == [shared.counted for shared in found]
    tied = sharings(unequal_plan(model("gpt2")))
    assert tied[-1].ranks == (0, 1, 3)
    assert [part.name for part in tied[-1].slices] == ["embedding.tokens.weight"]


def test_unequal_degrees_share_matching_slices(model: Models, unequal_plan: Plans) -> None:
    """8 heads and FFN of 48 on 2 devices against 3: cut at the third, the half and the two thirds."""
    pytest.importorskip("torch")
    from hetsched.executor.groups import sharings

    plan = replace(
        unequal_plan(model("llama", num_heads=12, num_kv_heads=6, head_dim=4)),
        pipelines=(
            Pipeline("two", (Stage((0, 4), ("a/0", "a/1")),), 5),
            Pipeline("three", (Stage((0, 4), ("b/0", "b/1", "b/2")),), 2),
        ),
    )
    slices = {
        (shared.ranks, part.start, part.stop)
        for shared in sharings(plan)
        for part in shared.slices
        if part.name == "blocks.1.mlp.down.weight"
    }
    assert slices == {((0, 2), 0, 16), ((0, 3), 16, 24), ((1, 3), 24, 32), ((1, 4), 32, 48)}
    whole = next(shared for shared in sharings(plan) if shared.slices[0].name.endswith("norm.weight"))
    assert whole.ranks == (0, 1, 2, 3, 4)
    assert whole.counted == (0, 2)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "qkv_bias": True, "embedding_size": 16}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_slices_are_of_the_models_parameters(
    model: Models, unequal_plan: Plans, family: str, changes: dict[str, object]
) -> None:
    pytest.importorskip("torch")
    from hetsched.executor.groups import sharings
    from hetsched.executor.model import Transformer

    spec = model(family, **changes)
    names = [part.name for shared in sharings(unequal_plan(spec)) for part in shared.slices]
    assert len(names) == len(set(names))
    assert set(names) == set(Transformer(spec, (0, 4)).global_parameters())


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 8, 12])
def test_heads_are_cut_into_whole_groups_or_share_a_key_value_head(model: Models, degree: int) -> None:
    from hetsched.executor.shards import share_of

    spec = model("llama", num_heads=12, num_kv_heads=4, head_dim=4)
    shares = [share_of(spec, degree, place) for place in range(degree)]
    assert [head for share in shares for head in range(*share.heads)] == list(range(12))
    for share in shares:
        assert {head // 3 for head in range(*share.heads)} == set(range(*share.kv_heads))
    if degree <= 4:
        assert sum(share.kv_heads[1] - share.kv_heads[0] for share in shares) == 4


def test_what_is_not_executed_is_refused(model: Models, unequal_plan: Plans) -> None:
    plan = unequal_plan(model("llama"))
    assert check_limits(plan) == ()
    assert check_limits(replace(plan, options=Options(zero=1))) == ()
    assert "zero 3" in check_limits(replace(plan, options=Options(zero=3)))[0]
    assert check_limits(replace(plan, options=Options(compression=Compression(2, 8, 5)))) == ()
    with pytest.raises(HetschedError, match="grad_bits is 12"):
        check_limits(replace(plan, options=Options(compression=Compression(grad_bits=12))))
    with pytest.raises(HetschedError, match="mixture of experts"):
        check_limits(unequal_plan(model("llama", num_experts=4, experts_per_token=2)))
    with pytest.raises(HetschedError, match="vocabulary"):
        check_limits(unequal_plan(model("llama", vocab_size=100)))
    with pytest.raises(HetschedError, match="positions"):
        check_limits(unequal_plan(model("llama", max_positions=8)))
    pipelines = (plan.pipelines[0], Pipeline("flat", (Stage((0, 4), tuple(f"c/{k}" for k in range(5))),), 2))
    with pytest.raises(HetschedError, match="tensor-parallel degree 5, tiny-llama has 4 heads"):
        check_limits(replace(plan, pipelines=pipelines))


@pytest.mark.parametrize("global_batch", [None, 2, 3, 7, 40])
def test_a_scaled_plan_keeps_its_shape(model: Models, unequal_plan: Plans, global_batch: int | None) -> None:
    plan = unequal_plan(model("llama", hidden_size=4096, num_heads=32, num_kv_heads=8, ffn_size=11008))
    small = scaled_plan(plan, hidden_size=64, seq_len=24, global_batch=global_batch)
    assert [pipeline.stages for pipeline in small.pipelines] == [pipeline.stages for pipeline in plan.pipelines]
    assert all(pipeline.micro_batches >= 1 for pipeline in small.pipelines)
    assert small.model.num_heads == 4 * small.model.num_kv_heads == 8
    assert small.model.ffn_size == 172
    assert small.workload.global_batch == (global_batch or 7)


def test_shares_are_in_proportion() -> None:
    assert apportion(10, [1, 4]) == [2, 8]
    assert apportion(5, [100, 1, 1]) == [3, 1, 1]
    assert apportion(3, [7, 7, 7]) == [1, 1, 1]
    with pytest.raises(HetschedError, match="2 micro-batches for 3 pipelines"):
        apportion(2, [1, 1, 1])


def test_torch_is_imported_only_to_run(tmp_path: Path) -> None:
    code = "import sys, hetsched.executor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_missing_torch_says_how_to_install_it(
    model: Models, unequal_plan: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HetschedError, match="needs torch") as caught:
        run_plan(unequal_plan(model("llama")))
    assert caught.value.hint == 'pip install "hetsched[executor]"'


def test_processes_that_are_not_the_plans_are_refused(model: Models, unequal_plan: Plans) -> None:
    plan = unequal_plan(model("llama"))
    check_place(plan, rank=2, world_size=4, node="b")
    with pytest.raises(HetschedError, match="stands on node a, the plan has it on b"):
        check_place(plan, rank=2, world_size=4, node="a")
    with pytest.raises(HetschedError, match="3 processes were started"):
        check_place(plan, rank=2, world_size=3, node=None)
