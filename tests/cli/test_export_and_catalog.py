import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from hetsched.catalog import gpu_kinds, model_names
from hetsched.cost import COST_MODELS, SERVING_COST_MODELS
from hetsched.solvers import SOLVERS
from hetsched.solvers.serving import SERVING_SOLVERS

Cli = Callable[..., Result]
Minimal = Callable[..., dict[str, Any]]


def test_export_writes_the_launch_files(cli: Cli, minimal: Minimal, tmp_path: Path) -> None:
    path, folder = tmp_path / "plan.json", tmp_path / "deep" / "launch"
    path.write_text(json.dumps(minimal()))
    said = cli("export", path, "--to", "torchrun", "-o", folder).stdout
    names = {"README.txt", "plan.json", "launch-office-pc.sh", "launch-desktop.sh"}
    assert {file.name for file in folder.iterdir()} == names
    assert all(str(folder / name) in said for name in names)
    assert os.access(folder / "launch-desktop.sh", os.X_OK)
    assert cli("export", path, "--to", "torchrun", "-o", folder, "-q").output == ""


def test_export_of_what_the_launcher_can_not_start_leaves_the_folder(
    cli: Cli, minimal: Minimal, tmp_path: Path
) -> None:
    path, folder = tmp_path / "plan.json", tmp_path / "launch"
    path.write_text(json.dumps(minimal(options={"compression": {"grad_bits": 12}})))
    assert "grad_bits is 12" in cli("export", path, "--to", "torchrun", "-o", folder, code=1).stderr
    assert not folder.exists()
    path.write_text(json.dumps(minimal()))
    assert "can't be made" in cli("export", path, "--to", "torchrun", "-o", path, code=1).stderr
    assert "torchrun" in cli("export", path, "--to", "carrier-pigeon", "-o", folder, code=2).stderr


def test_the_catalogue_is_listed(cli: Cli) -> None:
    assert [row["kind"] for row in json.loads(cli("gpus", "--json").stdout)] == list(gpu_kinds())
    assert [row["name"] for row in json.loads(cli("models", "--json").stdout)] == list(model_names())
    assert "RTX-3090-24GB" in cli("gpus").stdout
    assert "gpt3-xl" in cli("models").stdout


def test_solvers_and_cost_models_are_listed_with_what_they_do(cli: Cli) -> None:
    rows = json.loads(cli("solvers", "--json").stdout)
    assert [row["name"] for row in rows] == [*SOLVERS, *COST_MODELS, *SERVING_SOLVERS, *SERVING_COST_MODELS]
    assert all(len(row["does"]) > 10 for row in rows)
    assert max(map(len, cli("solvers").stdout.splitlines())) <= 80
