"""What every command shares: errors and warnings become one or two lines on stderr, and an exit code."""

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from hetsched.errors import HetschedError, HetschedWarning

INTERRUPTED, TERMINATED = 130, 143  # as shells say of a program that Ctrl-C, or SIGTERM, ended


class ErrorsAsMessages(click.Group):
    """A group that never shows a person a traceback for what the person can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exits 1 for wrong input, 3 where no plan is feasible, 130 on Ctrl-C."""
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        with warnings_on_stderr(), ending_when_told():
            try:
                return super().invoke(ctx)
            except HetschedError as error:
                message, hint, code = error.message, error.hint, error.exit_code
            except KeyboardInterrupt:
                click.echo("\ninterrupted", err=True)
                raise click.exceptions.Exit(INTERRUPTED) from None
            except MemoryError:
                message, hint, code = "this machine is out of memory", "plan a smaller cluster or part of it", 1
            except RecursionError:
                message, hint, code = "a file is nested too deeply", "is it the right file?", 1
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise  # click ends quietly where the reader of a pipe has gone
                where = f"{error.filename}: " if error.filename else ""
                message, hint, code = f"{where}{error.strerror or error}", "", 1
        show("error", message, hint)
        raise click.exceptions.Exit(code)


def show(label: str, message: str, hint: str = "") -> None:
    """`label: message` on stderr, and the hint under it."""
    colour = "red" if label == "error" else "yellow"
    click.echo(f"{click.style(f'{label}:', fg=colour, bold=True)} {message}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', bold=True)} {hint}", err=True)


@contextmanager
def ending_when_told() -> Iterator[None]:
    """End on SIGTERM as on an error: what was begun (ranks, folders of a run) is put away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show each HetschedWarning once, as `warning: ...`; others as Python does. Everything is put back afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", HetschedWarning)
        usual, shown = warnings.showwarning, set[str]()

        def show_warning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, HetschedWarning):
                usual(message, category, filename, lineno, file, line)
            elif str(message) not in shown:
                shown.add(str(message))
                show("warning", str(message))

        warnings.showwarning = show_warning
        yield
