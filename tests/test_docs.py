"""What exists is documented: help with an example for each command, and every name in the README."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hetsched.cli import main
from hetsched.cost import COST_MODELS
from hetsched.exporters import EXPORTERS, SERVING_EXPORTERS
from hetsched.readers import READERS
from hetsched.solvers import SOLVERS

README = Path(__file__).parents[1] / "README.md"
COMMANDS = sorted(main.commands)


def parameters() -> Iterator[tuple[str, click.Option]]:
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield name, parameter


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    _, _, after = result.stdout.partition("Example")
    assert f"hetsched {name}" in after
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_every_option_says_what_it_does() -> None:
    silent = {f"{name} {option.opts[0]}" for name, option in parameters() if not (option.help or "").strip()}
    assert silent == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"hetsched {name}" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*SOLVERS, *EXPORTERS, *SERVING_EXPORTERS, *READERS, *COST_MODELS])
def test_every_solver_exporter_reader_and_cost_model_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README.read_text(encoding="utf-8")
