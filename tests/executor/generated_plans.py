"""Plans of every shape by number: depths 1 to 4, TP 1 to 4, 1 to 3 pipelines, unequal layers, degrees and batches."""

import random
from itertools import pairwise
from typing import Any

from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

MOST_DEVICES = 8

LLAMA: dict[str, Any] = {"ffn_size": 20, "num_heads": 6, "num_kv_heads": 3, "head_dim": 4, "hidden_size": 24}
GPT2: dict[str, Any] = {
    "ffn_size": 30,
    "num_heads": 4,
    "hidden_size": 16,
    "family": "gpt2",
    "gated_mlp": False,
    "activation": "gelu_tanh",
    "norm": "layernorm",
    "positions": "learned",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}


def generated_model(rng: random.Random, layers: int) -> ModelSpec:
    shape = dict(rng.choice((LLAMA, GPT2)))
    if "family" not in shape:  # of the llamas, some with one key-value head a query head, some with the Qwens' extras
        shape["num_kv_heads"] = rng.choice((2, 3, 6))
        shape["qkv_bias"] = shape["qk_norm"] = rng.random() < 0.3
        shape["parallel_residual"] = rng.random() < 0.2
    elif rng.random() < 0.3:
        shape |= {"embedding_size": 8, "final_norm": False, "position_rows": 10}  # as in OPT-350M
    return ModelSpec.from_json(
        {"name": "tiny", "num_layers": layers, "vocab_size": 259, "max_positions": 8, **shape}
        | {"tied_embeddings": rng.random() < 0.5}
    )


def generated_plan(seed: int) -> Plan:
    rng = random.Random(seed)
    layers = rng.randint(2, 4)
    pipelines, used, left = [], 0, MOST_DEVICES
    count = rng.choice((1, 2, 2, 3))
    for number in range(count):
        room = left - (count - number - 1)  # one device for each of the others
        depth = rng.randint(1, min(4, layers, room))
        cuts = [0, *sorted(rng.sample(range(1, layers), depth - 1)), layers]
        stages: list[Stage] = []
        for first, last in pairwise(cuts):
            degree = rng.randint(1, min(4, room - (depth - len(stages) - 1)))
            stages.append(Stage((first, last), tuple(f"n/{used + k}" for k in range(degree))))
            used, room, left = used + degree, room - degree, left - degree
        pipelines.append(Pipeline(f"p{number}", tuple(stages), rng.randint(1, 3)))
    size = rng.choice((1, 2))
    sequences = size * sum(pipeline.micro_batches for pipeline in pipelines)
    names = [f"{rng.choice('ab')}/{number}" for number in range(used)]  # ranks do not follow the pipelines
    job = TrainingJob(sequences - rng.randrange(size), 8, size, dtype="fp32")
    options = Options(
        schedule=rng.choice(("1f1b", "gpipe")),
        recompute=rng.random() < 0.3,
        zero=rng.choice((0, 1)),
        overlap=rng.random() < 0.8,
    )
    renamed = tuple(
        Pipeline(
            pipeline.name,
            tuple(Stage(s.layers, tuple(names[int(d.split("/")[1])] for d in s.devices)) for s in pipeline.stages),
            pipeline.micro_batches,
        )
        for pipeline in pipelines
    )
    return Plan(generated_model(rng, layers), job, renamed, options)
