"""Tiny plans whose pipelines differ in depth, layers and share of the batch."""

from typing import Any

from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

LLAMA: dict[str, Any] = {
    "name": "tiny-llama",
    "num_layers": 4,
    "hidden_size": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_size": 48,
    "vocab_size": 256,
    "max_positions": 32,
}
GPT2: dict[str, Any] = {
    "name": "tiny-gpt2",
    "num_layers": 4,
    "hidden_size": 32,
    "num_heads": 4,
    "vocab_size": 256,
    "max_positions": 32,
    "family": "gpt2",
    "gated_mlp": False,
    "activation": "gelu_tanh",
    "norm": "layernorm",
    "positions": "learned",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "tied_embeddings": True,
}


def model(shape: dict[str, Any], **changes: Any) -> ModelSpec:
    """The shape with changes."""
    return ModelSpec.from_json(shape | changes)


def unequal_plan(spec: ModelSpec, **options: Any) -> Plan:
    """Pipelines of 3 and 1 stages with 5 and 2 micro-batches of 2; one sequence more than the batch of 13.

    The devices are named so that ranks interleave: node a has the first pipeline's first stage and the other pipeline.
    """
    return Plan(
        model=spec,
        workload=TrainingJob(global_batch=13, seq_len=16, micro_batch=2, dtype="fp32"),
        pipelines=(
            Pipeline("deep", (Stage((0, 1), ("a/0",)), Stage((1, 3), ("b/0",)), Stage((3, 4), ("b/1",))), 5),
            Pipeline("flat", (Stage((0, 4), ("a/1",)),), 2),
        ),
        options=Options(**options),
    )
