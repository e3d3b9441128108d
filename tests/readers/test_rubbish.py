"""Readers never fail but with a HetschedError, whatever they are given."""

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hetsched.errors import HetschedError, HetschedWarning
from hetsched.readers import read_cluster, read_model, read_plan
from hetsched.readers.matrix import BANDWIDTH, LATENCY, inline_matrix, read_matrix

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["T4", "gpt2", "llama", "hetsched-plan/1", "train", "a/0", "a", 10**400, -1]),
)
KNOWN = (
    "name nodes gpu gpus count region link network inside_node inside_region between_regions a b bandwidth_gbps "
    "latency_ms kind memory_gib tflops bandwidth_matrix names rows unit file profiles model_type hidden_size n_layer "
    "num_heads vocab_size rope_parameters rope_theta format model workload global_batch pipelines stages layers "
    "devices micro_batches options compression zero cluster predicted routes num_layers"
)
KEYS = st.sampled_from(KNOWN.split())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, st.text(max_size=4)), inner, max_size=5)
    ),
    max_leaves=12,
)
CELLS = st.one_of(st.text(max_size=6), st.floats().map(str), st.sampled_from(["", "1", "-", "nan", "inf"]))


def survives(read: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HetschedWarning)
        with suppress(HetschedError):
            read()


@SETTINGS
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore"))))
@pytest.mark.parametrize("name", ["c.yaml", "config.json", "plan.json", "m.csv", "m.npy"])
def test_any_bytes(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    readers: dict[str, Callable[[], Any]] = {
        "c.yaml": lambda: read_cluster(path),
        "config.json": lambda: read_model(str(path)),
        "plan.json": lambda: read_plan(path),
        "m.csv": lambda: read_matrix(path, BANDWIDTH).diagonal_values(),
        "m.npy": lambda: read_matrix(path, LATENCY).diagonal_values(),
    }
    survives(readers[name])


@SETTINGS
@given(data=VALUES, fields=st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_value_under_known_keys(tmp_path: Path, data: object, fields: dict[str, Any]) -> None:
    node = {"name": "a", "gpu": "T4"}
    stage = {"layers": [0, 12], "devices": ["a/0"]}
    pipeline = {"micro_batches": 1, "stages": [stage]}
    plan = {"format": "hetsched-plan/1", "kind": "train", "model": "gpt2", "workload": {"global_batch": 1}}
    for cluster in (data, {"nodes": [node | fields]}, {"nodes": [node], "network": fields}, {"nodes": [node]} | fields):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(cluster), encoding="utf-8")
        survives(lambda: read_cluster(tmp_path / "c.yaml"))
    for content in (data, {"model_type": "llama"} | fields, {"model_type": "opt"} | fields):
        (tmp_path / "config.json").write_text(json.dumps(content))
        survives(lambda: read_model(str(tmp_path / "config.json")))
    for content in (
        data,
        plan | {"pipelines": [pipeline]} | fields,
        plan | {"pipelines": [pipeline | fields]},
        plan | {"pipelines": [pipeline | {"stages": [stage | fields]}]},
        plan | {"pipelines": [pipeline], "model": {"name": "gpt2"} | fields},
        plan | {"pipelines": [pipeline], "options": fields},
    ):
        (tmp_path / "plan.json").write_text(json.dumps(content))
        survives(lambda: read_plan(tmp_path / "plan.json"))


@SETTINGS
@given(
    rows=st.lists(st.lists(CELLS, max_size=4), max_size=4), names=st.lists(VALUES, max_size=3), data=st.lists(VALUES)
)
def test_any_cells(tmp_path: Path, rows: list[list[str]], names: list[Any], data: list[Any]) -> None:
    path = tmp_path / "m.csv"
    path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    survives(lambda: read_matrix(path, BANDWIDTH).diagonal_values())
    survives(lambda: inline_matrix(names, data, "here", LATENCY, "ms"))
    square = [data[: len(names)] for _ in names]
    survives(lambda: inline_matrix(names, square, "here", LATENCY, "ms").diagonal_values())


@SETTINGS
@given(changes=st.dictionaries(st.integers(0, 127), st.integers(0, 255), min_size=1, max_size=4))
@example(changes={14: ord("(")})
def test_a_damaged_array(tmp_path: Path, changes: dict[int, int]) -> None:
    path = tmp_path / "m.npy"
    np.save(path, np.ones((3, 3)))
    content = bytearray(path.read_bytes())
    for position, value in changes.items():
        content[position] = value
    path.write_bytes(content)
    survives(lambda: read_matrix(path, BANDWIDTH).diagonal_values())
