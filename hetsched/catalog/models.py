"""Models by name."""

from functools import cache
from typing import Any

from hetsched.catalog.data import load
from hetsched.model import ModelSpec


def find_model(name: str) -> ModelSpec | None:
    """The model of that name, in any case; None where the catalogue has none."""
    ours = _spellings().get(name.strip().lower())
    return None if ours is None else _model(ours)


def model_names() -> tuple[str, ...]:
    """The names in the catalogue."""
    return tuple(load("models.yaml")["models"])


@cache
def _spellings() -> dict[str, str]:
    models = load("models.yaml")["models"]
    return {spelling.lower(): name for name, entry in models.items() for spelling in (name, *entry.get("names", ()))}


@cache
def _model(name: str) -> ModelSpec:
    return ModelSpec.from_json({"name": name, **_shape(name)}, f"models.yaml: {name}")


def _shape(name: str) -> dict[str, Any]:
    """An entry's fields over those of the entry it is like; what belongs to one entry alone is not handed on."""
    entry = dict(load("models.yaml")["models"][name])
    base = _shape(entry.pop("like")) if "like" in entry else {}
    for key in ("source", "names"):
        entry.pop(key, None)
    return {**base, **entry}
