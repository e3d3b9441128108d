"""What `hetsched probe --compute` measures is what readers take and training does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from hetsched.cli import main
from hetsched.executor import RunSettings
from hetsched.model import ModelSpec
from hetsched.readers.measurements import read_measurements
from hetsched.workload import TrainingJob

pytest.importorskip("torch")

Models = Callable[..., ModelSpec]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_profile_is_read_as_it_was_measured(model: Models, family: str, tmp_path: Path) -> None:
    from hetsched.executor.calibrate import measure_profile

    spec, job = model(family), TrainingJob(8, 32, 1, "fp32")
    told: list[int] = []
    settings = RunSettings(device="cpu", dtype="fp32")
    profile = measure_profile(spec, job, [1, 4], "my-cpu", settings, told.append)
    assert told == [1, 4]
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    measured = read_measurements(tmp_path / "profile.json")
    for size, entry in zip([1, 4], profile["profiles"], strict=True):
        times = measured.part_times(spec, TrainingJob(8, 32, size, "fp32"), "my-cpu", 1)
        assert times is not None
        assert [times.block.forward_s, times.block.backward_s, times.block.update_s] == entry["block_s"]
        assert 0 < times.block.forward_s < 1
        assert 0 < times.block.backward_s < 1
        assert times.head.forward_s + times.embedding.forward_s >= 0
    assert measured.part_times(spec, TrainingJob(8, 16, 1, "fp32"), "my-cpu", 1) is None  # another length


def test_the_command_writes_it(tmp_path: Path) -> None:
    shape = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "vocab_size": 64, "max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    words = ["probe", "--compute", "--model", str(tmp_path / "config.json"), "--gpu", "my-cpu", "--micro-batch", "2"]
    result = CliRunner().invoke(main, [*words, "--device", "cpu", "-o", str(tmp_path / "cpu.json")])
    assert result.exit_code == 0, result.output
    assert "micro-batch  part       forward" in result.stdout
    assert read_measurements(tmp_path / "cpu.json").training


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--model", "mixtral-8x7b"], "mixture of experts"),
        (["--model", "gpt2", "--seq-len", "4096"], "positions for 1024"),
        (["--model", "gpt2", "-o", "nowhere/profile.json"], "nowhere"),
    ],
)
def test_what_can_not_be_measured_is_said_first(words: list[str], what: str) -> None:
    result = CliRunner().invoke(main, ["probe", "--compute", "--gpu", "my-cpu", *words])
    assert result.exit_code == 1
    assert what in result.stderr
    assert "micro-batch" not in result.stderr
