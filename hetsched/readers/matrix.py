"""Measured bandwidth and latency matrices: CSV, .npy, or inline in a cluster file.

`[row, column]` is row -> column, and the directions may differ. In a CSV the header row and the first column name
nodes, devices or regions; the top-left cell may hold the unit (Gbit/s and ms where it does not). An empty cell, `-`
or NaN is a pair that was not measured.
"""

import csv
import io
import math
import tokenize
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hetsched.cluster import Floats
from hetsched.errors import HetschedError
from hetsched.fields import describe
from hetsched.files import MAX_TEXT_BYTES, read_text
from hetsched.units import BYTES_PER_S_PER_GBPS, BYTES_PER_S_PER_GBYTES, SECONDS_PER_MS

MAX_ROWS = 4096

_BIT = BYTES_PER_S_PER_GBPS * 1e-9
_BYTE = BYTES_PER_S_PER_GBYTES * 1e-9


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a matrix holds: its units by every spelling (exact, or lower case where no capital B is meant)."""

    name: str
    default_unit: str
    units: dict[str, float]
    zero_is_wrong: bool

    def factor(self, unit: str, where: str) -> float:
        """What one `unit` is in bytes/s or s."""
        spelling = unit.strip()
        known = self.units.get(spelling)
        if known is None and "B" not in spelling:
            known = self.units.get(spelling.lower())
        if known is None:
            raise HetschedError(f"{where}: {unit!r} is not a unit of {self.name}", hint=f"use one of: {self.known}")
        return known

    @property
    def known(self) -> str:
        """The spellings, for messages."""
        return ", ".join(self.units)


_BITS = {f"{p}{form}": f * _BIT for p, f in (("g", 1e9), ("m", 1e6), ("k", 1e3)) for form in ("bps", "bit/s")}
_BYTES = {f"{p}{form}": f * _BYTE for p, f in (("G", 1e9), ("M", 1e6), ("k", 1e3)) for form in ("B/s", "Bps")}
_BINARY = {"GiB/s": 2**30 * _BYTE, "MiB/s": 2**20 * _BYTE}

BANDWIDTH = Quantity("bandwidth", "gbps", _BITS | {"Gb/s": 1e9 * _BIT, "Mb/s": 1e6 * _BIT} | _BYTES | _BINARY, True)
LATENCY = Quantity("latency", "ms", {"ms": SECONDS_PER_MS, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "s": 1.0}, False)

_CORNERS = {
    "",
    "name",
    "names",
    "node",
    "nodes",
    "device",
    "devices",
    "region",
    "regions",
    "from",
    "from/to",
    "from\\to",
}
_NOTHING = {"", "-", "nan", "n/a", "[n/a]", "null", "none"}


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix as it stood in its file.

    names: what rows and columns stand for, in order; None for a .npy, whose rows are in inventory order.
    values: (n, n) in bytes/s or s, [row, column] from row to column, NaN where nothing was measured.
    diagonal: (n,) the cells from a name to itself, as text or number, read only where they mean something.
    """

    where: str
    quantity: Quantity
    names: tuple[str, ...] | None
    values: Floats
    diagonal: tuple[Any, ...]
    factor: float

    def diagonal_values(self) -> Floats:
        """(n,): the diagonal in bytes/s or s; NaN where it is empty or 0 (nobody measures a link to oneself)."""
        cells = []
        for position, cell in enumerate(self.diagonal):
            name = self.names[position] if self.names else str(position)
            value = _number(cell, _place(self.where, name, name))
            if value:
                value = _checked(value, self.quantity, _place(self.where, name, name))
            cells.append(math.nan if value == 0 else value * self.factor)
        return np.array(cells, dtype=np.float64)


def read_matrix(path: Path, quantity: Quantity, unit: str = "") -> Matrix:
    """The matrix in a .csv or .npy file; `unit` as stated elsewhere, if it is.

    Raises HetschedError that names the file, row and column: ragged rows, names that are missing, twice there or
    differ between header and first column, cells that are no number, negative, infinite, or a bandwidth of zero.
    """
    if path.suffix == ".npy":
        return _from_array(_load_npy(path), path.name, quantity, unit)
    text = read_text(path, f"{quantity.name} matrix").removeprefix("\ufeff")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise HetschedError(
            f"{path.name}: not valid CSV: {error}", hint="one row a line, cells between commas"
        ) from None
    return _from_table(rows, path.name, quantity, unit)


def inline_matrix(names: Sequence[object], rows: Sequence[object], where: str, quantity: Quantity, unit: str) -> Matrix:
    """A matrix written in the cluster file: the names, and a list of rows in their order."""
    for position, row in enumerate(rows):
        if not isinstance(row, list):
            raise HetschedError(f"{where}: rows[{position}] is {describe(row)}, expected a list of numbers")
    if len(rows) != len(names):
        raise HetschedError(f"{where}: {len(rows)} rows for {len(names)} names", hint="one row for each name, in order")
    table = [["", *names]] + [[name, *row] for name, row in zip(names, rows, strict=True) if isinstance(row, list)]
    return _from_table(table, where, quantity, unit)


def _from_table(rows: Sequence[Sequence[Any]], where: str, quantity: Quantity, unit: str) -> Matrix:
    if not rows:
        raise HetschedError(f"{where}: the matrix is empty", hint="a header row of names, then a row for each name")
    if len(rows) < 2:
        raise HetschedError(
            f"{where}: there are no rows", hint="a header row and a first column of names, then the numbers"
        )
    names = [str(cell).strip() for cell in rows[0][1:]]
    if len(names) > MAX_ROWS:
        raise HetschedError(
            f"{where}: {len(names)} columns, at most {MAX_ROWS} are read", hint="name nodes, not devices"
        )
    _check_names(names, [str(row[0]).strip() for row in rows[1:]], where)
    factor = _factor(str(rows[0][0]).strip(), unit, where, quantity)
    values = np.full((len(names), len(names)), np.nan)
    for i, row in enumerate(rows[1:]):
        if len(row) != len(names) + 1:
            raise HetschedError(
                f"{where}: row {names[i]} has {len(row) - 1} values for {len(names)} columns",
                hint="leave a cell empty where nothing was measured, but keep its comma",
            )
        values[i] = _row(row[1:], i, names, where, quantity)
    diagonal = tuple(row[i + 1] for i, row in enumerate(rows[1:]))
    return Matrix(where, quantity, tuple(names), values * factor, diagonal, factor)


def _row(cells: Sequence[Any], i: int, names: Sequence[str], where: str, quantity: Quantity) -> Floats:
    """One row's numbers, NaN on the diagonal, whatever stands there."""
    if all(isinstance(cell, str) for cell in cells):  # a CSV row without a flaw, at once
        with suppress(ValueError):
            values = np.array([cell or "nan" for cell in cells], dtype=np.float64)
            values[i] = math.nan
            wrong = np.isinf(values) | (values < 0) | ((values == 0) & quantity.zero_is_wrong)
            if not wrong.any():
                return values
    row = []
    for j, cell in enumerate(cells):
        if i == j:
            row.append(math.nan)
            continue
        place = _place(where, names[i], names[j])
        value = _number(cell, place)
        row.append(value if math.isnan(value) else _checked(value, quantity, place))
    return np.array(row, dtype=np.float64)


def _place(where: str, row: str, column: str) -> str:
    return f"{where}: row {row}, column {column}"


def _number(cell: object, place: str) -> float:
    """The number in a cell; NaN where there is none."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _NOTHING):
        return math.nan
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise HetschedError(f"{place}: {describe(cell)} is not a number")
    try:
        return float(cell)
    except (ValueError, OverflowError):
        raise HetschedError(
            f"{place}: {describe(cell)} is not a number", hint="plain numbers; the unit goes in the top-left cell"
        ) from None


def _checked(value: float, quantity: Quantity, place: str) -> float:
    if math.isinf(value):
        raise HetschedError(f"{place}: the {quantity.name} is infinite", hint="leave the cell empty if it is not known")
    if value < 0:
        raise HetschedError(f"{place}: the {quantity.name} {value:g} is negative")
    if value == 0 and quantity.zero_is_wrong:
        raise HetschedError(f"{place}: the {quantity.name} is 0", hint="leave the cell empty if it was not measured")
    return value


def _check_names(columns: Sequence[str], rows: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for position, name in enumerate(columns):
        if not name:
            raise HetschedError(
                f"{where}: column {position + 1} has no name", hint="name each column in the header row"
            )
        if name in seen:
            raise HetschedError(f"{where}: column {name} stands twice", hint="one column for each name")
        seen.add(name)
    for position, (row, column) in enumerate(zip(rows, columns, strict=False)):
        if row != column:
            raise HetschedError(
                f"{where}: row {position + 1} is named {row!r}, column {position + 1} is named {column!r}",
                hint="rows and columns have the same names in the same order",
            )
    if len(rows) != len(columns):
        raise HetschedError(
            f"{where}: {len(rows)} rows and {len(columns)} columns", hint="a matrix is square: one row for each column"
        )


def _factor(corner: str, stated: str, where: str, quantity: Quantity) -> float:
    """Bytes/s or s of one unit: from the top-left cell, or stated beside the file's name, or the default."""
    if corner.lower() in _CORNERS:
        return quantity.factor(stated or quantity.default_unit, where)
    factor = quantity.factor(corner, f"{where}: top-left cell")
    if stated and quantity.factor(stated, where) != factor:
        raise HetschedError(
            f"{where}: the unit is {corner!r} in the file and {stated!r} beside its name", hint="drop one"
        )
    return factor


def _load_npy(path: Path) -> Floats:
    try:
        size = path.stat().st_size
        if size > 4 * MAX_TEXT_BYTES:
            raise HetschedError(f"{path.name} has {size} bytes, more than are read here", hint="is it the right file?")
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header can't make us allocate its lies
        if not isinstance(mapped, np.ndarray):
            raise HetschedError(f"{path.name}: not a single array", hint="write it with numpy.save")
        if mapped.dtype.kind not in "fiu":
            raise HetschedError(f"{path.name}: the array holds {mapped.dtype}, expected numbers")
        return np.array(mapped, dtype=np.float64)
    except FileNotFoundError:
        raise HetschedError(f"matrix {path} does not exist", hint="paths are relative to the cluster file") from None
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, tokenize.TokenError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is damaged"
        raise HetschedError(
            f"{path.name}: not a readable .npy array: {reason}", hint="write it with numpy.save"
        ) from None
    except OSError as error:
        raise HetschedError(f"{path.name}: can't be read: {error}", hint="check the path") from None


def _from_array(array: Floats, where: str, quantity: Quantity, unit: str) -> Matrix:
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise HetschedError(f"{where}: the array's shape is {array.shape}, expected a square one")
    factor = quantity.factor(unit or quantity.default_unit, where)
    diagonal = tuple(float(x) for x in np.diagonal(array))
    values = array.copy()
    np.fill_diagonal(values, np.nan)
    wrong = np.isinf(values) | (values < 0) | ((values == 0) & quantity.zero_is_wrong)
    if wrong.any():
        i, j = (int(axis[0]) for axis in np.nonzero(wrong))
        _checked(float(values[i, j]), quantity, _place(where, str(i), str(j)))
    return Matrix(where, quantity, None, values * factor, diagonal, factor)
