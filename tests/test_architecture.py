"""Imports run one way, files stay short, and only the command line prints. Read from the sources, with `ast`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hetsched"
LONGEST_FILE = 350
LONGEST_TEST = 400  # some are tables of cases

FIRST = {"__init__", "errors", "units"}
BASE = FIRST | {"fields", "files"}
SHAPES = BASE | {"cluster", "model", "precision", "profiles", "requests", "workload"}
PLAN = SHAPES | {"plan"}
COST = PLAN | {"cost"}
SOLVERS = COST | {"problem", "serving_problem", "algorithms", "solvers"}
SEARCH = SOLVERS | {"bound", "search"}
# What each part of the package may import of it (a part is a module or a folder, and may always import itself).
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "units": set(),
    "fields": FIRST,
    "files": FIRST,
    "cluster": BASE | {"profiles"},
    "model": BASE,
    "precision": BASE,
    "requests": BASE | {"workload"},
    "profiles": BASE | {"model", "workload"},
    "workload": BASE,
    "plan": SHAPES,
    "problem": PLAN,
    "serving_problem": PLAN,
    "budget": SHAPES | {"algorithms"},
    "catalog": SHAPES,
    "readers": PLAN | {"catalog"},
    "algorithms": set(),
    "cost": PLAN | {"algorithms"},
    "simulate": COST,
    "serving": (SOLVERS - {"problem"}) | {"budget", "simulate"},
    "bound": COST | {"problem", "algorithms"},
    "solvers": SOLVERS | {"simulate"},
    "infeasible": COST | {"catalog", "problem"},
    "search": SOLVERS | {"bound", "infeasible"},
    "finish": SEARCH | {"simulate"},
    "exporters": PLAN,
    "executor": PLAN,
    "report": COST | {"simulate"},
    "cli": SEARCH
    | {"budget", "finish", "catalog", "readers", "exporters", "executor", "report", "serving", "simulate"},
}
# Who may import what is heavy, or is for one purpose.
RESERVED = {
    "torch": {"executor"},
    "click": {"cli"},
    "yaml": {"catalog", "readers"},
    "networkx": {"algorithms"},
    "ortools": {"algorithms"},
}
ALGORITHMS_MAY_USE = {"numpy", "scipy", "networkx", "ortools"}


def part_of(module: str) -> str:
    """The part of the package a dotted name belongs to: `hetsched.cost.base` is of `cost`."""
    return [*module.split("."), "__init__"][1]


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "hetsched.relative-import"
            elif node.module == "hetsched":
                for alias in node.names:
                    is_part = alias.name in ALLOWED
                    yield node.lineno, f"hetsched.{alias.name}" if is_part else "hetsched"
            else:
                yield node.lineno, node.module or ""


def breaches(part: str, source: str) -> list[str]:
    """What a file of `part` imports and must not."""
    found = []
    for line, name in imports(source):
        top = name.partition(".")[0]
        if top == "hetsched":
            wrong = part_of(name) != part and part_of(name) not in ALLOWED.get(part, set())
        elif part == "algorithms":
            wrong = top not in ALGORITHMS_MAY_USE and top not in sys.stdlib_module_names
        else:
            wrong = part not in RESERVED.get(top, {part})
        if wrong:
            found.append(f"line {line}: {part} imports {name}")
    return found


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=named)
def test_imports_run_one_way(path: Path) -> None:
    assert part(path) in ALLOWED, f"say above what {part(path)} may import"
    assert breaches(part(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("plan", "from hetsched.cost import COST_MODELS"),
        ("exporters", "def f():\n    from hetsched.search import solve"),
        ("executor", "import hetsched.readers.plan_file"),
        ("cost", "import torch"),
        ("solvers", "from hetsched.cli import main"),
        ("solvers", "from hetsched import search"),
        ("search", "from hetsched.cli.output import say"),
        ("report", "import click"),
        ("algorithms", "from hetsched.errors import HetschedError"),
        ("algorithms", "import pandas"),
        ("algorithms", "from torch import nn"),
        ("readers", "from . import plan_file"),
        ("a_new_part", "from hetsched.plan import Plan"),
    ],
)
def test_the_checker_sees_breaches(where: str, source: str) -> None:
    assert len(breaches(where, source)) == 1


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("executor", "import torch.distributed as dist"),
        ("algorithms", "import math\nfrom scipy.optimize import milp"),
        ("cli", "from hetsched.solvers import SOLVERS"),
        ("finish", "from hetsched import __version__"),
        ("cost", "from hetsched.cost.base import Cost"),
    ],
)
def test_the_checker_lets_the_rest_pass(where: str, source: str) -> None:
    assert breaches(where, source) == []


def test_no_part_imports_in_a_circle() -> None:
    for name, may in ALLOWED.items():
        for other in may - {name}:
            assert name not in ALLOWED[other], f"{name} and {other} may import each other"
    assert set().union(*ALLOWED.values()) <= ALLOWED.keys()


@pytest.mark.parametrize("path", [*sources(), *sorted((ROOT / "tests").rglob("*.py"))], ids=named)
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (LONGEST_FILE if PACKAGE in path.parents else LONGEST_TEST), f"{lines} lines: is it one idea?"


@pytest.mark.parametrize("path", sources(), ids=named)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if part(path) == "cli" or path.name == "__main__.py":
        return
    called = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = {func.id for func in called if isinstance(func, ast.Name)}
    assert not names & {"print", "exit", "quit", "eval", "exec"}
    assert not any(isinstance(func, ast.Attribute) and ast.unparse(func) == "sys.exit" for func in called)
