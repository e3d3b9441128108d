"""Tiny models, and a plan whose pipelines differ in depth, layers and share of the batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hetsched.executor import CheckReport, RunReport, RunSettings
from hetsched.executor.launch import _gather, arguments
from hetsched.model import ModelSpec
from hetsched.plan import Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "name": "tiny-llama",
        "num_layers": 4,
        "hidden_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 48,
        "vocab_size": 256,
        "max_positions": 32,
    },
    "gpt2": {
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
    },
}


@pytest.fixture
def model() -> Callable[..., ModelSpec]:
    """`model("llama", qk_norm=True)`: a tiny model of that family with changes."""

    def make(family: str, **changes: Any) -> ModelSpec:
        return ModelSpec.from_json(SHAPES[family] | changes)

    return make


@pytest.fixture
def unequal_plan() -> Callable[..., Plan]:
    """`unequal_plan(model, **options)`: pipelines of 3 and 1 stages with 5 and 2 micro-batches of 2.

    They do one sequence more than the batch of 13. Node a has the first pipeline's first stage and the other pipeline,
    so that ranks do not follow the pipelines.
    """

    def make(spec: ModelSpec, **options: Any) -> Plan:
        return Plan(
            model=spec,
            workload=TrainingJob(global_batch=13, seq_len=16, micro_batch=2, dtype="fp32"),
            pipelines=(
                Pipeline("deep", (Stage((0, 1), ("a/0",)), Stage((1, 3), ("b/0",)), Stage((3, 4), ("b/1",))), 5),
                Pipeline("flat", (Stage((0, 4), ("a/1",)),), 2),
            ),
            options=Options(**options),
        )

    return make


ForkedRun = Callable[[Plan, RunSettings, Path], RunReport]


@pytest.fixture(scope="session")
def forked_run() -> Iterator[ForkedRun]:
    """`forked_run(plan, settings, folder)`: as `run_plan`, with ranks forked from one process that has torch.

    The ranks leave what they say, and their gradients, in the folder.
    """
    pool = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("rank_pool.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert pool.stdin is not None
    assert pool.stdout is not None
    questions, answers = pool.stdin, pool.stdout

    def run(plan: Plan, settings: RunSettings, folder: Path) -> RunReport:
        devices = tuple(device for devices in plan.devices_by_node.values() for device in devices)
        (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")
        (folder / "store").unlink(missing_ok=True)
        words = arguments(settings, folder, folder)[:-1]  # without --end-with-stdin
        questions.write(json.dumps({"world_size": len(devices), "words": words}) + "\n")
        questions.flush()
        assert answers.readline() == f"{[0] * len(devices)}\n"
        return _gather(plan, devices, folder, ())

    with pool:
        yield run
        questions.close()


@pytest.fixture
def forked_check(forked_run: ForkedRun, tmp_path: Path) -> Callable[[Plan, RunSettings], CheckReport]:
    """`forked_check(plan, settings)`: as `check_plan`."""
    from hetsched.executor.check import compare

    def check(plan: Plan, settings: RunSettings) -> CheckReport:
        return compare(plan, settings, forked_run(plan, settings, tmp_path), tmp_path)

    return check
