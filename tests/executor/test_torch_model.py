from collections.abc import Callable

import pytest

from hetsched.model import ModelSpec

torch = pytest.importorskip("torch")

from hetsched.executor.model import Transformer  # noqa: E402
from hetsched.executor.shards import piece_of  # noqa: E402
from hetsched.executor.tensor_parallel import Team  # noqa: E402

CHANGES = [
    ("llama", {}),
    ("llama", {"tied_embeddings": True, "qkv_bias": True, "qk_norm": True, "head_dim": 16}),
    ("llama", {"rotary_fraction": 0.5, "parallel_residual": True, "mlp_bias": True}),
    ("gpt2", {}),
    ("gpt2", {"tied_embeddings": False, "activation": "gelu", "position_rows": 34}),
    ("gpt2", {"activation": "relu", "position_rows": 34, "embedding_size": 16, "final_norm": False}),
]


@pytest.mark.parametrize(("family", "changes"), CHANGES)
def test_parameters_are_those_of_the_spec(
    model: Callable[..., ModelSpec], family: str, changes: dict[str, object]
) -> None:
    spec = model(family, **changes)
    whole = Transformer(spec, (0, 4))
    assert sum(p.numel() for p in whole.parameters()) == spec.parameters
    for layers in [(0, 1), (1, 3), (3, 4), (0, 4)]:
        part = Transformer(spec, layers)
        assert sum(p.numel() for p in part.parameters()) == spec.stage_parameters(layers)
        assert part.global_parameters().keys() <= whole.global_parameters().keys()


@pytest.mark.parametrize(("family", "changes"), CHANGES)
def test_stages_in_turn_equal_the_whole(
    model: Callable[..., ModelSpec], family: str, changes: dict[str, object]
) -> None:
    spec = model(family, **changes)
    x = torch.arange(32).view(2, 16) * 7 % 256
    whole = Transformer(spec, (0, 4))
    whole.initialise(seed=3)
    expected = whole(x)
    for layers in [(0, 1), (1, 3), (3, 4)]:
        part = Transformer(spec, layers, recompute=True)
        part.initialise(seed=3)
        x = part(x)
    torch.testing.assert_close(x, expected)
    assert x.shape == (2, 16, 256)


@pytest.mark.parametrize(("family", "changes"), CHANGES)
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_devices_of_a_stage_hold_slices_of_the_same_weights(
    model: Callable[..., ModelSpec], family: str, changes: dict[str, object], degree: int
) -> None:
    spec = model(family, **changes)
    whole = Transformer(spec, (0, 4))
    whole.initialise(seed=3)
    for place in range(degree):
        part = Transformer(spec, (0, 4), team=Team(degree, place))
        part.initialise(seed=3)
        for name, held in part.global_parameters().items():
            piece, expected = piece_of(spec, name, degree, place), whole.global_parameters()[name].detach()
            if piece is not None:
                assert piece.whole == expected.shape[piece.dim]
                expected = expected.narrow(piece.dim, piece.start, piece.stop - piece.start)
            assert torch.equal(held, expected)


def test_no_token_sees_those_after_it(model: Callable[..., ModelSpec]) -> None:
    whole = Transformer(model("llama"), (0, 4))
    whole.initialise(seed=0)
    x = torch.zeros(1, 16, dtype=torch.long)
    y = x.clone()
    y[0, 10:] = 5
    torch.testing.assert_close(whole(x)[:, :10], whole(y)[:, :10])
    assert not torch.allclose(whole(x)[:, 10:], whole(y)[:, 10:])


def test_seeds_differ_and_repeat(model: Callable[..., ModelSpec]) -> None:
    weights = []
    for seed in (0, 0, 1):
        part = Transformer(model("llama"), (1, 2))
        part.initialise(seed)
        weights.append(part.global_parameters()["blocks.1.mlp.up.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
