"""Quantised messages by themselves, and on the wire between real processes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hetsched.cost.traffic import gradient_bytes, gradient_groups, hop_bytes
from hetsched.errors import HetschedError
from hetsched.executor import RunReport, RunSettings, check_plan
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage

torch = pytest.importorskip("torch")

from hetsched.executor.compression import (  # noqa: E402
    SCALE_BYTES,
    Changes,
    Codecs,
    Direct,
    dequantise,
    packed_bytes,
    quantise,
)
from hetsched.executor.gradients import Bucket  # noqa: E402
from hetsched.executor.reduction import ROW, CompressedReduction  # noqa: E402

SETTINGS = RunSettings(steps=4, device="cpu", timeout_s=100, epoch_steps=2, learning_rate=1e-3)
BITS = range(2, 9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("values", [1, 5, 8, 33])
def test_a_message_is_what_was_quantised(bits: int, values: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    levels = torch.randint(2**bits, (7, values), generator=generator)
    levels[:, 0] = 2**bits - 1  # so that the scale is the largest
    x = (levels * (2 / (2**bits - 1)) - 1) * torch.arange(1, 8)[:, None]
    message = quantise(x, bits, generator)
    assert message.dtype == torch.uint8
    assert len(message) == packed_bytes((7, values), bits)
    assert 7 * (values * bits / 8 + SCALE_BYTES) <= len(message) < 7 * (values * bits / 8 + bits + SCALE_BYTES)
    torch.testing.assert_close(dequantise(message, (7, values), bits), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_unbiased_and_no_further_than_a_level(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(4, 16, generator=generator)
    times = 2000
    found = torch.stack([dequantise(quantise(x, bits, generator), (4, 16), bits) for _ in range(times)])
    level = 2 * x.abs().amax(dim=1, keepdim=True) / (2**bits - 1)
    assert bool(((found - x).abs() <= level * 1.001).all())
    assert bool(((found.mean(dim=0) - x).abs() < 5 * level / 2 / times**0.5 + 1e-6).all())


def test_a_row_of_zeros_stays_so() -> None:
    generator = torch.Generator().manual_seed(0)
    assert bool((dequantise(quantise(torch.zeros(3, 8), 2, generator), (3, 8), 2) == 0).all())


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_keep_the_same_and_come_closer(in_a_file: bool, dtype: object, tmp_path: Path) -> None:
    """The activation moves a little every time; what the receiver has stays within a level of the *change*."""
    like = torch.zeros(1, dtype=dtype)
    rng = torch.Generator().manual_seed(1)
    ends = [Changes((6, 16), like, 4, seed, 2, tmp_path / f"{seed}.cache" if in_a_file else None) for seed in range(2)]
    sender, receiver = ends
    x = torch.randn(2, 6, 16, generator=rng)
    for epoch in range(4):
        for key in (1, 0):
            a = (x[key] + 0.01 * epoch * torch.randn(6, 16, generator=rng)).to(like.dtype)
            blank, message = receiver.blank(key), sender.encode(a, key)
            assert (blank.shape, blank.dtype) == (message.shape, message.dtype)
            assert message.dtype == (torch.uint8 if epoch else like.dtype)
            got = receiver.decode(message, key)
            assert torch.equal(sender._cache[key], receiver._cache[key])
            assert torch.equal(got, receiver._cache[key])
            assert float((got - a).abs().max()) < 0.05
    if in_a_file:
        assert (tmp_path / "0.cache").stat().st_size == 2 * 6 * 16 * like.itemsize


def test_the_caches_are_bounded(tmp_path: Path) -> None:
    settings = RunSettings(cache_gib=2**-20)  # 1 KiB
    codecs = Codecs(Compression(4, 8, 16), settings, torch.zeros(1), keys=2, rank=3)
    assert isinstance(codecs.of_activations((4, 16)), Changes)
    with pytest.raises(HetschedError, match="rank 3 would keep more than"):
        codecs.of_activations((9, 16))
    direct = Codecs(Compression(4, 8, 16), replace(settings, quantise="direct"), torch.zeros(1), keys=2, rank=0)
    assert isinstance(direct.of_activations((999, 16)), Direct)


Models = Callable[..., ModelSpec]
Plans = Callable[..., Plan]


@pytest.fixture
def compressed(model: Models, unequal_plan: Plans) -> Callable[..., Plan]:
    """`compressed(4, 8, 16)`: on 2 devices, then 3, then 1, beside a pipeline of one device."""

    def make(*bits: int) -> Plan:
        plan: Plan = unequal_plan(model("llama", num_heads=6, num_kv_heads=3, head_dim=4))
        stages = (Stage((0, 1), ("a/0", "a/2")), Stage((1, 3), ("b/0", "b/2", "b/3")), Stage((3, 4), ("b/1",)))
        pipelines = (Pipeline("deep", stages, 5), plan.pipelines[1])
        return replace(plan, pipelines=pipelines, options=Options(compression=Compression(*bits)))

    return make


def sent(run: RunReport, what: str) -> Iterator[int]:
    """Bytes of each step, over all ranks."""
    for together in zip(*run.ranks, strict=True):
        yield sum(getattr(step, what) for step in together)


def test_bytes_on_the_wire_are_the_plans(
    compressed: Callable[..., Plan], forked_run: Callable[..., RunReport], tmp_path: Path
) -> None:
    """Scales too; the first epoch goes in full."""
    runs = {bits: forked_run(compressed(*bits), SETTINGS, tmp_path) for bits in [(16, 16, 16), (4, 8, 6)]}
    for bits, run in runs.items():
        plan = compressed(*bits)
        deep = plan.pipelines[0]
        messages = deep.micro_batches * sum(1 for _ in pairwise(deep.stages))
        forward, backward = hop_bytes(plan)
        full, _ = hop_bytes(compressed(16, 16, 16))
        assert list(sent(run, "activation_bytes")) == [full * messages] * 2 + [forward * messages] * 2
        assert list(sent(run, "activation_grad_bytes")) == [backward * messages] * 4
        predicted = sum(gradient_bytes(plan, group) * len(group.members) for group in gradient_groups(plan))
        found = list(sent(run, "grad_bytes"))
        assert len(set(found)) == 1
        if bits[2] == 16:
            assert found[0] == predicted
        else:  # rows of 512 are filled up
            assert predicted < found[0] < 1.3 * predicted
    losses = [run.losses for run in runs.values()]
    assert losses[0][:1] == pytest.approx(losses[1][:1], rel=1e-6)  # nothing is quantised before the first loss
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_what_rounding_leaves_out_of_a_gradient_comes_with_the_next(tmp_path: Path) -> None:
    """All that went in = all that came out + what is still left out, at 2 bits, over a group of one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        size = 2 * ROW
        zeros = [torch.zeros(size) for _ in range(3)]
        bucket = Bucket(0, dist.group.WORLD, None, True, True, (), zeros[0], zeros[1], zeros[2], (0, size))
        reduce = CompressedReduction([bucket], 2, seed=0)
        rng = torch.Generator().manual_seed(0)
        given, got = torch.zeros(size), torch.zeros(size)
        for _ in range(30):
            gradient = torch.randn(size, generator=rng)
            bucket.gradients.copy_(gradient)
            assert reduce() == packed_bytes((2, ROW), 2)
            given += gradient
            got += bucket.gradients
        (errors,) = reduce._shared
        torch.testing.assert_close(got + errors.sent + errors.owned, given, atol=1e-4, rtol=1e-4)
        assert float((got - given).norm() / given.norm()) < 0.8
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("zero", [0, 1])
def test_gradients_in_few_bits_train_as_well(
    compressed: Callable[..., Plan], forked_run: Callable[..., RunReport], zero: int, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=8)
    plans = [compressed(16, 16, bits) for bits in (16, 4)]
    plans = [replace(plan, options=replace(plan.options, zero=zero)) for plan in plans]
    exact, rough = (forked_run(plan, settings, tmp_path).losses for plan in plans)
    assert exact[0] == pytest.approx(rough[0], rel=1e-6)
    assert exact[-1] == pytest.approx(rough[-1], rel=0.01)
    assert rough[-1] < rough[0] - 0.1


def test_what_compresses_is_not_checked(compressed: Callable[..., Plan]) -> None:
    with pytest.raises(HetschedError, match="does not compute what one process does"):
        check_plan(compressed(4, 8, 16))
