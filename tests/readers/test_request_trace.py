"""Traces of requests: the bundled ones as published, both formats, and what is said of broken files."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from hetsched.errors import HetschedError, HetschedWarning
from hetsched.readers import read_trace
from hetsched.requests import CLASSES
from hetsched.workload import TraceUse

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_the_azure_traces_are_as_published() -> None:
    conversation, code = read_trace("azure-2023-conv"), read_trace("azure-2023-code")
    assert (len(conversation), len(code)) == (19366, 8819)
    # Patel et al., ISCA 2024 (arXiv 2311.18677), section III: median prompts 1020 and 1500, outputs 129 and 13 tokens.
    assert [int(np.median(x)) for x in (conversation.input_tokens, conversation.output_tokens)] == [1020, 129]
    assert int(np.median(code.output_tokens)) == 13
    # Mei et al., ASPLOS 2025 (Helix): 16,657 requests of 763 and 232 tokens on average, of 2,048 and 1,024 at most.
    used = conversation.used(TraceUse("azure-2023-conv", max_input_tokens=2048, max_output_tokens=1024))
    assert len(used) == pytest.approx(16657, rel=1e-3)
    assert [used.mean_input_tokens, used.mean_output_tokens] == pytest.approx([763, 232], abs=1)
    assert sum(len(conversation.of_class(name)) for name in CLASSES) == len(conversation)


def test_csv_and_json_lines_are_alike(tmp_path: Path) -> None:
    rows = HEAD + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.4799600,3180,8\n"
    (tmp_path / "a.csv").write_text(rows)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "b.jsonl").write_text(
        '{"timestamp": 27000, "input_length": 4808, "output_length": 10, "hash_ids": [1]}\n\n'
        '{"timestamp": 28500, "input_length": 3180, "output_length": 8}\n'
    )
    (tmp_path / "c.csv").write_text("ContextTokens,x,TIMESTAMP,GeneratedTokens\n4808,,7,10\n3180,,8.5,8\n")
    for name in ("a.csv", "a.csv.gz", "b.jsonl", "c.csv"):
        requests = read_trace(tmp_path / name)
        assert requests.arrival_s.tolist() == pytest.approx([0.0, 1.5])
        assert requests.input_tokens.tolist() == [4808, 3180]
        assert requests.output_tokens.tolist() == [10, 8]


def test_requests_are_put_in_order_and_empty_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEAD + "5,1,1\n3,2,2\n4,3,0\n")
    with pytest.warns(
        HetschedWarning, match=r"1 requests without prompt or output are left out, the first at .* line 4"
    ):
        requests = read_trace(tmp_path / "t.csv")
    assert requests.input_tokens.tolist() == [2, 1]


def test_cut_filtered_and_rescaled() -> None:
    trace = read_trace("azure-2023-conv")
    minute = trace.used(TraceUse("", start_s=600.0, seconds=60.0, min_input_tokens=100))
    kept = (trace.arrival_s >= 600) & (trace.arrival_s < 660) & (trace.input_tokens >= 100)
    assert minute.input_tokens.tolist() == trace.input_tokens[kept].tolist()
    fast = minute.at_rate(50.0)
    assert fast.rate_per_s == pytest.approx(50.0)
    np.testing.assert_allclose(fast.arrival_s / fast.arrival_s[-1], minute.arrival_s / minute.arrival_s[-1])
    drawn = minute.of_class("HPLD").drawn(20_000, 5.0, np.random.default_rng(0))
    assert drawn.rate_per_s == pytest.approx(5.0, rel=0.03)
    assert drawn.input_tokens.min() > 512
    assert drawn.output_tokens.max() <= 128


BROKEN = {
    "nothing": ("", "t.csv line 1: no column 'timestamp'"),
    "another header": ("time,in,out\n1,2,3\n", "t.csv line 1: no column 'timestamp'"),
    "no rows": (HEAD, "t.csv: there are no requests"),
    "a row cut off": (HEAD + "1,2,3\n4,5\n", "t.csv line 3: 2 columns, the header has 3"),
    "a time that is none": (HEAD + "yesterday,2,3\n", "t.csv line 2: the timestamp 'yesterday' is no time"),
    "a time beyond all": (HEAD + "1e300,2,3\n", "t.csv line 2: the timestamp '1e300' is no time"),
    "tokens that are words": (HEAD + "1,many,3\n", "t.csv line 2: 'many' is no number of tokens"),
    "negative tokens": (HEAD + "1,2,-3\n", "t.csv line 2: '-3' is no number of tokens"),
    "far too many tokens": (HEAD + "1,2,99999999999\n", "t.csv line 2: the number 99999999999 is no number of tokens"),
    "a line that is not JSON": (
        '{"timestamp": 1, "input_length": 2, "output_length": 3}\n{oops\n',
        "line 2: not valid",
    ),
    "a key missing": ('{"timestamp": 1, "input_length": 2}\n', "line 1: `output_length` is missing"),
    "JSON that is no object": ("[1, 2]\n", "line 1: a list of 2, expected an object"),
    "a key twice": (
        '{"timestamp": 1, "input_length": 2, "input_length": 5, "output_length": 3}\n',
        "line 1: the key `input_length` stands twice",
    ),
    "half a token": ('{"timestamp": 1, "input_length": 2.5, "output_length": 3}\n', "the number 2.5 is no number"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    content, message = BROKEN[case]
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(HetschedError) as error:
        read_trace(tmp_path / "t.csv")
    assert message in error.value.message


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HetschedError, match="does not exist") as error:
        read_trace(tmp_path / "none.csv")
    assert "azure-2023-conv" in error.value.hint
    with pytest.raises(HetschedError, match="is a directory"):
        read_trace(tmp_path)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(HEAD.encode() * 1000)[:60])
    with pytest.raises(HetschedError, match="gzip data are broken"):
        read_trace(tmp_path / "cut.csv.gz")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HetschedError, match="not text"):
        read_trace(tmp_path / "binary.csv")
    monkeypatch.setattr("hetsched.readers.request_trace.MAX_TRACE_BYTES", 10**6)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"0" * 10**7))
    with pytest.raises(HetschedError, match="unpacked it has more than"):
        read_trace(tmp_path / "bomb.csv.gz")
