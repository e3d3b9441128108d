"""The catalogue's data files, read when first asked for."""

from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def load(name: str) -> dict[str, Any]:
    """The mapping in the data file `name` beside this module, e.g. `gpus.yaml`."""
    text = resources.files("hetsched.catalog").joinpath(name).read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data: dict[str, Any] = yaml.load(text, Loader=loader)  # noqa: S506 - both loaders are the safe one
    return data
