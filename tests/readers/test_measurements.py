"""Measured profiles: what they say of a cluster, and what is wrong with those that a person damaged."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hetsched.cluster import Cluster
from hetsched.cost.compute import BLOCK_OVERHEAD_S, stage_work
from hetsched.cost.network import team_of
from hetsched.cost.placement import place, worker_of
from hetsched.cost.training import Roofline
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Pipeline, Plan, Stage
from hetsched.profiles import BandwidthCurve
from hetsched.readers import read_cluster, read_model
from hetsched.readers.measurements import read_measurements
from hetsched.workload import TrainingJob

PROFILES = Path(__file__).parents[2] / "cluster_specs" / "profiles"
TIMES, CURVES = PROFILES / "training_profiles.json", PROFILES / "training_network.json"
NAMES = tuple(f"a/{k}" for k in range(8))
NODES = """
  - {name: a, gpu: Titan-RTX, count: 8}
  - {name: b, gpu: RTX-2080, count: 8}
  - {name: c, gpu: RTX-3090, count: 8}
"""


def cluster_of(folder: Path, network: str = "") -> Cluster:
    path = folder / "cluster.yaml"
    path.write_text(f"name: mixed\nnodes:{NODES}{network}profiles: [{TIMES}, {CURVES}]\n", encoding="utf-8")
    return read_cluster(path)


def job(size: int, dtype: str = "fp32", seq_len: int = 2048) -> TrainingJob:
    return TrainingJob(64, seq_len, size, dtype)


def test_times_as_they_stand_and_between_them(tmp_path: Path) -> None:
    cluster, model = cluster_of(tmp_path), read_model("opt-350m-s")
    team = team_of(cluster, ("a/0", "a/1", "a/2", "a/3"))
    measured = worker_of(cluster, team, model, job(4)).measured
    assert measured is not None
    assert (measured.block.forward_s, measured.block.backward_s, measured.block.update_s) == (
        0.029579,
        0.042303,
        0.002349,
    )
    between = worker_of(cluster, team, model, job(6)).measured
    assert between is not None
    assert between.block.forward_s == pytest.approx((0.029579 + 0.058463) / 2)
    assert between.head.backward_s == pytest.approx((0.038751 + 0.082018) / 2)
    for other in (job(4, "bf16"), job(4, seq_len=1024)):  # of another shape
        assert worker_of(cluster, team, model, other).measured is None


def test_beyond_the_sizes_times_go_on_and_a_note_says_so(tmp_path: Path) -> None:
    """Twice the largest micro-batch takes twice as long, but one update."""
    cluster, model = cluster_of(tmp_path), read_model("opt-350m-s")
    team = team_of(cluster, ("a/0", "a/1", "a/2", "a/3"))
    largest, beyond = (worker_of(cluster, team, model, job(size)).measured for size in (32, 64))
    assert largest is not None
    assert beyond is not None
    for part in ("embedding", "block", "head"):
        last, more = getattr(largest, part), getattr(beyond, part)
        assert (more.forward_s, more.backward_s, more.update_s) == (
            2 * last.forward_s,
            2 * last.backward_s,
            last.update_s,
        )
    assert notes_of(cluster, model, job(32), team.size) == ()
    assert notes_of(cluster, model, job(64), team.size) == (
        "Titan-RTX-24GB at TP 4: micro-batches of 64 were not measured, times go on from the nearest that were",
    )


def test_a_degree_that_was_not_measured_is_as_efficient_as_the_nearest(tmp_path: Path) -> None:
    """Three GPUs take two thirds of what two were measured to take, and talk besides."""
    cluster, model = cluster_of(tmp_path), read_model("opt-350m-s")
    two, three = (worker_of(cluster, team_of(cluster, names), model, job(8)) for names in (NAMES[:2], NAMES[:3]))
    assert three.measured is None
    assert three.all_reduce_s > 0.0
    works = [stage_work(w, model, job(8), (1, 2), False) for w in (two, replace(three, all_reduce_s=0.0))]
    seconds = [work.forward_s + work.backward_s for work in works]
    assert seconds[1] == pytest.approx(seconds[0] * 2 / 3 + 3 * BLOCK_OVERHEAD_S)
    assert notes_of(cluster, model, job(8), 3) == (
        "Titan-RTX-24GB at TP 3 was not measured: the efficiency is that of the nearest degree that was",
    )


def test_profiles_of_another_shape_are_not_silent(tmp_path: Path) -> None:
    cluster, model = cluster_of(tmp_path), read_model("opt-350m-s")
    notes = notes_of(cluster, model, job(4, "bf16", seq_len=1024), 2)
    assert notes == (
        "speed of Titan-RTX-24GB is from the data sheet at a default efficiency, not measured",
        "the profiles of Titan-RTX-24GB are of another shape: seq_len 2048 (here 1024), dtype fp32 (here bf16)",
    )


def notes_of(cluster: Cluster, model: ModelSpec, work: TrainingJob, degree: int) -> tuple[str, ...]:
    """Of a plan of one stage on that many GPUs of the first node."""
    stage = Stage((0, model.num_layers), tuple(f"a/{k}" for k in range(degree)))
    plan = Plan(model, work, (Pipeline("p0", (stage,), work.global_batch // work.micro_batch),))
    return Roofline().price(cluster, plan).notes


def test_a_model_of_the_same_shape_has_the_same_times(tmp_path: Path) -> None:
    """Whatever its name and its number of blocks."""
    cluster, model = cluster_of(tmp_path), read_model("opt-350m-s")
    fields = {key: value for key, value in model.to_json().items() if key != "name"}
    other = type(model).from_json({**fields, "name": "mine", "num_layers": 7})
    team = team_of(cluster, ("c/0", "c/1"))
    assert worker_of(cluster, team, other, job(1)).measured is not None


def test_curves_give_links_where_the_file_has_none(tmp_path: Path) -> None:
    """c2 gigabytes a second at 1 MB, and what 8 pairs get together."""
    cluster = cluster_of(tmp_path)
    assert cluster.between_bytes_per_s(0, 1, 4, 1e6) == pytest.approx(2.8183e9, rel=1e-4)
    assert cluster.between_bytes_per_s(0, 1, 3, 1e6) == cluster.between_bytes_per_s(0, 1, 4, 1e6)
    assert cluster.between_bytes_per_s(2, 0, 8, 1e9) < 0.116e9
    assert cluster.inside_bytes_per_s(2, 8, 1e6) == pytest.approx(4.332e9, rel=1e-4)
    assert not [note for note in cluster.notes if "link inside a node" in note]


def test_a_measured_curve_wins_over_tables_and_links(tmp_path: Path) -> None:
    tables = "network:\n  between_nodes: [{a: a, b: b, bandwidth_gbps: 100, latency_ms: 7}]\n"
    cluster = cluster_of(tmp_path, tables)
    latency, bandwidth = cluster.links([0], [8])
    assert (latency[0, 0], bandwidth[0, 0]) == (0.007, pytest.approx(0.1148e9, rel=1e-2))
    pipeline = Pipeline("p0", (Stage((0, 12), ("a/0",)), Stage((12, 24), ("b/0",))), 1)
    plan = Plan(read_model("opt-350m-s"), TrainingJob(1, 2048, 1, "fp32"), (pipeline,))
    hop = place(cluster, plan).hops(0)[0]
    assert hop.forward_latency_s == 0.007
    message = 2048 * 1024 * 4  # bytes: the curve is read at the size of what is sent
    assert hop.forward_occupied_s == pytest.approx(message / cluster.between_bytes_per_s(0, 1, 1, message))


def test_a_curve_is_kept_where_it_is_physical() -> None:
    """Clamped below 1 MB, at its top, and at the largest measured."""
    curve = BandwidthCurve((-0.25, 3.0, 11.0), 19e9)
    assert curve.bytes_per_s(1.0) == curve.bytes_per_s(1e6) == 11e9
    assert curve.bytes_per_s(4e6) == pytest.approx((-1 + 6 + 11) * 1e9)
    assert curve.bytes_per_s(64e6) == curve.bytes_per_s(1e12) == 19e9
    assert BandwidthCurve((-0.25, 3.0, 11.0), 99e9).bytes_per_s(1e12) == 20e9
    times = [size / curve.bytes_per_s(size) for size in (1e5, 1e6, 3e6, 1e7, 1e8, 1e9, 1e10)]
    assert times == sorted(times)


def damaged(change: Callable[[Any], object], base: Path) -> str:
    document = json.loads(base.read_text(encoding="utf-8"))
    document["profiles" if base is TIMES else "curves"] = document["profiles" if base is TIMES else "curves"][:3]
    change(document)
    return json.dumps(document)


BAD: dict[str, tuple[str, str]] = {
    "neither": ("{}", "holds neither training times"),
    "not json": ("[1,", "line 1 column"),
    "an unknown model": (damaged(lambda d: d["profiles"][0].update(model="x"), TIMES), "model 'x' is not under"),
    "two times": (damaged(lambda d: d["profiles"][0].update(block_s=[1, 2]), TIMES), "expected three"),
    "milliseconds": (damaged(lambda d: d["profiles"][0].update(block_s=[1, 2, 5e5]), TIMES), "are they milliseconds"),
    "a negative time": (damaged(lambda d: d["profiles"][0].update(head_s=[1, -2, 5]), TIMES), "expected seconds"),
    "twice": (damaged(lambda d: d["profiles"].append(d["profiles"][0]), TIMES), "stands there twice"),
    "no micro-batch": (damaged(lambda d: d["profiles"][0].pop("micro_batch"), TIMES), "`micro_batch` is missing"),
    "a dtype": (damaged(lambda d: d["models"]["opt-350m-s"].update(dtype="fp8"), TIMES), "use one of: bf16"),
    "a scope": (damaged(lambda d: d["curves"][0].update(scope="x"), CURVES), "inside a node"),
    "two numbers": (damaged(lambda d: d["curves"][0].update(coeffs=[1, 2]), CURVES), "expected three numbers"),
    "a curve below nothing": (damaged(lambda d: d["curves"][0].update(coeffs=[1, 2, -3]), CURVES), "at 1 MB"),
    "no largest": (damaged(lambda d: d["curves"][0].update(max_bytes_per_s=0), CURVES), "greater than 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    text, fragment = BAD[name]
    path = tmp_path / "measured.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(HetschedError) as caught:
        read_measurements(path)
    assert fragment in f"{caught.value.message} {caught.value.hint}"
    assert "measured.json" in caught.value.message
