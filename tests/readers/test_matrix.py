"""Matrices by themselves: units, empty cells, the diagonal, arrays."""

from pathlib import Path

import numpy as np
import pytest

from hetsched.errors import HetschedError
from hetsched.readers.matrix import BANDWIDTH, LATENCY, inline_matrix, read_matrix

GBPS = 1e9 / 8


def write(folder: Path, text: str) -> Path:
    path = folder / "matrix.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("corner", "bytes_per_s"),
    [
        ("", 2 * GBPS),
        ("node", 2 * GBPS),
        ("gbps", 2 * GBPS),
        ("Gbit/s", 2 * GBPS),
        ("Gb/s", 2 * GBPS),
        ("GB/s", 2e9),
        ("MB/s", 2e6),
        ("Mbit/s", 2 * GBPS / 1000),
        ("mbps", 2 * GBPS / 1000),
        ("GiB/s", 2 * 2**30),
    ],
)
def test_units_of_bandwidth(tmp_path: Path, corner: str, bytes_per_s: float) -> None:
    matrix = read_matrix(write(tmp_path, f"{corner},a,b\na,,2\nb,2,\n"), BANDWIDTH)
    assert matrix.values[0, 1] == pytest.approx(bytes_per_s)


@pytest.mark.parametrize(("corner", "seconds"), [("", 2e-3), ("ms", 2e-3), ("us", 2e-6), ("µs", 2e-6), ("s", 2.0)])
def test_units_of_latency(tmp_path: Path, corner: str, seconds: float) -> None:
    path = tmp_path / "latency.csv"
    path.write_text(f"{corner},a,b\na,,2\nb,2,\n", encoding="utf-8")
    assert read_matrix(path, LATENCY).values[0, 1] == pytest.approx(seconds)


@pytest.mark.parametrize("corner", ["gb/s", "GBPS", "gpbs", "ms"])
def test_a_unit_that_could_be_bits_or_bytes_is_refused(tmp_path: Path, corner: str) -> None:
    with pytest.raises(HetschedError, match="not a unit of bandwidth"):
        read_matrix(write(tmp_path, f"{corner},a,b\na,,2\nb,2,\n"), BANDWIDTH)


def test_directions_empty_cells_and_the_diagonal(tmp_path: Path) -> None:
    text = "\ufeffgbps;a;b;c\na;9;1;-\nb;2;0;nan\nc;;4;x\n"
    matrix = read_matrix(write(tmp_path, text), BANDWIDTH)
    assert matrix.names == ("a", "b", "c")
    nan = np.nan
    np.testing.assert_allclose(matrix.values / GBPS, [[nan, 1, nan], [2, nan, nan], [nan, 4, nan]])
    with pytest.raises(HetschedError, match="row c, column c: the text 'x' is not a number"):
        matrix.diagonal_values()


def test_zero_on_the_diagonal_is_no_measurement(tmp_path: Path) -> None:
    matrix = read_matrix(write(tmp_path, "ms,a,b\na,0,1\nb,1,3\n"), LATENCY)
    np.testing.assert_allclose(matrix.diagonal_values(), [np.nan, 0.003])


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([[0, 8], [16, 0]]))
    matrix = read_matrix(tmp_path / "m.npy", BANDWIDTH)
    assert matrix.names is None
    np.testing.assert_allclose(matrix.values, [[np.nan, 1e9], [2e9, np.nan]])


def test_inline() -> None:
    matrix = inline_matrix(["a", "b"], [[None, 8], [16, None]], "here", BANDWIDTH, "GB/s")
    np.testing.assert_allclose(matrix.values, [[np.nan, 8e9], [16e9, np.nan]])
