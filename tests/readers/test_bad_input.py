"""Malformed files, each with its own message: what is wrong, and where."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetsched.errors import HetschedError, HetschedWarning
from hetsched.readers import read_cluster, read_model, read_plan

NODES = "nodes: [{name: a, region: r, gpu: T4, count: 2}, {name: b, region: s, gpu: T4}]\n"
TABLE = "between_regions: [{a: r, b: s, bandwidth_gbps: 1, latency_ms: 1}]"
DEEP = "[" * 5000


def node(fields: str) -> str:
    return f"nodes: [{{name: ok, gpu: T4}}, {{{fields}}}]"


def network(fields: str) -> str:
    return f"{NODES}network: {{{TABLE}, {fields}}}"


SPECS = {  # cluster.yaml: content, its message, the place
    "nothing in it": ("", "found empty", "cluster.yaml"),
    "a list": ("- a\n- b", "found a list of 2", "cluster.yaml"),
    "broken off": ("nodes: [{name: a", "line 2: not valid YAML", "cluster.yaml line 2"),
    "a tab": ("nodes:\n\t- {name: a}", "cannot start any token", "line 2"),
    "a control character": ("name: \x01", "control characters", "cluster.yaml"),
    "a Python object": ("name: !!python/name:os.system", "could not determine a constructor", "line 1"),
    "an unknown alias": ("name: *x", "undefined alias", "line 1"),
    "an alias to itself": ("nodes: &n [*n]", "*n stands inside itself", "line 1"),
    "aliases that unfold": (
        "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
        "unfolds to more than",
        "cluster.yaml line 14",
    ),
    "merges that unfold": (
        "b0: &b0 {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*b{n - 1}, *b{n - 1}]}}\n" for n in range(1, 40)),
        "more than 2000000 values",
        "cluster.yaml line 19",
    ),
    "too deep": (f"name: {DEEP}", "nested more than 50 deep", "line 1"),
    "a key twice": ("name: a\nsource: x\nname: b", "`name` stands twice", "line 3"),
    "a key that is a number": ("1: a", "the key 1 is the number 1", "cluster.yaml"),
    "a huge number": (f"name: a\ncount: {'9' * 40}", "more than 63 bits", "line 2"),
    "a number of 5000 digits": (f"name: {'9' * 5000}", "a value can't be read", "cluster.yaml"),
    "a name that is no text": ("name: [a]\nnodes: []", "name is a list of 1, expected text", "cluster.yaml: name"),
    "no nodes": ("name: a", "`nodes` is missing", "cluster.yaml"),
    "nodes misspelt": ("node: []", "`nodes` is missing", "`node` is there"),
    "no node in nodes": ("nodes: []", "`nodes` is empty", "cluster.yaml"),
    "nodes not a list": ("nodes: {name: a}", "nodes is a mapping, expected a list", "cluster.yaml: nodes"),
    "a node that is text": ("nodes: [tokyo]", "nodes[0]: expected a mapping", "cluster.yaml: nodes[0]"),
    "a node without name": (node("gpu: T4"), "`name` is missing", "nodes[1]"),
    "a node without gpu": (node("name: b"), "`gpu` is missing", "nodes[1]"),
    "a name with a slash": (node("name: b/0, gpu: T4"), "name 'b/0' has a `/`", "nodes[1]: name"),
    "an offer without a price": ("offers: [{name: a, gpu: T4}]", "`usd_per_hour` is missing", "usd_per_hour"),
    "an offer of none": ("offers: [{name: a, gpu: T4, usd_per_hour: 1, available: 0}]", "available is 0", "at least 1"),
    "an offer named like a node": (
        node("name: a-1, gpu: T4") + "\noffers: [{name: a, gpu: T4, usd_per_hour: 1, available: 2}]",
        "nodes[1] is named 'a-1' too",
        "offers[0]",
    ),
    "two of a name": (node("name: ok, gpu: T4"), "nodes[0] is named 'ok' too", "nodes[1]"),
    "a region that is no": (node("name: b, gpu: T4, region: no"), "region is false", "nodes[1]: region"),
    "an unknown GPU": (node("name: b, gpu: RTX-4900"), "is named 'RTX-4900'", "RTX-4090-24GB"),
    "an ambiguous GPU": (node("name: b, gpu: A100"), "is named 'A100'", "A100-PCIe-80GB"),
    "a GPU that is a number": (node("name: b, gpu: 4090"), "gpu is the number 4090", "nodes[1]: gpu"),
    "a GPU without memory": (
        node("name: b, gpu: {kind: own, tflops: 9, memory_gbytes_per_s: 9}"),
        "`memory_gib` is missing",
        "nodes[1]: gpu",
    ),
    "a GPU without speed": (
        node("name: b, gpu: {kind: own, tflops: 0, memory_gib: 9}"),
        "tflops is 0, expected a number greater than 0",
        "nodes[1]: gpu: tflops",
    ),
    "memory that is not finite": (
        node("name: b, gpu: {kind: T4, memory_gib: .inf}"),
        "memory_gib is inf",
        "nodes[1]: gpu: memory_gib",
    ),
    "an efficiency above one": (
        node("name: b, gpu: {kind: T4, efficiency: 45}"),
        "efficiency is 45",
        "nodes[1]: gpu: efficiency",
    ),
    "gpu and gpus": (node("name: b, gpu: T4, gpus: [T4]"), "`gpus` stands beside `gpu`", "nodes[1]"),
    "an empty gpus": (node("name: b, gpus: []"), "gpus is an empty list", "nodes[1]: gpus"),
    "no GPUs": (node("name: b, gpu: T4, count: 0"), "count is 0, expected at least 1", "nodes[1]: count"),
    "half a GPU": (node("name: b, gpu: T4, count: 1.5"), "count is the number 1.5", "nodes[1]: count"),
    "too many GPUs": (node("name: b, gpu: T4, count: 100000"), "more than 100000 GPUs", "cluster.yaml"),
    "a negative price": (node("name: b, gpu: T4, usd_per_hour: -2"), "usd_per_hour is -2", "nodes[1]: usd_per_hour"),
    "a price as text": (
        node("name: b, gpu: T4, egress_usd_per_gb: 9 cents"),
        "is the text '9 cents', expected a number",
        "nodes[1]: egress_usd_per_gb",
    ),
    "an empty link": (node("name: b, gpu: T4, link: {}"), "`bandwidth_gbps` is missing", "nodes[1]: link"),
    "a link with no speed": (
        node("name: b, gpu: T4, link: {bandwidth_gbps: 0}"),
        "bandwidth_gbps is 0, expected",
        "nodes[1]: link",
    ),
    "a negative latency": (
        node("name: b, gpu: T4, link: {latency_ms: -1}"),
        "latency_ms is -1, expected at least 0",
        "nodes[1]: link",
    ),
    "two nodes without a link": (NODES, "no bandwidth from a/0 to b/0", "{a: r, b: s,"),
    "no latency": (
        NODES + "network: {between_regions: [{a: r, b: s, bandwidth_gbps: 1}]}",
        "no latency from a/0 to b/0",
        "cluster.yaml: network",
    ),
    "the network as text": (NODES + "network: fast", "network: expected a mapping", "cluster.yaml: network"),
    "a link twice": (
        NODES + f"network: {{{TABLE[:-1]}, {{a: s, b: r, latency_ms: 2}}]}}",
        "already stands in between_regions[0]",
        "between_regions[1]",
    ),
    "an end missing": (
        NODES + "network: {between_regions: [{a: r, latency_ms: 2}]}",
        "`b` is missing",
        "between_regions[0]",
    ),
    "an unknown node": (
        network("between_nodes: [{a: a, b: c, latency_ms: 2}]"),
        "no node is named 'c'",
        "between_nodes[0]",
    ),
    "a node to itself": (
        network("between_nodes: [{a: a, b: a, latency_ms: 2}]"),
        "a and b are both a",
        "between_nodes[0]",
    ),
    "one_way as text": (
        NODES + "network: {between_regions: [{a: r, b: s, latency_ms: 2, one_way: 'yes'}]}",
        "one_way is the text 'yes'",
        "between_regions[0]: one_way",
    ),
    "no such matrix": (network("latency_matrix: gone.csv"), "gone.csv does not exist", "network: latency_matrix"),
    "a matrix by number": (network("latency_matrix: 3"), "latency_matrix: expected a mapping", "network"),
    "inline rows and names": (
        network("latency_matrix: {names: [a, b], rows: [[0, 1]]}"),
        "1 rows for 2 names",
        "network: latency_matrix",
    ),
    "inline rows of numbers": (
        network("latency_matrix: {names: [a], rows: [1]}"),
        "rows[0] is the number 1",
        "network: latency_matrix",
    ),
    "an inline unit": (
        network("latency_matrix: {names: [a, b], rows: [[0, 1], [1, 0]], unit: hours}"),
        "'hours' is not a unit of latency",
        "network: latency_matrix",
    ),
    "a profile that is not there": (
        NODES + f"network: {{{TABLE}}}\nprofiles: [no.json]",
        "'no.json' is not a file",
        "profiles[0]",
    ),
    "a profile by number": (NODES + f"network: {{{TABLE}}}\nprofiles: [7]", "profiles[0] is the number 7", "profiles"),
}

MATRICES = {  # m.csv, as the bandwidth matrix
    "empty file": ("\n\n", "m.csv: the matrix is empty", "m.csv"),
    "only a header": ("gbps,a,b\n", "m.csv: there are no rows", "m.csv"),
    "a row too few": (",a,b\na,,1\n", "1 rows and 2 columns", "m.csv"),
    "a ragged row": (",a,b\na,,1\nb,1\n", "row b has 1 values for 2 columns", "m.csv: row b"),
    "a column twice": (",a,a\na,,1\na,1,\n", "column a stands twice", "m.csv"),
    "a column without name": (",a,\na,,1\nb,1,\n", "column 2 has no name", "m.csv"),
    "rows in another order": (",a,b\nb,1,\na,,1\n", "row 1 is named 'b', column 1 is named 'a'", "m.csv"),
    "an unknown name": (",a,c\na,,1\nc,1,\n", "row and column c: the cluster has no node", "m.csv"),
    "nodes and devices": (",a,b/0\na,,1\nb/0,1,\n", "row and column b/0", "m.csv"),
    "a region twice": (",r,R,s\nr,,1,1\nR,1,,1\ns,1,1,\n", "a region stands twice", "m.csv"),
    "an unknown unit": ("furlongs,a,b\na,,1\nb,1,\n", "'furlongs' is not a unit of bandwidth", "top-left cell"),
    "text in a cell": (",a,b\na,,fast\nb,1,\n", "the text 'fast' is not a number", "row a, column b"),
    "a unit in a cell": (",a,b\na,,1\nb,1 Gbit/s,\n", "the text '1 Gbit/s'", "row b, column a"),
    "a negative cell": (",a,b\na,,1\nb,-2,\n", "the bandwidth -2 is negative", "row b, column a"),
    "a zero": (",a,b\na,,0\nb,1,\n", "the bandwidth is 0", "row a, column b"),
    "infinity": (",a,b\na,,1\nb,inf,\n", "the bandwidth is infinite", "row b, column a"),
    "a bad diagonal": (",a,b\na,-5,1\nb,1,\n", "the bandwidth -5 is negative", "row a, column a"),
    "an open quote": (',a,b\na,,"1\n' + "x" * 140_000, "not valid CSV", "m.csv"),
    "not UTF-8": (b",a,b\na,,\xff\n", "is not text (byte 8 is not UTF-8)", "m.csv"),
}

ARRAYS = {  # m.npy, as the bandwidth matrix
    "not an array": (b"hello", "not a readable .npy array", "m.npy"),
    "pickled": (np.array([[{}]], dtype=object), "m.npy: not a readable .npy array", "numpy.save"),
    "words": (np.array([["a"]]), "the array holds <U1", "m.npy"),
    "flat": (np.ones(4), "the array's shape is (4,)", "m.npy"),
    "too small": (np.ones((1, 1)), "1 rows, but the cluster has 2 nodes and 3 devices", "m.npy"),
    "a negative element": (np.array([[0, 1], [-3, 0]]), "the bandwidth -3 is negative", "row 1, column 0"),
    "a header that lies": (
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 99999999), }" + b" " * 40,
        "m.npy: not a readable",
        "m.npy",
    ),
}

CONFIGS = {  # config.json
    "not JSON": ("{'a': 1}", "line 1 column 2: not valid JSON", "config.json"),
    "a config that is a list": ("[]", "found a list of 0", "config.json"),
    "no family": ('{"hidden_size": 64}', "`model_type` is missing", "config.json"),
    "an unknown family": ('{"model_type": "bert"}', "model_type is 'bert'", "config.json"),
    "heads and width": (
        '{"model_type": "llama", "hidden_size": 100, "num_attention_heads": 3}',
        "100 is not a multiple of num_heads 3",
        "config.json",
    ),
    "heads and key heads": (
        '{"model_type": "qwen2", "num_key_value_heads": 5}',
        "32 attention heads cannot share 5 key-value heads",
        "config.json",
    ),
    "no layers": ('{"model_type": "gpt2", "n_layer": 0}', "n_layer is 0", "config.json"),
    "a width as text": ('{"model_type": "opt", "hidden_size": "1k"}', "hidden_size is the text '1k'", "config.json"),
    "a bias that is no flag": ('{"model_type": "opt", "enable_bias": 1}', "enable_bias is the number 1", "config.json"),
    "an unknown activation": ('{"model_type": "opt", "activation_function": "tanh"}', "'tanh'", "activation_function"),
    "too many experts": (
        '{"model_type": "mixtral", "num_experts_per_tok": 9}',
        "9 experts a token of 8",
        "config.json",
    ),
    "NaN": ('{"model_type": "llama", "rms_norm_eps": NaN}', "the number NaN is not finite", "config.json"),
    "more than a float": ('{"model_type": "llama", "rope_theta": 1e999}', "the number 1e999", "config.json"),
    "more than a count": (f'{{"model_type": "llama", "vocab_size": {"9" * 30}}}', "more than 18 digits", "config.json"),
    "more than a model": ('{"model_type": "gpt2", "vocab_size": 100000000}', "expected at most 10000000", "vocab_size"),
    "nested rope": (
        '{"model_type": "llama", "rope_parameters": {"rope_theta": -1}}',
        "rope_theta is -1",
        "config.json",
    ),
    "lists in lists": ("[" * 200_000, "nested too deeply", "config.json"),
}


def plan(change: Callable[[Any], object]) -> str:
    """A plan a person wrote, with one change."""
    stages = [{"layers": [0, 6], "devices": ["a/0"]}, {"layers": [6, 12], "devices": ["a/1"]}]
    data: dict[str, Any] = {
        "format": "hetsched-plan/1",
        "kind": "train",
        "model": "gpt2",
        "workload": {"global_batch": 8},
        "pipelines": [{"name": "p0", "micro_batches": 8, "stages": stages}],
    }
    change(data)
    return json.dumps(data)


def stage(number: int, **fields: object) -> str:
    return plan(lambda data: data["pipelines"][0]["stages"][number].update(fields))


def pipeline(**fields: object) -> str:
    return plan(lambda data: data["pipelines"][0].update(fields))


def top(**fields: object) -> str:
    return plan(lambda data: data.update(fields))


PLANS = {  # plan.json
    "a comma too few": ('{"format": "hetsched-plan/1"\n"kind": 1}', "line 2 column 1: not valid JSON", "plan.json"),
    "a plan that is a list": ("[1]", "the file holds a list of 1, expected a plan", "plan.json"),
    "no format": (plan(lambda data: data.pop("format")), "`format` is missing", "plan.json"),
    "a newer format": (top(format="hetsched-plan/2"), "the format is 'hetsched-plan/2'", "plan.json"),
    "no model": (plan(lambda data: data.pop("model")), "`model` is missing", "plan.json"),
    "an unknown model": (top(model="gpt-5"), "'gpt-5' is neither a model", "plan.json: model"),
    "an unknown name in it": (top(model={"name": "gpt9"}), "model: name: 'gpt9'", "plan.json"),
    "a model by number": (top(model=7), "model: expected a mapping", "plan.json"),
    "half a model": (
        top(model={"name": "own", "num_layers": 12, "hidden_size": 8}),
        "`num_heads` is missing",
        "plan.json: model",
    ),
    "a model of another depth": (
        top(model={"name": "gpt2", "num_layers": 14}),
        "ends at block 12, but gpt2 has 14 blocks",
        "pipeline p0",
    ),
    "a kind unknown": (top(kind="tune"), "kind is 'tune'", "plan.json: kind"),
    "no batch": (top(workload={}), "`global_batch` is missing", "plan.json: workload"),
    "an unknown dtype": (top(workload={"global_batch": 8, "dtype": "int3"}), "dtype is 'int3'", "workload"),
    "no pipelines": (top(pipelines=[]), "there are no pipelines", "plan"),
    "batches that do not add up": (pipeline(micro_batches=5), "= 5 sequences, the global batch is 8", "plan"),
    "micro-batches as a fraction": (pipeline(micro_batches=2.5), "micro_batches is the number 2.5", "pipelines[0]"),
    "a role unknown": (pipeline(role="cook"), "role is 'cook'", "plan.json: pipelines[0]: role"),
    "no stages": (pipeline(stages=[]), "has no stages", "pipeline p0"),
    "a gap": (stage(1, layers=[7, 12]), "stage 1 has layers [7, 12], expected [6,", "pipeline p0"),
    "layers that overlap": (stage(1, layers=[5, 12]), "stage 1 has layers [5, 12]", "pipeline p0"),
    "too few layers": (stage(1, layers=[6, 11]), "ends at block 11", "pipeline p0"),
    "layers as text": (stage(0, layers="0-6"), "layers is the text '0-6', expected a list", "stages[0]: layers"),
    "three layer numbers": (stage(0, layers=[0, 3, 6]), "layers is [0, 3, 6]", "stages[0]: layers"),
    "a device twice": (stage(1, devices=["a/0"]), "device a/0 is in pipeline p0 stage 0", "pipeline p0 stage 1"),
    "no device": (stage(1, devices=[]), "pipeline p0 stage 1 has no devices", "pipeline p0 stage 1"),
    "devices by number": (stage(1, devices=[1]), "devices is [1], expected names", "stages[1]: devices"),
    "an unknown schedule": (top(options={"schedule": "2f2b"}), "schedule is '2f2b'", "plan.json: options"),
    "ZeRO 4": (top(options={"zero": 4}), "zero is 4, expected at most 3", "plan.json: options"),
    "one bit": (
        top(options={"compression": {"grad_bits": 1}}),
        "grad_bits is 1, expected at least 2",
        "options: compression",
    ),
}


def _cluster(folder: Path, content: str | bytes) -> None:
    path = folder / "cluster.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    read_cluster(path)


def _matrix(folder: Path, content: str | bytes) -> None:
    (folder / "m.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    _cluster(folder, network("bandwidth_matrix: m.csv"))


def _array(folder: Path, content: bytes | np.ndarray) -> None:
    path = folder / "m.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    _cluster(folder, network("bandwidth_matrix: m.npy"))


def _config(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    read_model(str(folder / "config.json"))


def _plan(folder: Path, content: str) -> None:
    (folder / "plan.json").write_text(content)
    read_plan(folder / "plan.json")


TABLES: dict[str, tuple[Callable[[Path, Any], None], dict[str, Any]]] = {
    "spec": (_cluster, SPECS),
    "matrix": (_matrix, MATRICES),
    "array": (_array, ARRAYS),
    "config": (_config, CONFIGS),
    "plan": (_plan, PLANS),
}
CASES = [(kind, name) for kind, (_, table) in TABLES.items() for name in table]


def error_of(folder: Path, kind: str, name: str) -> HetschedError:
    read, table = TABLES[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HetschedWarning)
        with pytest.raises(HetschedError) as caught:
            read(folder, table[name][0])
    return caught.value


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}: {name}" for kind, name in CASES])
def test_bad_input(tmp_path: Path, kind: str, name: str) -> None:
    error = error_of(tmp_path, kind, name)
    _, fragment, place = TABLES[kind][1][name]
    assert fragment in error.message
    assert place in f"{error.message} | {error.hint}"
    assert error.exit_code == 1
    assert len(error.message) < 400


def test_no_two_have_the_same_message(tmp_path: Path) -> None:
    said: dict[str, str] = {}
    for kind, name in CASES:
        error = error_of(tmp_path, kind, name)
        text = f"{error.message} | {error.hint}"
        assert text not in said, f"{kind}: {name} reads as {said[text]}"
        said[text] = f"{kind}: {name}"
    assert len(said) >= 100
