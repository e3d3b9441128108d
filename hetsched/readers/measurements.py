"""Measured profiles: JSON files of times by GPU kind, TP degree and micro-batch, and of bandwidth by message size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetsched.catalog.gpus import known_gpu
from hetsched.errors import HetschedError
from hetsched.fields import Fields, describe
from hetsched.files import read_text
from hetsched.profiles import (
    BandwidthCurve,
    BandwidthCurves,
    Measurements,
    ModelShape,
    PartTimes,
    PassTimes,
    TrainingProfile,
)
from hetsched.readers.json_text import load_json
from hetsched.readers.serving_profiles import read_serving_profiles
from hetsched.units import DTYPE_BYTES

MAX_BYTES = 64 * 2**20
LONGEST_S = 1e4
SCOPES = ("inside a node", "between nodes")


def read_measurements(path: Path) -> Measurements:
    """What one file of measurements holds: training or serving times, bandwidth curves, or several.

    The forms are those of plans/README.md. Raises HetschedError that names the file, the entry and the key.
    """
    source = Fields(load_json(read_text(path, "measured profile", MAX_BYTES), path.name), path.name)
    source.skip("source", "licence", "fields")
    found = False
    if isinstance(source.data.get("profiles"), Mapping):
        serving = read_serving_profiles(source)
        source.finish()
        return Measurements(serving=serving)
    source.skip("what")
    training: dict[tuple[ModelShape, str, int], TrainingProfile] = {}
    curves = BandwidthCurves()
    if "models" in source:
        training, found = _training(source), True
    if "curves" in source:
        curves, found = _curves(source), True
    if not found:
        raise HetschedError(
            f"{path.name}: holds neither training times (`models` and `profiles`) nor serving times (`profiles`) nor "
            "bandwidth `curves`",
            hint="is it a file of measurements? plans/README.md describes the forms",
        )
    source.finish()
    return Measurements(training, curves)


def _training(source: Fields) -> dict[tuple[ModelShape, str, int], TrainingProfile]:
    models = source.child("models")
    shapes = {name: _shape(models.child(name)) for name in models.data}
    points: dict[tuple[ModelShape, str, int], dict[int, PartTimes]] = {}
    for entry in source.children("profiles"):
        name = entry.text("model")
        if name not in shapes:
            raise HetschedError(
                f"{entry.at('model')} {name!r} is not under `models`", hint=f"there are: {', '.join(shapes)}"
            )
        key = shapes[name], _kind(entry, "gpu"), entry.integer("tp", maximum=1024)
        size = entry.integer("micro_batch", maximum=10**6)
        if size in points.setdefault(key, {}):
            raise HetschedError(
                f"{entry.where}: {name}, {key[1]}, TP {key[2]}, micro-batch {size} stands there twice", hint="keep one"
            )
        points[key][size] = PartTimes(*(_times(entry, part) for part in ("embedding_s", "block_s", "head_s")))
        entry.finish()
    return {key: TrainingProfile(times) for key, times in points.items()}


def _shape(entry: Fields) -> ModelShape:
    def size(key: str) -> int:
        return entry.integer(key, maximum=10**8)

    shape = ModelShape(
        hidden_size=size("hidden_size"),
        num_heads=size("num_heads"),
        ffn_size=size("ffn_size"),
        vocab_size=size("vocab_size"),
        seq_len=size("seq_len"),
        dtype=entry.choice("dtype", list(DTYPE_BYTES)),
    )
    entry.skip("num_layers")
    entry.finish()
    return shape


def _times(entry: Fields, key: str) -> PassTimes:
    values = entry.sequence(key)
    if len(values) != len(("forward", "backward", "update")):
        raise HetschedError(
            f"{entry.at(key)} is {describe(values)}, expected three", hint="[forward, backward, optimiser update]"
        )
    return PassTimes(*(_seconds(value, entry.at(key)) for value in values))


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= LONGEST_S:
        raise HetschedError(
            f"{where} holds {describe(value)}, expected seconds from 0 to {LONGEST_S:g}", hint="are they milliseconds?"
        )
    return float(value)


def _curves(source: Fields) -> BandwidthCurves:
    inside: dict[tuple[str, int], BandwidthCurve] = {}
    between: dict[tuple[str, str, int], BandwidthCurve] = {}
    for entry in source.children("curves"):
        scope, kind = entry.choice("scope", SCOPES), _kind(entry, "gpu")
        gpus = entry.integer("gpus", maximum=1024)
        curve = _curve(entry)
        if scope == SCOPES[0]:
            inside[kind, gpus] = curve
        else:
            peer = _kind(entry, "peer")
            between[kind, peer, gpus] = curve
            between.setdefault((peer, kind, gpus), curve)
        entry.finish()
    return BandwidthCurves(inside, between)


def _curve(entry: Fields) -> BandwidthCurve:
    values = entry.sequence("coeffs")
    if len(values) != 3 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        raise HetschedError(f"{entry.at('coeffs')} is {values}, expected three numbers", hint="[c0, c1, c2]")
    most = entry.number("max_bytes_per_s", above=0.0, maximum=1e15)
    curve = BandwidthCurve((float(values[0]), float(values[1]), float(values[2])), most)
    if curve.bytes_per_s(0.0) <= 0.0:
        raise HetschedError(
            f"{entry.where}: the curve gives {curve.bytes_per_s(0.0):.3g} bytes/s at 1 MB",
            hint="c2 is the bandwidth at 1 MB, in GB/s",
        )
    return curve


def _kind(entry: Fields, key: str) -> str:
    """The catalogue's name of a GPU, or the file's where the catalogue has none."""
    name = entry.text(key)
    gpu = known_gpu(name)
    return name if gpu is None else gpu.kind
