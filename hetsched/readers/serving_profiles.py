"""Measured serving profiles: seconds of one block by tokens of prompts and by sequences, for each type of machine."""

import re
from itertools import pairwise
from typing import Any

from hetsched.catalog.gpus import known_gpu
from hetsched.catalog.models import find_model, model_names
from hetsched.errors import HetschedError
from hetsched.fields import Fields, describe
from hetsched.model import ModelSpec
from hetsched.profiles import ServingProfile, ServingShape
from hetsched.units import BYTES_PER_GB

LONGEST_S = 100.0  # of one block
MOST = 10**8  # tokens, or sequences
_NUMBER_OF_GPUS = re.compile(r"(.+?)x\d+")  # L4x2: two L4


def read_serving_profiles(source: Fields) -> dict[tuple[ServingShape, str, int], ServingProfile]:
    """The profiles of a file, {(shape, GPU kind, TP degree): profile}.

    The model is named by `model`, or in the text of `what`. A machine type's GPUs work in tensor parallel; its name is
    a GPU's, told apart by its memory where need be. Raises HetschedError that names the place.
    """
    shape = ServingShape.of(_model(source))
    profiles = source.child("profiles")
    found: dict[tuple[ServingShape, str, int], ServingProfile] = {}
    for name in profiles.data:
        entry = profiles.child(name)
        gpus = entry.integer("gpus_in_node", 1, maximum=1024)
        memory = entry.number("vram_bytes", 0.0, maximum=1e15) / gpus if "vram_bytes" in entry else 0.0
        profile = ServingProfile(_table(entry, "prompt_block_s_by_tokens"), _table(entry, "decode_block_s_by_batch"))
        entry.skip("max_blocks")
        entry.finish()
        found[shape, _kind(name, memory), gpus] = profile
    return found


def _model(source: Fields) -> ModelSpec:
    what = source.text("what", "")
    if "model" in source:
        named = source.text("model")
        model = find_model(named)
        if model is None:
            raise HetschedError(f"{source.at('model')}: no model in the catalogue is named {named!r}")
        return model
    lower = what.lower()
    mentioned = [name for name in model_names() if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", lower)]
    model = find_model(mentioned[0]) if len(mentioned) == 1 else None
    if model is None:
        raise HetschedError(
            f"{source.where}: which model was measured?", hint='name one of the catalogue: "model": "llama-2-70b"'
        )
    return model


def _kind(name: str, memory_bytes: float) -> str:
    """The catalogue's name of a machine type's GPU, or the file's where the catalogue has none."""
    match = _NUMBER_OF_GPUS.fullmatch(name)
    plain = match[1] if match else name
    gpu = known_gpu(f"{plain}-{round(memory_bytes / BYTES_PER_GB)}GB") or known_gpu(plain)
    return plain if gpu is None else gpu.kind


def _table(entry: Fields, key: str) -> dict[int, float]:
    """{number: seconds}, at least two, from nothing on."""
    table: dict[int, float] = {}
    for number, value in entry.child(key).data.items():
        if not re.fullmatch(r"\d{1,9}", number) or int(number) > MOST:
            raise HetschedError(f"{entry.at(key)} has the key {number!r}", hint="whole numbers of tokens or sequences")
        table[int(number)] = _seconds(value, f"{entry.at(key)}.{number}")
    table[0] = 0.0
    if len(table) < 2:
        raise HetschedError(f"{entry.at(key)} holds no times")
    ordered = dict(sorted(table.items()))
    if any(value <= 0.0 for number, value in ordered.items() if number):
        raise HetschedError(f"{entry.at(key)} holds a time of 0 s for some work")
    if not any(later > sooner for sooner, later in pairwise(ordered.values())):
        raise HetschedError(f"{entry.at(key)}: more work never takes longer")
    return ordered


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= LONGEST_S:
        raise HetschedError(
            f"{where} is {describe(value)}, expected seconds from 0 to {LONGEST_S:g}", hint="are they milliseconds?"
        )
    return float(value)
