"""`hetsched estimate`: its JSON, its table, its links, and what it says of what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Cli = Callable[..., Result]
LLAMA = ("estimate", "--model", "llama-3.1-8b", "--gpu")


def figures(cli: Cli, *words: object) -> dict[str, float]:
    document: dict[str, float] = json.loads(cli(*words, "--json").stdout)
    return document


def test_it_says_what_the_tables_say(cli: Cli) -> None:
    """A row of tests/published/serving_latency.json: H100, TP 4, 32 sequences."""
    found = figures(cli, *LLAMA, "h100_sxm", "--tp", 4, "--batch", 32, "--isl", 1024, "--osl", 128)
    assert found["prefill_ms"] == pytest.approx(284.2, rel=0.06)
    assert found["tpot_ms"] == pytest.approx(3.244, rel=0.06)
    assert found["fits"] is True
    assert found["max_batch"] > 1000


def test_what_does_not_fit_is_said_with_every_number(cli: Cli) -> None:
    result = cli("estimate", "--model", "llama-3.1-70b", "--gpu", "L4", "--batch", 2)
    assert "DOES NOT FIT" in result.stdout
    found = figures(cli, "estimate", "--model", "llama-3.1-70b", "--gpu", "L4", "--batch", 2)
    assert found["fits"] is False
    assert all(value is not None for value in found.values())
    assert found["prefill_ms"] > found["tpot_ms"] > 0


def test_several_degrees_and_batches_make_a_table(cli: Cli) -> None:
    words = (*LLAMA, "A100-SXM-80GB", "--tp", "1,2,4", "--batch", "1,16")
    rows = json.loads(cli(*words, "--json").stdout)["rows"]
    assert [(row["tp"], row["batch"]) for row in rows] == [(t, b) for t in (1, 2, 4) for b in (1, 16)]
    assert len(cli(*words).stdout.strip().splitlines()) == 8


def test_a_slower_link_takes_longer_and_quantised_weights_less(cli: Cli) -> None:
    words = (*LLAMA, "L40S", "--tp", 2, "--batch", 8)
    usual, slow = figures(cli, *words), figures(cli, *words, "--link-gbps", 10)
    small = figures(cli, *words, "--weight-bits", 4, "--kv-bits", 8)
    assert slow["prefill_ms"] > 2 * usual["prefill_ms"]
    assert small["tpot_ms"] < 0.5 * usual["tpot_ms"]
    assert small["memory_bytes"] < usual["memory_bytes"]


def test_a_cluster_gives_the_links(cli: Cli, specs: Path, tmp_path: Path) -> None:
    home = specs / "home-office.yaml"
    found = figures(cli, "estimate", "--model", "gpt2", "--cluster", home, "--gpu", "rtx 3090", "--tp", 2)
    usual = figures(cli, "estimate", "--model", "gpt2", "--gpu", "rtx 3090", "--tp", 2)
    assert found == usual  # its file says nothing of that link
    slower = tmp_path / "slower.yaml"
    slower.write_text(
        "name: x\nnodes:\n  - {name: n, count: 2, gpu: RTX-3090-24GB, link: {bandwidth_gbps: 9, latency_ms: 0.02}}\n",
        encoding="utf-8",
    )
    found = figures(cli, "estimate", "--model", "gpt2", "--cluster", slower, "--tp", 2)
    assert found["prefill_ms"] > 2 * usual["prefill_ms"]
    assert "no GPU of the kind" in cli("estimate", "--model", "gpt2", "--cluster", home, "--gpu", "h100", code=1).stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((*LLAMA, "L4", "--tp", "3"), 1, "attention heads"),
        ((*LLAMA, "L4", "--pp", "40"), 1, "40 stages for the 32 blocks"),
        ((*LLAMA, "Z9"), 1, "no GPU in the catalogue"),
        ((*LLAMA, "L4", "--batch", "1,x"), 2, "not a number"),
        (("estimate", "--model", "gpt2"), 2, "Give --gpu"),
    ],
)
def test_wrong_input(cli: Cli, words: tuple[str, ...], code: int, message: str) -> None:
    assert message in cli(*words, code=code).stderr
