"""Plan files: JSON, written by hetsched or by hand."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hetsched.errors import HetschedError
from hetsched.fields import Fields, describe
from hetsched.files import read_text, write_text
from hetsched.plan import FORMAT, AnyPlan, Plan, ServingPlan, check_format
from hetsched.readers.json_text import load_json
from hetsched.readers.model_config import resolve_model

MAX_PLAN_BYTES = 64 * 2**20
ANY_PLAN = "plan: "  # how its own checks begin


def read_plan(path: Path) -> Plan:
    """The training plan in a file; its `model` may be a catalogue name, our fields or the keys of a config.json.

    Raises HetschedError that names the file and the place, also where it is a serving plan.
    """
    with _naming(path):
        return Plan.from_json(_document(path), path.name)


def read_serving_plan(path: Path) -> ServingPlan:
    """The serving plan in a file, likewise."""
    with _naming(path):
        return ServingPlan.from_json(_document(path), path.name)


def read_any_plan(path: Path) -> AnyPlan:
    """The plan in a file, of whichever kind it says it is."""
    data = _document(path)
    source = Fields(data, path.name)
    check_format(source)
    kind = source.choice("kind", ("train", "serve"))
    with _naming(path):
        return (ServingPlan if kind == "serve" else Plan).from_json(data, path.name)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Has errors about the plan as a whole name the file it came from."""
    try:
        yield
    except HetschedError as error:
        if error.message.startswith(ANY_PLAN):
            raise HetschedError(f"{path.name}: {error.message.removeprefix(ANY_PLAN)}", error.hint) from None
        raise


def _document(path: Path) -> dict[str, Any]:
    data = load_json(read_text(path, "plan", MAX_PLAN_BYTES), path.name)
    if not isinstance(data, dict):
        raise HetschedError(
            f"{path.name}: the file holds {describe(data)}, expected a plan",
            hint=f'a plan is a mapping that starts with "format": "{FORMAT}"',
        )
    if data.get("format") == FORMAT and data.get("model") is not None:
        data = {**data, "model": resolve_model(data["model"], f"{path.name}: model").to_json()}
    return data


def write_plan(plan: AnyPlan, path: Path) -> None:
    """Write the plan, whole or not at all. Raises HetschedError where the path can't be written."""
    write_text(path, json.dumps(plan.to_json(), indent=1, allow_nan=False) + "\n")
