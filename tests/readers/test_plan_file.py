"""Plan files: by hand, and there and back."""

import json
from pathlib import Path
from typing import Any

import pytest

from hetsched.errors import HetschedError
from hetsched.readers import read_plan, write_plan

BY_HAND: dict[str, Any] = {
    "format": "hetsched-plan/1",
    "kind": "train",
    "model": {"name": "gpt2", "num_layers": 2},
    "workload": {"global_batch": 8},
    "pipelines": [
        {
            "micro_batches": 8,
            "stages": [{"layers": [0, 1], "devices": ["a/0"]}, {"layers": [1, 2], "devices": ["b/0", "b/1"]}],
        }
    ],
}


def test_a_plan_by_hand_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(BY_HAND))
    plan = read_plan(path)
    assert plan.model.hidden_size == 768
    assert plan.model.num_layers == 2
    assert plan.workload.seq_len == 1024
    assert plan.pipelines[0].name == "p0"
    assert plan.options.schedule == "1f1b"


@pytest.mark.parametrize("model", ["gpt2", {"name": "gpt2"}, {"model_type": "gpt2"}])
def test_the_model_in_any_form(tmp_path: Path, model: object) -> None:
    data = BY_HAND | {"model": model}
    data["pipelines"] = [{"micro_batches": 8, "stages": [{"layers": [0, 12], "devices": ["a/0"]}]}]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert read_plan(tmp_path / "plan.json").model.parameters == 124_439_808


def test_there_and_back(tmp_path: Path) -> None:
    path, again = tmp_path / "plan.json", tmp_path / "again.json"
    path.write_text(json.dumps(BY_HAND))
    plan = read_plan(path)
    write_plan(plan, again)
    assert read_plan(again) == plan
    write_plan(read_plan(again), path)
    assert path.read_text() == again.read_text()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(BY_HAND))
    with pytest.raises(HetschedError, match=r"nowhere.plan\.json can't be written"):
        write_plan(read_plan(path), tmp_path / "nowhere" / "plan.json")


def test_checks_of_the_whole_plan_name_its_file(tmp_path: Path) -> None:
    data = json.loads(json.dumps(BY_HAND))
    data["pipelines"][0]["stages"][1]["devices"] = ["a/0"]
    (tmp_path / "mine.json").write_text(json.dumps(data))
    with pytest.raises(HetschedError, match=r"^mine\.json: device a/0 is in pipeline p0 stage 0 and"):
        read_plan(tmp_path / "mine.json")
