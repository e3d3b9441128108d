"""What people have, as our types: one file per format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hetsched.readers.cluster_yaml import read_cluster
from hetsched.readers.model_config import read_model, resolve_model
from hetsched.readers.plan_file import read_any_plan, read_plan, read_serving_plan, write_plan
from hetsched.readers.request_trace import read_trace


def _model_config(path: Path) -> Any:
    return read_model(str(path))


READERS: dict[str, Callable[[Path], Any]] = {
    "cluster-yaml": read_cluster,
    "model-config": _model_config,
    "plan": read_any_plan,
    "request-trace": read_trace,
}

__all__ = [
    "READERS",
    "read_any_plan",
    "read_cluster",
    "read_model",
    "read_plan",
    "read_serving_plan",
    "read_trace",
    "resolve_model",
    "write_plan",
]
