"""Times of a model's parts on one device of this machine, from the blocks that training runs.

What is timed is what a stage does in a step: the embedding, a block, the final norm with LM head and loss, forwards and
backwards with gradients added up as in training, and AdamW's update of each.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hetsched.executor.gradients import AdamW, make_buckets
from hetsched.executor.groups import Seat, sharings
from hetsched.executor.limits import refuse_experts
from hetsched.executor.model import Transformer
from hetsched.executor.settings import RunSettings
from hetsched.executor.tensor_parallel import cross_entropy
from hetsched.executor.train import Target, choose_target
from hetsched.model import ModelSpec
from hetsched.plan import Pipeline, Plan, Stage
from hetsched.profiles import ModelShape
from hetsched.workload import TrainingJob

TIMES = 9  # of each pass, of which the median counts
BLOCKS = 2  # measured together: a block's time is half

Passes = dict[str, list[float]]  # part: [forward, backward, update] in s


def measure_profile(
    model: ModelSpec,
    job: TrainingJob,
    micro_batches: Sequence[int],
    gpu: str,
    settings: RunSettings,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """A file of measured training times, as readers take it, for `gpu`: this device's name in cluster files.

    micro_batches: the sizes to measure. progress: told each size before it is measured. HetschedError where the device
    or the dtype is not there, or the model is none that training runs.
    """
    refuse_experts(model)
    torch.set_num_threads(settings.threads)
    target = choose_target(_plan(model, job.seq_len, job.dtype), settings, 0, 1)
    shape = asdict(ModelShape.of(model, job)) | {"num_layers": model.num_layers}
    profiles = []
    for size in micro_batches:
        if progress is not None:
            progress(size)
        parts = measure_parts(model, size, job.seq_len, target)
        profiles.append({"model": model.name, "gpu": gpu, "tp": 1, "micro_batch": size, **parts})
    return {
        "what": "Measured training times per part: [forward, backward, optimiser update] in seconds, one micro-batch.",
        "source": f"hetsched probe --compute, torch {torch.__version__}, {target.device.type}",
        "models": {model.name: shape | {"dtype": target.dtype_name}},
        "profiles": profiles,
    }


def measure_parts(model: ModelSpec, micro_batch: int, seq_len: int, target: Target) -> Passes:
    """Times of the three parts for one micro-batch."""
    tokens = torch.randint(model.vocab_size, (micro_batch, seq_len), device=target.device)
    hidden = torch.randn(micro_batch, seq_len, model.hidden_size, device=target.device, dtype=target.dtype)
    middle = max(model.num_layers, BLOCKS + 2)  # so that there are blocks that are neither first nor last
    deep = _with_layers(model, middle)
    block = _time(deep, (1, 1 + BLOCKS), hidden, None, target)
    first = _time(deep, (0, 1), tokens, None, target)
    last = _time(deep, (middle - 1, middle), hidden, tokens, target)
    one = [seconds / BLOCKS for seconds in block]
    return {
        "embedding_s": [max(a - b, 0.0) for a, b in zip(first, one, strict=True)],
        "block_s": one,
        "head_s": [max(a - b, 0.0) for a, b in zip(last, one, strict=True)],
    }


def _time(model: ModelSpec, layers: tuple[int, int], x: Tensor, targets: Tensor | None, target: Target) -> list[float]:
    """Medians of the forward pass, the backward pass and the update of a stage with these blocks."""
    stage = Transformer(model, layers)
    stage.initialise(0)
    stage.to(target.device)
    parameters = stage.global_parameters()
    alone = Seat(0, "n/0", "p", 0, 1, layers, (0,), (), (), 1, 0)
    held = [
        replace(shared, slices=kept)
        for shared in sharings(_plan(model, x.shape[1], "fp32"))
        if (kept := tuple(part for part in shared.slices if part.name in parameters))
    ]
    buckets = make_buckets(parameters, model, alone, held, {}, dtype=target.dtype, zero=False)
    optimizer = AdamW(buckets, parameters, 1e-6)
    found: list[list[float]] = [[], [], []]
    for _ in range(TIMES + 2):  # the first two warm up
        moments = [_now(target)]
        given = x.detach().requires_grad_(x.is_floating_point())
        y = stage(given)
        if targets is not None and stage.head is not None:
            y = cross_entropy(y.flatten(0, 1), targets.flatten(), stage.head.columns, stage.team).mean()
        moments.append(_now(target))
        torch.autograd.backward(y, None if targets is not None else torch.ones_like(y))
        moments.append(_now(target))
        optimizer.step()
        moments.append(_now(target))
        for times, (begun, ended) in zip(found, pairwise(moments), strict=True):
            times.append(ended - begun)
    return [statistics.median(times[2:]) for times in found]


def _now(target: Target) -> float:
    target.synchronise()
    return time.perf_counter()


def _plan(model: ModelSpec, seq_len: int, dtype: str) -> Plan:
    """All of the model on one device."""
    pipeline = Pipeline("p", (Stage((0, model.num_layers), ("n/0",)),), 1)
    return Plan(model, TrainingJob(1, seq_len, 1, dtype), (pipeline,))


def _with_layers(model: ModelSpec, layers: int) -> ModelSpec:
    return ModelSpec.from_json(model.to_json() | {"num_layers": layers})
