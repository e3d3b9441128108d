"""config.json of each family, checked by the parameters of the published weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from hetsched.catalog import find_model, model_names
from hetsched.errors import HetschedError
from hetsched.readers.model_config import model_from_config, read_model, resolve_model

SAMPLES = Path(__file__).parents[1] / "samples" / "models"

PARAMETERS = {
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "opt-1.3b": 1_315_758_080,
    "opt-350m": 331_196_416,
    "gpt2": 124_439_808,
    "gpt-neo-2.7b": 2_651_307_520,
    "gpt-neox-20b": 20_554_567_680,
}


def sample(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text())
    return data


def test_every_sample_is_tested() -> None:
    assert {path.stem for path in SAMPLES.glob("*.json")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_configs(name: str) -> None:
    spec = read_model(str(SAMPLES / f"{name}.json"))
    assert spec.name == name
    assert spec.parameters == PARAMETERS[name]
    if find_model(name) is not None:
        assert spec == find_model(name)


def test_a_folder_with_a_config_is_a_model_named_like_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(sample("gpt2")))
    assert read_model(str(tmp_path / "mine")).name == "mine"
    assert read_model(str(tmp_path / "mine" / "config.json")).name == "mine"


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("gpt2", 124_439_808),  # the family's defaults are the small model's
        ("opt", 125_239_296),
        ("gpt_neo", 1_315_575_808),
        ("gpt_neox", 20_554_567_680),
        ("llama", 6_738_415_616),
        ("mistral", 7_241_732_096),
        ("mixtral", 46_702_792_704),
    ],
)
def test_absent_keys_have_the_defaults_of_the_family(family: str, parameters: int) -> None:
    assert model_from_config({"model_type": family}, "config.json").parameters == parameters


def test_old_and_new_spellings_mean_the_same() -> None:
    old = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 32, "n_inner": None}
    new = {
        "model_type": "gpt2",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
    }
    assert model_from_config(old, "x") == model_from_config(new, "x")
    theta = {"model_type": "llama", "rope_theta": 5e5}
    nested = {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert model_from_config(theta, "x") == model_from_config(nested, "x")
    neox = model_from_config(
        {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "x"
    )
    assert neox.rotary_fraction == 0.5


def test_options_of_the_families() -> None:
    llama = model_from_config({"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 64}, "x")
    assert llama.qkv_bias
    assert llama.out_bias
    assert llama.mlp_bias
    assert llama.head_dim == 64
    qwen = model_from_config(sample("qwen2-7b"), "x")
    assert qwen.qkv_bias
    assert not qwen.out_bias
    neox = model_from_config(sample("gpt-neox-20b") | {"use_parallel_residual": False}, "x")
    assert not neox.parallel_residual
    assert neox.rotary_fraction == 0.25
    assert neox.activation == "gelu_tanh"
    opt = model_from_config(sample("opt-350m"), "x")
    assert opt.embedding_size == 512
    assert not opt.final_norm
    assert opt.tied_embeddings
    assert not model_from_config(sample("gpt2") | {"tie_word_embeddings": False}, "x").tied_embeddings


def test_a_plans_model_is_a_name_our_fields_or_a_configs_keys() -> None:
    gpt2 = find_model("gpt2")
    assert gpt2 is not None
    assert resolve_model("GPT2", "plan: model") == gpt2
    assert resolve_model({"name": "gpt2"}, "plan: model") == gpt2
    assert resolve_model({"name": "mine", **sample("gpt2")}, "plan: model").parameters == gpt2.parameters
    ours = {"name": "tiny", "num_layers": 2, "hidden_size": 64, "num_heads": 4, "vocab_size": 100}
    theirs = {"name": "tiny", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 100}
    assert resolve_model(ours, "plan: model") == resolve_model(theirs, "plan: model")


@pytest.mark.parametrize("name", model_names())
def test_what_a_plan_stores_is_read_back_the_same(name: str) -> None:
    spec = find_model(name)
    assert spec is not None
    assert resolve_model(spec.to_json(), "plan: model") == spec


def test_given_fields_win_over_the_catalogue_and_what_follows_from_them_follows() -> None:
    short = resolve_model({"name": "llama-2-7b", "num_layers": 4}, "plan: model")
    assert (short.num_layers, short.hidden_size, short.ffn_size) == (4, 4096, 11008)
    small = resolve_model({"name": "gpt2", "n_layer": 2, "hidden_size": 64, "num_heads": 4}, "plan: model")
    assert (small.num_layers, small.head_dim, small.num_kv_heads, small.ffn_size) == (2, 16, 4, 256)
    opt = resolve_model({"name": "opt-1.3b", "max_positions": 4096}, "plan: model")
    assert opt.position_rows == 4098
    grouped = resolve_model({"name": "llama-3-8b", "num_heads": 16}, "plan: model")
    assert (grouped.num_kv_heads, grouped.head_dim) == (8, 256)


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(HetschedError, match="lama-2-7b") as caught:
        read_model("lama-2-7b")
    assert "llama-2-7b" in caught.value.hint
    with pytest.raises(HetschedError, match="plan: model: name: 'lama-2-7b'") as caught:
        resolve_model({"name": "lama-2-7b"}, "plan: model")
    assert "llama-2-7b" in caught.value.hint
