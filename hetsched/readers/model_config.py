"""Models as people have them: a catalogue name, a Hugging Face config.json, or a mapping in a plan file."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hetsched.catalog import find_model, model_names
from hetsched.errors import HetschedError
from hetsched.fields import Fields
from hetsched.files import read_text
from hetsched.model import ModelSpec
from hetsched.readers.json_text import load_json
from hetsched.readers.model_families import FAMILIES

MAX_CONFIG_BYTES = 4 * 2**20


def read_model(name_or_path: str) -> ModelSpec:
    """The model of that catalogue name, or of the config.json at that path (or in that folder).

    Raises HetschedError where it is neither, or where the file does not describe a model of a known family.
    """
    known = find_model(name_or_path)
    if known is not None:
        return known
    path = Path(name_or_path)
    try:
        path = path / "config.json" if path.is_dir() else path
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise _unknown(name_or_path, "model")
    data = load_json(read_text(path, "model config", MAX_CONFIG_BYTES), path.name)
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return model_from_config(data, path.name, name)


def model_from_config(data: object, where: str, name: str = "") -> ModelSpec:
    """A model from the mapping in a config.json; `where` names the place in messages, `name` the model.

    Raises HetschedError for an unknown family, a value of the wrong type, or sizes that do not fit together. Keys of
    no meaning here (token ids, dropout) are passed over.
    """
    source = Fields(data, where)
    family = source.text("model_type")
    if family not in FAMILIES:
        raise HetschedError(
            f"{where}: model_type is {family!r}, a family this version does not know",
            hint=f"known are {', '.join(FAMILIES)}; a decoder of another family can be given by our own field names",
        )
    stated = source.text("_name_or_path", "") if isinstance(source.data.get("_name_or_path"), str) else ""
    name = name or stated.rstrip("/").rpartition("/")[2] or family
    fields = FAMILIES[family](source)
    return _build({"name": name, "family": family, **fields}, where)


def resolve_model(value: object, where: str) -> ModelSpec:
    """The `model` of a plan file: a catalogue name, our own fields, or the keys of a config.json.

    In a mapping whose `name` is in the catalogue, given fields win over the catalogue's, and what follows from a
    given field (heads' sizes, position rows) follows it. Raises HetschedError that names the place.
    """
    if isinstance(value, str):
        known = find_model(value)
        if known is None:
            raise _unknown(value, where)
        return known
    source = Fields(value, where)
    if "model_type" in source:
        return model_from_config(source.data, where, source.text("name", ""))
    given = _our_names(source.data)
    name = given.get("name")
    base = find_model(name) if isinstance(name, str) else None
    if base is not None:
        given = {**_inherited(base, given), **given, "name": base.name}
    elif "num_layers" not in given and isinstance(name, str):
        raise _unknown(name, source.at("name"))
    return _build(given, where)


def _build(fields: Mapping[str, Any], where: str) -> ModelSpec:
    """The model, with `where` in the message also where the fields are right one by one but not together."""
    try:
        return ModelSpec.from_json(fields, where)
    except HetschedError as error:
        if where in error.message:
            raise
        raise HetschedError(f"{where}: {error.message}", error.hint) from None


def _unknown(name: str, where: str) -> HetschedError:
    names = model_names()
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.5) or names
    return HetschedError(
        f"{where}: {name!r} is neither a model in the catalogue nor a file",
        hint=f"in the catalogue are {', '.join(near)}; or give the path of a config.json",
    )


_SPELLINGS = {
    "num_hidden_layers": "num_layers",
    "n_layer": "num_layers",
    "n_embd": "hidden_size",
    "num_attention_heads": "num_heads",
    "n_head": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "ffn_size",
    "ffn_dim": "ffn_size",
    "n_inner": "ffn_size",
    "max_position_embeddings": "max_positions",
    "n_positions": "max_positions",
    "tie_word_embeddings": "tied_embeddings",
    "rms_norm_eps": "norm_epsilon",
    "layer_norm_epsilon": "norm_epsilon",
    "layer_norm_eps": "norm_epsilon",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
}


def _our_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with config.json's keys under our names; a key of ours wins over its other spelling."""
    translated = {_SPELLINGS[key]: value for key, value in data.items() if key in _SPELLINGS}
    return {**translated, **{key: value for key, value in data.items() if key not in _SPELLINGS}}


def _inherited(base: ModelSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """The catalogue's fields, without those that follow from a field given differently."""
    fields = base.to_json()
    heads_change = any(given.get(key, fields[key]) != fields[key] for key in ("hidden_size", "num_heads"))
    if heads_change and base.head_dim * base.num_heads == base.hidden_size:
        del fields["head_dim"]
    if base.num_kv_heads == base.num_heads:
        del fields["num_kv_heads"]
    if given.get("hidden_size", base.hidden_size) != base.hidden_size and base.ffn_size == 4 * base.hidden_size:
        del fields["ffn_size"]
    positions = given.get("max_positions")
    if base.positions == "learned" and isinstance(positions, int) and not isinstance(positions, bool):
        fields["position_rows"] = max(positions, 1) + base.position_rows - base.max_positions
    return fields
