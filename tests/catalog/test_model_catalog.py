"""Models by name: parameters as counted from the published weights."""

import pytest

from hetsched.catalog import find_model, model_names
from hetsched.catalog.data import load
from hetsched.model import ModelSpec

# name: all parameters, parameters of a block
PARAMETERS = {
    "gpt2": (124_439_808, 7_087_872),
    "gpt3-xl": (1_315_723_264, 50_358_272),
    "opt-350m": (331_196_416, 12_596_224),
    "opt-350m-s": (355_889_152, 12_596_224),
    "opt-1.3b": (1_315_758_080, 50_358_272),
    "opt-30b": (29_974_540_288, 616_655_872),
    "gpt-neo-2.7b": (2_651_307_520, 78_668_800),
    "gpt-neo-2.7b-s": (2_651_307_520, 78_668_800),
    "llama-2-7b": (6_738_415_616, 202_383_360),
    "llama-2-13b": (13_015_864_320, 317_204_480),
    "llama-30b": (32_528_943_616, 535_049_216),
    "llama-2-70b": (68_976_648_192, 855_654_400),
    "llama-3-8b": (8_030_261_248, 218_112_000),
    "llama-3.1-8b": (8_030_261_248, 218_112_000),
    "llama-3.1-70b": (70_553_706_496, 855_654_400),
    "mistral-7b": (7_241_732_096, 218_112_000),
    "mixtral-8x7b": (46_702_792_704, 1_451_270_144),
    "qwen2-7b": (7_615_616_512, 233_057_792),
    "qwen3-0.6b": (596_049_920, 15_730_944),
    "qwen3-32b": (32_762_123_264, 487_598_336),
}


def model(name: str) -> ModelSpec:
    found = find_model(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exact(name: str) -> None:
    spec = model(name)
    assert (spec.parameters, spec.block_parameters) == PARAMETERS[name]
    assert spec.name == name


def test_the_list_is_whole_and_every_entry_has_a_source() -> None:
    assert set(model_names()) == set(PARAMETERS)
    assert all(entry["source"] for entry in load("models.yaml")["models"].values())


def test_other_spellings() -> None:
    assert model("Meta-Llama/Llama-2-7B-hf") is model("llama-2-7b") is model(" LLAMA-2-7b")
    assert find_model("llama-9-7b") is None


def test_shapes_of_the_measured_profiles() -> None:
    opt, neo = model("opt-350m-s"), model("gpt-neo-2.7b-s")
    assert (opt.hidden_size, opt.num_layers, opt.num_heads, opt.ffn_size, opt.vocab_size) == (1024, 24, 16, 4096, 50272)
    assert (neo.hidden_size, neo.num_layers, neo.num_heads, neo.ffn_size, neo.vocab_size) == (
        2560,
        32,
        32,
        10240,
        50257,
    )
    assert opt.final_norm
    assert not opt.embedding_size
    assert model("gpt3-xl").max_positions == 2048
