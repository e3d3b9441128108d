"""How commands print and where they write: stdout for results, stderr for progress, files only when all went well."""

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetsched.errors import HetschedError

if TYPE_CHECKING:
    from hetsched.search import Progress

PROGRESS_AFTER_S = 1.0
PROGRESS_EVERY_S = 0.2
ASCII = str.maketrans({"×": "x", "→": ">", "█": "#", "–": "-", "…": "...", "·": "."})


def say(text: str) -> None:
    """Print text on stdout, in plainer characters where the terminal's encoding lacks them."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    click.echo(text)


def say_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(_finite(document), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same document with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def heading(text: str) -> str:
    """Bold, where it goes to a terminal."""
    return click.style(text, bold=True)


def check_writable(path: Path, *inputs: Path) -> None:
    """HetschedError where `path` can't be written later, or is an input; called before long work, leaves no trace."""
    if str(path) == "-":
        raise HetschedError("-o - names no file", hint="print the plan on stdout with --json")
    try:
        if path.exists() and not path.is_file():
            what = "a directory" if path.is_dir() else "not a regular file"
            raise HetschedError(f"{path} can't be written: it is {what}", hint="name a file, e.g. plan.json")
        if any(given.exists() and path.exists() and path.samefile(given) for given in inputs):
            raise HetschedError(f"{path} is an input of this command", hint="name another file, e.g. plan.json")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except ValueError as error:
        raise HetschedError(f"{str(path)!r} can't be written: {error}", hint="name a file, e.g. plan.json") from None
    except OSError as error:
        raise HetschedError(f"{path} can't be written: {error.strerror}", hint="does its folder exist?") from None


class ProgressLine:
    """One line on stderr that is rewritten while something lasts; nothing where stderr is no terminal."""

    def __init__(self, label: str, quiet: bool = False, parts: str = "passes") -> None:
        self.label, self.parts = label, parts
        self._on = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._next = time.monotonic() + PROGRESS_AFTER_S
        self._shown = 0

    def __call__(self, progress: "Progress") -> None:
        """Told of each candidate by the search."""
        if self._due():
            best = progress.best
            found = "nothing fits yet"
            if best is not None and best.cost.feasible:
                found = f"best {best.cost.iteration_s:.3g} s an iteration"
            self._show(f"{progress.seconds:.0f} s, {progress.steps} steps, {found}")

    def part(self, done: int, total: int) -> None:
        """Told how much of something is done."""
        if self._due():
            self._show(f"{done / total:.0%} of {total:,} {self.parts}")

    def _due(self) -> bool:
        if not self._on or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + PROGRESS_EVERY_S
        return True

    def _show(self, text: str) -> None:
        line = f"{self.label}: {text}"[:79]
        click.echo("\r" + line.ljust(self._shown), nl=False, err=True)
        self._shown = len(line)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            click.echo("\r" + " " * self._shown + "\r", nl=False, err=True)
            self._shown = 0

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
