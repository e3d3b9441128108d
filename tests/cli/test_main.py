"""What holds for the whole command line, some of it in a process of its own."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hetsched import __version__
from hetsched.cli import main
from hetsched.cli.group import ErrorsAsMessages, warnings_on_stderr
from hetsched.cli.output import ProgressLine
from hetsched.errors import HetschedWarning
from hetsched.search import Progress

Cli = Callable[..., Result]
HEAVY = ("torch", "ortools", "networkx", "scipy.optimize")


def run(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from hetsched.cli import main
main(["--help"], standalone_mode=False)
print("loaded:", [name for name in {(*HEAVY, "numpy")!r} if name in sys.modules])
"""
    done = run(code)
    assert "Commands:" in done.stdout
    assert "loaded: []" in done.stdout, done.stdout


def test_planning_loads_no_torch(specs: Path) -> None:
    words = ["plan-train", str(specs / "home-office.yaml"), "--model", "gpt2", "--solver", "random", "--max-steps", "1"]
    planning = f"from hetsched.cli import main; main({words!r}, standalone_mode=False)"
    code = f"import sys\n{planning}\nprint('torch' in sys.modules)"
    assert run(code).stdout.endswith("False\n")


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"hetsched, version {__version__}\n"


def test_a_reader_that_goes_away_is_no_error(specs: Path) -> None:
    command = f"{sys.executable} -c 'from hetsched.cli import main; main()' gpus | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.stderr == ""


def test_output_for_a_terminal_that_knows_ascii_only(specs: Path) -> None:
    words = ["plan-train", str(specs / "home-office.yaml"), "--model", "gpt2", "--solver", "random", "--max-steps", "1"]
    done = run(f"from hetsched.cli import main; main({words!r})", env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert "#" in done.stdout
    assert "?" not in done.stdout


def test_no_colour_where_nobody_sees_it(cli: Cli, home: tuple[object, ...]) -> None:
    assert "\x1b" not in cli(*home).stdout


def test_no_color_is_respected(home: tuple[object, ...]) -> None:
    words = [str(word) for word in home]
    assert "\x1b[1m" in CliRunner().invoke(main, words, color=True).stdout
    assert "\x1b" not in CliRunner(env={"NO_COLOR": "1"}).invoke(main, words, color=True).stdout


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_the_file_alone(specs: Path, tmp_path: Path, name: str, code: int) -> None:
    path = tmp_path / "plan.json"
    path.write_text("precious")
    words = ["plan-train", str(specs / "dtfm-worldwide.yaml"), "--model", "gpt3-xl", "--solver", "random"]
    words += ["--max-seconds", "60", "-o", str(path)]
    program = f"""
import os, signal, sys, threading, time
from hetsched.cli import main

def interrupt():
    while "hetsched.report.training_table" not in sys.modules:  # the command's last import: the search comes next
        time.sleep(0.05)
    time.sleep(1)
    os.kill(os.getpid(), signal.{name})

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may be told to ignore it
threading.Thread(target=interrupt).start()
main({words!r})
"""
    done = run(program)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip() == ("interrupted" if name == "SIGINT" else "")
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 1, "out of memory"),
        (RecursionError(), 1, "nested too deeply"),
        (PermissionError(13, "Permission denied", "x.yaml"), 1, "error: x.yaml: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_machine_or_a_person_stops(error: BaseException, code: int, said: str) -> None:
    group = ErrorsAsMessages("group")

    @group.command("fail")
    def fail() -> None:
        raise error

    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_our_own_mistakes_are_not_hidden() -> None:
    group = ErrorsAsMessages("group")

    @group.command("fail")
    def fail() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, ZeroDivisionError)


def test_warnings_are_shown_once_and_everything_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    show, filters = warnings.showwarning, list(warnings.filters)
    with warnings_on_stderr():
        for _ in range(2):
            warnings.warn("odd", HetschedWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: odd\n"
    assert warnings.showwarning is show
    assert list(warnings.filters) == filters


def test_progress_is_one_line_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressLine("auto") as watch:
        watch(Progress(1, 0.5, 0, None))
        assert capsys.readouterr().err == ""
        now[0] = 1.1
        watch(Progress(20, 1.1, 0, None))
        watch(Progress(21, 1.1, 0, None))
        line = capsys.readouterr().err
        assert line == "\rauto: 1 s, 20 steps, nothing fits yet"
    assert capsys.readouterr().err == "\r" + " " * (len(line) - 1) + "\r"


def test_no_progress_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ProgressLine("auto")
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    watch(Progress(1, 5.0, 0, None))
    assert capsys.readouterr().err == ""


def test_every_short_help_fits_its_line() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert "..." not in result.stdout.partition("Commands:")[2]
