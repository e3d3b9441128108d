"""Prefill and decode-step times against tables of measured operator times, and block times measured on real GPUs.

`serving_latency.json`: AIConfigurator 0.12.0 (NVIDIA), vLLM tables, Apache-2.0; static batches of Llama-3.1-8B in bf16.
Six figures an architecture and five of all-reduces are fitted to its 49 rows (hetsched/catalog/gpus.yaml says which).
`cluster_specs/profiles/serving_profiles.json`: Helix (ASPLOS 2025), Apache-2.0, blocks of Llama-2-70B: nothing of the
A100's figures is fitted to them.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from hetsched.catalog import find_gpu
from hetsched.cost.serving.stage import StageTimes, causal_pairs
from hetsched.precision import Precision
from hetsched.readers import resolve_model
from hetsched.readers.measurements import read_measurements

HERE = Path(__file__).parent
ROWS = json.loads((HERE / "serving_latency.json").read_text(encoding="utf-8"))["rows"]
KINDS = {"h100_sxm": "H100-SXM-80GB", "a100_sxm": "A100-SXM-80GB", "l40s": "L40S-48GB"}
PROFILES = HERE.parents[1] / "cluster_specs" / "profiles" / "serving_profiles.json"


def stage(kind: str, degree: int, name: str, blocks: int | None = None) -> StageTimes:
    gpu, model = find_gpu(kind, "test"), resolve_model(name, "test")
    whole = blocks is None
    held = model.num_layers if blocks is None else blocks
    return StageTimes(gpu, degree, gpu.link, model, Precision(), held, whole, whole)


@pytest.fixture(scope="module")
def errors() -> np.ndarray:
    """(rows, 2): predicted over given, less one, of prefill and of the decode step."""
    found = []
    for row in ROWS:
        times, batch, tokens = stage(KINDS[row["gpu"]], row["tp"], row["model"]), row["batch"], row["isl"]
        prefill_s = times.prefill_s(batch * tokens, batch * causal_pairs(tokens), batch)
        decode_s = times.decode_s(batch, batch * (tokens + row["osl"] / 2))
        found.append((prefill_s * 1e3 / row["prefill_ms"] - 1, decode_s * 1e3 / row["tpot_ms"] - 1))
    return np.array(found)


def test_prefill_and_decode_steps_as_given(errors: np.ndarray) -> None:
    """At most 3 % off on average in both, over 49 rows; at worst 16 % (one prompt on an L40S)."""
    assert errors.shape == (49, 2)
    assert np.abs(errors).mean(axis=0).max() <= 0.03
    assert np.abs(errors).max() <= 0.16


@pytest.mark.parametrize("gpu", KINDS)
@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_no_part_of_the_table_is_missed(errors: np.ndarray, gpu: str, degree: int) -> None:
    """Each GPU at each degree: at most 7 % off on average in both, with no lean beyond it."""
    of = [number for number, row in enumerate(ROWS) if (row["gpu"], row["tp"]) == (gpu, degree)]
    if of:
        assert np.abs(errors[of]).mean(axis=0).max() <= 0.07


def test_another_model_on_another_a100_as_measured() -> None:
    """Blocks of a 70B model on A100-PCIe-40GB: prefill within 4 % on average, decode steps within 12 %."""
    measured = json.loads(PROFILES.read_text(encoding="utf-8"))["profiles"]["A100"]
    block = stage("A100-PCIe-40GB", 1, "llama-2-70b", blocks=1)
    prefill = {int(n): s for n, s in measured["prompt_block_s_by_tokens"].items() if int(n) >= 1000}
    tokens = np.array(list(prefill), dtype=float)
    error = block.prefill_s(tokens, tokens * 500) / np.array(list(prefill.values())) - 1
    assert np.abs(error).mean() <= 0.04
    decode = {int(n): s for n, s in measured["decode_block_s_by_batch"].items() if 2 <= int(n) <= 200}
    sizes = np.array(list(decode), dtype=float)
    error = block.decode_s(sizes, sizes * 880) / np.array(list(decode.values())) - 1
    assert np.abs(error).mean() <= 0.12


@pytest.mark.parametrize(("kind", "degree"), [("L4-24GB", 2), ("T4-16GB", 2), ("T4-16GB", 4)])
def test_tensor_parallel_in_virtual_machines_as_measured(kind: str, degree: int) -> None:
    """One link, without peer access, for all three: within 8 % on average in prefill and in decode steps."""
    measured = json.loads(PROFILES.read_text(encoding="utf-8"))["profiles"][f"{kind[:2]}x{degree}"]
    block = stage(kind, degree, "llama-2-70b", blocks=1)
    for name, least, most in (("prompt_block_s_by_tokens", 1000, 8000), ("decode_block_s_by_batch", 2, 200)):
        points = {int(n): s for n, s in measured[name].items() if least <= int(n) <= most}
        counts = np.array(list(points), dtype=float)
        times = block.prefill_s(counts, counts * 380) if least == 1000 else block.decode_s(counts, counts * 880)
        assert np.abs(times / np.array(list(points.values())) - 1).mean() <= 0.08


def test_measured_profiles_are_read_as_they_are() -> None:
    """The file's points are the block's times, between them a line, and beyond them the roofline goes on."""
    measured, model = read_measurements(PROFILES), resolve_model("llama-2-70b", "test")
    assert {(kind, degree) for _, kind, degree in measured.serving} == {
        ("A100-SXM-40GB", 1),
        ("V100-SXM2-16GB", 1),
        *(("L4-24GB", n) for n in (1, 2)),
        *(("T4-16GB", n) for n in (1, 2, 4)),
    }
    profile = measured.serving_profile(model, "T4-16GB", 2)
    assert profile is not None
    gpu = find_gpu("T4-16GB", "test")
    block = StageTimes(gpu, 2, gpu.link, model, Precision(), 1, False, False, profile)
    assert block.prefill_s(500, 0.0) == 0.018
    assert block.prefill_s(375, 0.0) == pytest.approx((0.01 + 0.018) / 2)
    assert block.decode_s(100, 1e5) == pytest.approx(0.0074)
    assert block.step_s(1, np.zeros(3), 1, 0, np.zeros(3)).shape == (3,)
    assert block.prefill_s(15000, 0.0) == pytest.approx(2 * block.prefill_s(7500, 0.0), rel=0.02)
    assert measured.serving_profile(resolve_model("llama-2-13b", "test"), "T4-16GB", 2) is None
