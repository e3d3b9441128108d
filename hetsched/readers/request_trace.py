"""Traces of requests: CSV as the Azure Public Dataset has it, and JSON lines as Mooncake's; plain or gzip.

CSV: a header with `TIMESTAMP`, `ContextTokens` and `GeneratedTokens` in any order, a row a request. JSON lines: an
object a request with `timestamp`, `input_length` and `output_length`. A timestamp is a date and time (ISO 8601), or a
number: seconds in CSV, milliseconds in JSON lines (as in Mooncake, arXiv 2407.00079). Other columns are passed over.
"""

import csv
import gzip
import io
import json
import math
import warnings
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hetsched.errors import HetschedError, HetschedWarning
from hetsched.fields import describe
from hetsched.files import MAX_TEXT_BYTES
from hetsched.readers.json_text import unique
from hetsched.requests import Requests
from hetsched.units import SECONDS_PER_MS

MAX_TRACE_BYTES = 256 * 2**20  # unpacked
MOST_TOKENS = 10_000_000
LATEST_S = 1e10  # a number beyond that is no time in seconds
CSV_COLUMNS = ("timestamp", "contexttokens", "generatedtokens")
JSON_KEYS = ("timestamp", "input_length", "output_length")
BUNDLED = {"azure-2023-conv": "azure-2023-conv.csv.gz", "azure-2023-code": "azure-2023-code.csv.gz"}

Row = tuple[str, float, int, int]  # where it stands, seconds, prompt tokens, output tokens


def read_trace(name: str | Path, folder: Path | None = None) -> Requests:
    """The requests of a bundled trace (`BUNDLED`) or of a file; a relative path is sought in `folder` too.

    Requests without a prompt or an output are left out with a warning. Raises HetschedError with file and line.
    """
    text = str(name)
    if text in BUNDLED:
        packed = resources.files("hetsched.catalog").joinpath("traces", BUNDLED[text]).read_bytes()
        return _requests(_csv_rows(_unpacked(packed, text), text), text)
    path = Path(name)
    beside = None if folder is None else folder / path
    if beside is not None and not path.is_file() and beside.is_file():
        path = beside
    content = _unpacked(_bytes(path), path.name)
    rows = _json_rows if content.lstrip("\ufeff \t\r\n").startswith(("{", "[")) else _csv_rows
    return _requests(rows(content, path.name), path.name)


def _bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise HetschedError(f"trace {path} is a directory", hint="name a file")
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise HetschedError(
                f"trace {path} has {size} bytes, more than the {MAX_TEXT_BYTES} read here", hint="cut it, or gzip it"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise HetschedError(
            f"trace {path} does not exist", hint=f"give a file, or one of: {', '.join(BUNDLED)}"
        ) from None
    except OSError as error:
        raise HetschedError(f"trace {path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise HetschedError(f"trace {str(path)!r} can't be read: {error}") from None


def _unpacked(data: bytes, where: str) -> str:
    try:
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(MAX_TRACE_BYTES + 1)
            if len(data) > MAX_TRACE_BYTES:
                raise HetschedError(f"{where}: unpacked it has more than {MAX_TRACE_BYTES} bytes", hint="cut it")
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error):
        raise HetschedError(f"{where}: its gzip data are broken", hint="is the file complete?") from None
    except UnicodeDecodeError as error:
        raise HetschedError(
            f"{where}: not text (byte {error.start} is not UTF-8)", hint="save it as UTF-8 text"
        ) from None


def _csv_rows(text: str, where: str) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    try:
        head = [cell.strip().lower() for cell in next(lines, [])]
        missing = [column for column in CSV_COLUMNS if column not in head]
        if missing:
            raise HetschedError(
                f"{where} line 1: no column {missing[0]!r}",
                hint="a trace has the header TIMESTAMP,ContextTokens,GeneratedTokens, or is JSON lines",
            )
        at = [head.index(column) for column in CSV_COLUMNS]
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            place = f"{where} line {lines.line_num}"
            if len(cells) <= max(at):
                raise HetschedError(f"{place}: {len(cells)} columns, the header has {len(head)}")
            stamp, prompt, output = (cells[k].strip() for k in at)
            yield place, _seconds(stamp, 1.0, place), _tokens(prompt, place), _tokens(output, place)
    except csv.Error as error:
        raise HetschedError(f"{where} line {lines.line_num}: not valid CSV: {error}") from None


def _json_rows(text: str, where: str) -> Iterator[Row]:
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        try:
            row = json.loads(line, object_pairs_hook=partial(unique, where=place))
        except (json.JSONDecodeError, RecursionError):
            raise HetschedError(f"{place}: not valid JSON", hint="JSON lines have one object on each line") from None
        except ValueError:  # a whole number of thousands of digits
            raise HetschedError(f"{place}: a number is too long") from None
        if not isinstance(row, dict):
            raise HetschedError(f"{place}: {describe(row)}, expected an object", hint=f"with {', '.join(JSON_KEYS)}")
        for key in JSON_KEYS:
            if key not in row:
                raise HetschedError(f"{place}: `{key}` is missing", hint=f"each line has {', '.join(JSON_KEYS)}")
        stamp, prompt, output = (row[key] for key in JSON_KEYS)
        yield place, _seconds(stamp, SECONDS_PER_MS, place), _tokens(prompt, place), _tokens(output, place)


def _seconds(stamp: Any, unit: float, place: str) -> float:
    """A time in seconds: of a number in `unit`s, or of a date."""
    if isinstance(stamp, int | float) and not isinstance(stamp, bool):
        value = float(stamp) * unit if abs(stamp) < LATEST_S / unit else math.inf
    else:
        value = _dated(str(stamp), unit)
    if not abs(value) < LATEST_S:
        raise HetschedError(
            f"{place}: the timestamp {str(stamp)[:40]!r} is no time",
            hint="give a date and time like 2023-11-16 18:17:03.98, or a number",
        )
    return value


def _dated(stamp: str, unit: float) -> float:
    try:
        return float(stamp) * unit
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(stamp)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def _tokens(value: Any, place: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 12:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        shown = repr(value)[:40] if isinstance(value, str) else describe(value)
        raise HetschedError(f"{place}: {shown} is no number of tokens", hint=f"a whole number up to {MOST_TOKENS}")
    return value


def _requests(rows: Iterator[Row], where: str) -> Requests:
    kept: list[Row] = []
    empty: list[str] = []
    for row in rows:
        if row[2] and row[3]:
            kept.append(row)
        else:
            empty.append(row[0])
    if empty:
        warnings.warn(
            f"{where}: {len(empty)} requests without prompt or output are left out, the first at {empty[0]}",
            HetschedWarning,
            stacklevel=3,
        )
    if not kept:
        raise HetschedError(f"{where}: there are no requests", hint="is it the right file?")
    times = np.array([row[1] for row in kept])
    order = np.argsort(times, kind="stable")
    return Requests(
        times[order] - times.min(),
        np.array([row[2] for row in kept], dtype=np.int64)[order],
        np.array([row[3] for row in kept], dtype=np.int64)[order],
        where,
    )
