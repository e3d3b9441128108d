"""Running the command line inside this process, on the clusters that come with the project."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hetsched.cli import main

SPECS = Path(__file__).parents[2] / "cluster_specs"


@pytest.fixture
def specs() -> Path:
    """The folder of the bundled clusters."""
    return SPECS


@pytest.fixture
def cli() -> Callable[..., Result]:
    """`cli("evaluate", path, code=1)`: run hetsched, and check the exit code; nothing may end in a traceback."""

    def run(*words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def home(specs: Path) -> tuple[object, ...]:
    """A small search: its words."""
    return ("plan-train", specs / "home-office.yaml", "--model", "gpt2", "--solver", "random", "--max-steps", 4)


@pytest.fixture
def minimal() -> Callable[..., dict[str, Any]]:
    """`minimal(cluster={...})`: a plan as a person writes one, with changes."""

    def make(**changes: Any) -> dict[str, Any]:
        plan = {
            "format": "hetsched-plan/1",
            "kind": "train",
            "model": "gpt2",
            "workload": {"global_batch": 8},
            "pipelines": [
                {
                    "micro_batches": 8,
                    "stages": [
                        {"layers": [0, 5], "devices": ["office-pc/0"]},
                        {"layers": [5, 12], "devices": ["desktop/1"]},
                    ],
                }
            ],
        }
        return json.loads(json.dumps(plan | changes))  # type: ignore[no-any-return]

    return make
