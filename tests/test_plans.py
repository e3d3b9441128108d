"""The solved examples: each is priced as it says, each is described, and what the README shows is what they say."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from hetsched.cli import main
from hetsched.cli.inputs import cluster_of
from hetsched.readers import read_any_plan, read_cluster, read_plan
from hetsched.report.training_table import training_table

ROOT = Path(__file__).parents[1]
PLANS = sorted((ROOT / "plans").glob("*.json"))
README, FORMAT = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "plans" / "README.md"))
SHOWN = ("worldwide-gpt3-xl.json", "home-office-opt-1.3b.json")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_example_is_priced_as_it_says(path: Path) -> None:
    result = CliRunner().invoke(main, ["evaluate", str(path), "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    predicted = json.loads(result.stdout)
    assert predicted["violations"] == []
    written = read_any_plan(path).predicted
    figure = "iteration_s" if "iteration_s" in predicted else "output_tokens_per_s"
    if written:
        assert predicted[figure] == pytest.approx(written[figure], rel=1e-9, abs=0)
    else:
        assert path.stem in {"by-hand", "serve-by-hand", "serve-apart"}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_example_is_in_both_readmes(path: Path) -> None:
    assert f"`plans/{path.name}`" in README
    assert f"`{path.name}`" in FORMAT


@pytest.mark.parametrize("name", SHOWN)
def test_the_readme_shows_what_the_examples_say(name: str) -> None:
    path = ROOT / "plans" / name
    plan = read_plan(path)
    assert training_table(plan, cluster_of(plan, path, None)) in README


@pytest.mark.parametrize("name", ["by-hand.json", "serve-by-hand.json"])
def test_the_format_shows_the_plans_by_hand(name: str) -> None:
    assert (ROOT / "plans" / name).read_text(encoding="utf-8") in FORMAT


def test_the_plan_by_hand_runs_as_one_process_would() -> None:
    pytest.importorskip("torch")
    path = ROOT / "plans" / "by-hand.json"
    result = CliRunner().invoke(main, ["run", str(path), "--check", "--steps", "1"])
    assert result.exit_code == 0, result.output
    assert "equal to one process" in result.stdout


def test_the_cluster_file_of_the_readme_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"## The cluster file\n\n```yaml\n(.*?)```", README, re.DOTALL)
    (matrix,) = re.findall(r"```csv\n(.*?)```", README, re.DOTALL)
    (tmp_path / "cluster.yaml").write_text(example, encoding="utf-8")
    (tmp_path / "bandwidth.csv").write_text(matrix, encoding="utf-8")
    (tmp_path / "latency.csv").write_text(matrix.replace("Gbit/s", "ms"), encoding="utf-8")
    shutil.copy(ROOT / "cluster_specs" / "profiles" / "training_network.json", tmp_path / "my-gpus.json")
    cluster = read_cluster(tmp_path / "cluster.yaml")
    assert len(cluster.devices) == 12
    home, rack = (cluster.index_of[name] for name in ("home/0", "rack/1"))
    latency, bandwidth = cluster.links([home], [rack])
    assert (latency.item(), bandwidth.item()) == pytest.approx((9.4e-3, 9.4e9 / 8))


def test_the_home_of_the_readme_is_the_one_in_the_specs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(name: home-office\n.*?)```", README, re.DOTALL)
    given = yaml.safe_load((ROOT / "cluster_specs" / "home-office.yaml").read_text(encoding="utf-8"))
    del given["source"]
    assert yaml.safe_load(example) == given


def test_the_python_of_the_readme_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "cluster_specs").symlink_to(ROOT / "cluster_specs")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102
    assert read_plan(tmp_path / "plan.json").model.name == "opt-1.3b"


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "by-hand.json"),
        ("simulate", "by-hand.json"),
        ("simulate", "serve-apart.json", "--request", "3"),
        ("explain", "by-hand.json"),
        ("explain", "serve-by-hand.json"),
        ("estimate", "--model", "llama-3.1-8b", "--gpu", "h100_sxm", "--tp", "1,2", "--batch", "1,64"),
        ("compare", "home-office-opt-1.3b.json", "home-office-llama-2-7b.json"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_the_readme_shows_what_the_commands_print(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the README shows of a command stands in its output, in order; of a training plan's `explain` parts."""
    monkeypatch.chdir(ROOT)
    command = [words[0], *(f"plans/{word}" if word.endswith(".json") else word for word in words[1:])]
    printed = CliRunner().invoke(main, command).stdout.rstrip()
    shown = README.split(f"$ hetsched {' '.join(command)}\n")[1].split("```")[0].rstrip()
    if words[:2] == ("explain", "by-hand.json"):
        headings = ("What limits it", "Time by stage")
        parts = [part.rstrip() for part in shown.split("Time by stage")]
        assert all(heading in shown for heading in headings)
        assert all(part in printed for part in parts)
    else:
        assert shown == printed
