"""The model families of Hugging Face transformers: Fields of a config.json -> the fields of ModelSpec.

Key names, old and new, and what an absent key means are those of the classes in `configuration_<family>.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hetsched.fields import Fields

LARGEST = 10**7  # no dimension of a real model is greater

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _size(source: Fields, default: int | None, *keys: str) -> int:
    """The whole number under the first of `keys` that is there; `default` where none is (or an error for None)."""
    for key in keys:
        if key in source:
            return source.integer(key, maximum=LARGEST)
    if default is None:
        return source.integer(keys[0])
    return default


def _activation(source: Fields, default: str, *keys: str) -> str:
    for key in keys:
        if key in source:
            return _ACTIVATIONS[source.choice(key, tuple(_ACTIVATIONS))]
    return _ACTIVATIONS[default]


def _rope(source: Fields, theta: float = 10000.0, *keys: str) -> float:
    """The rotary base: `rope_parameters.rope_theta` in newer files, `rope_theta` or `keys` in older ones."""
    nested = source.data.get("rope_parameters")
    if isinstance(nested, Mapping) and "rope_theta" in nested:
        return source.child("rope_parameters").number("rope_theta", above=0.0)
    for key in ("rope_theta", *keys):
        if key in source:
            return source.number(key, above=0.0)
    return theta


def _shape(source: Fields, *, layers: int, hidden: int, heads: int, vocab: int, positions: int) -> dict[str, Any]:
    """What every family has, by its usual keys, with the family's defaults; both spellings of GPT-2's keys."""
    return {
        "num_layers": _size(source, layers, "num_hidden_layers", "n_layer", "num_layers"),
        "hidden_size": _size(source, hidden, "hidden_size", "n_embd"),
        "num_heads": _size(source, heads, "num_attention_heads", "n_head", "num_heads"),
        "vocab_size": _size(source, vocab, "vocab_size"),
        "max_positions": _size(source, positions, "max_position_embeddings", "n_positions", "n_ctx"),
    }


def _llama(
    source: Fields,
    *,
    ffn: int = 11008,
    vocab: int = 32000,
    positions: int = 2048,
    kv_heads: int | None = None,
    epsilon: float = 1e-6,
    theta: float = 10000.0,
) -> dict[str, Any]:
    """Llama; its kin differ in defaults and in a few fields."""
    shape = _shape(source, layers=32, hidden=4096, heads=32, vocab=vocab, positions=positions)
    attention_bias = source.flag("attention_bias", False)
    return shape | {
        "ffn_size": _size(source, ffn, "intermediate_size"),
        # null means all heads; absent means the family's default
        "num_kv_heads": _size(
            source,
            shape["num_heads"] if kv_heads is None or "num_key_value_heads" in source.data else kv_heads,
            "num_key_value_heads",
        ),
        **({"head_dim": _size(source, None, "head_dim")} if "head_dim" in source else {}),
        "activation": _activation(source, "silu", "hidden_act", "hidden_activation"),
        "norm_epsilon": source.number("rms_norm_eps", epsilon, above=0.0),
        "rope_theta": _rope(source, theta),
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": source.flag("mlp_bias", False),
        "tied_embeddings": source.flag("tie_word_embeddings", False),
    }


def _mistral(source: Fields) -> dict[str, Any]:
    return _llama(source, ffn=14336, positions=131072, kv_heads=8)


def _mixtral(source: Fields) -> dict[str, Any]:
    return _llama(source, ffn=14336, positions=131072, kv_heads=8, epsilon=1e-5, theta=1e6) | {
        "num_experts": _size(source, 8, "num_local_experts", "num_experts"),
        "experts_per_token": _size(source, 2, "num_experts_per_tok"),
    }


def _qwen2(source: Fields) -> dict[str, Any]:
    """Biases on q, k and v whatever the file says, and none elsewhere."""
    fields = _llama(source, ffn=22016, vocab=151936, positions=32768, kv_heads=32)
    return fields | {"qkv_bias": True, "out_bias": False, "mlp_bias": False}


def _qwen3(source: Fields) -> dict[str, Any]:
    fields = _llama(source, ffn=22016, vocab=151936, positions=32768, kv_heads=32)
    return fields | {"head_dim": _size(source, 128, "head_dim"), "qk_norm": True}


_BIASED = {"norm": "layernorm", "gated_mlp": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True}


def _opt(source: Fields) -> dict[str, Any]:
    shape = _shape(source, layers=12, hidden=768, heads=12, vocab=50272, positions=2048)
    biases = source.flag("enable_bias", True)
    width = _size(source, shape["hidden_size"], "word_embed_proj_dim")
    final_norm = source.flag("do_layer_norm_before", True) and not source.flag("_remove_final_layer_norm", False)
    return (
        shape
        | _BIASED
        | {
            "ffn_size": _size(source, 3072, "ffn_dim"),
            "activation": _activation(source, "relu", "activation_function"),
            "positions": "learned",
            "position_rows": shape["max_positions"] + 2,
            "qkv_bias": biases,
            "out_bias": biases,
            "mlp_bias": biases,
            "embedding_size": width if width != shape["hidden_size"] else 0,
            "final_norm": final_norm,
            "tied_embeddings": source.flag("tie_word_embeddings", True),
        }
    )


def _gpt2(source: Fields) -> dict[str, Any]:
    shape = _shape(source, layers=12, hidden=768, heads=12, vocab=50257, positions=1024)
    return (
        shape
        | _BIASED
        | {
            "ffn_size": _size(source, 4 * shape["hidden_size"], "n_inner"),
            "activation": _activation(source, "gelu_new", "activation_function"),
            "norm_epsilon": source.number("layer_norm_epsilon", 1e-5, above=0.0),
            "positions": "learned",
            "position_rows": shape["max_positions"],
            "tied_embeddings": source.flag("tie_word_embeddings", True),
        }
    )


def _gpt_neo(source: Fields) -> dict[str, Any]:
    shape = _shape(source, layers=24, hidden=2048, heads=16, vocab=50257, positions=2048)
    return (
        shape
        | _BIASED
        | {
            "ffn_size": _size(source, 4 * shape["hidden_size"], "intermediate_size"),
            "activation": _activation(source, "gelu_new", "activation_function"),
            "norm_epsilon": source.number("layer_norm_epsilon", 1e-5, above=0.0),
            "positions": "learned",
            "position_rows": shape["max_positions"],
            "qkv_bias": False,
            "tied_embeddings": source.flag("tie_word_embeddings", True),
        }
    )


def _gpt_neox(source: Fields) -> dict[str, Any]:
    shape = _shape(source, layers=44, hidden=6144, heads=64, vocab=50432, positions=2048)
    biases = source.flag("attention_bias", True)
    nested = source.data.get("rope_parameters")
    rotary = source.number("rotary_pct", 0.25, above=0.0)
    if isinstance(nested, Mapping) and "partial_rotary_factor" in nested:
        rotary = source.child("rope_parameters").number("partial_rotary_factor", above=0.0)
    return (
        shape
        | _BIASED
        | {
            "ffn_size": _size(source, 24576, "intermediate_size"),
            "activation": _activation(source, "gelu", "hidden_act"),
            "norm_epsilon": source.number("layer_norm_eps", 1e-5, above=0.0),
            "rope_theta": _rope(source, 10000.0, "rotary_emb_base"),
            "rotary_fraction": rotary,
            "qkv_bias": biases,
            "out_bias": biases,
            "parallel_residual": source.flag("use_parallel_residual", True),
            "tied_embeddings": source.flag("tie_word_embeddings", False),
        }
    )


FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "opt": _opt,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
}
