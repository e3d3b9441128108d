import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hetsched.errors import HetschedError
from hetsched.exporters import EXPORTERS
from hetsched.exporters.torchrun import export_torchrun
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

ODD = "it's; $(touch hacked) node"


def plan(first: str = "tokyo", second: str = "home", options: Options | None = None) -> Plan:
    model = ModelSpec.from_json(
        {"name": "tiny", "num_layers": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 256, "max_positions": 16}
    )
    return Plan(
        model=model,
        workload=TrainingJob(global_batch=3, seq_len=16),
        pipelines=(
            Pipeline("deep", (Stage((0, 1), (f"{second}/3",)), Stage((1, 2), (f"{first}/0",))), 2),
            Pipeline("flat", (Stage((0, 2), (f"{second}/1",)),), 1),
        ),
        options=options or Options(),
    )


def test_each_node_has_a_script_in_rank_order() -> None:
    files = EXPORTERS["torchrun"](plan())
    assert set(files) == {"launch-home.sh", "launch-tokyo.sh", "plan.json", "README.txt"}
    home, tokyo = files["launch-home.sh"], files["launch-tokyo.sh"]
    assert "--nnodes 2 --node-rank 0 --nproc-per-node 2" in home
    assert "CUDA_VISIBLE_DEVICES=1,3" in home
    assert "--nnodes 2 --node-rank 1 --nproc-per-node 1" in tokyo
    assert "MASTER_ADDR=home" in tokyo
    assert "c10d" not in home + tokyo
    assert Plan.from_json(json.loads(files["plan.json"])) == plan()


def test_file_names_are_plain_and_differ() -> None:
    files = export_torchrun(plan("a/b", "a b"))
    assert {name for name in files if name.endswith(".sh")} == {"launch-a_b.sh", "launch-a_b-node1.sh"}


@pytest.mark.parametrize("node", [ODD, "-n", "ノード", "a\nb"])
def test_odd_node_names_are_only_ever_data(node: str, tmp_path: Path) -> None:
    script = next(text for name, text in export_torchrun(plan(second=node)).items() if "node-rank 0" in text)
    (tmp_path / "launch.sh").write_text(script, encoding="utf-8")
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s|" "$HETSCHED_NODE" "$@"\n', encoding="utf-8")
    (tmp_path / "torchrun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", tmp_path / "launch.sh"], env=environment, capture_output=True, check=True)
    words = done.stdout.decode().split("|")
    assert words[0] == node
    assert f"--master-addr={node}" in words
    assert not (tmp_path / "hacked").exists()


def test_what_the_executor_cannot_run_is_refused() -> None:
    with pytest.raises(HetschedError, match="activation_bits is 12"):
        export_torchrun(plan(options=Options(compression=Compression(activation_bits=12))))
    with pytest.raises(HetschedError, match="mixture of experts"):
        export_torchrun(replace(plan(), model=replace(plan().model, num_experts=8, experts_per_token=2)))
    with pytest.raises(HetschedError, match="home/1 of pipeline flat"):
        export_torchrun(replace(plan(), devices={"home/3": {}, "tokyo/0": {}}))


def wide() -> Plan:
    """A stage of two GPUs, and messages compressed."""
    narrow = plan(options=Options(compression=Compression(4, 8, 8)))
    deep, flat = narrow.pipelines
    return replace(narrow, pipelines=(deep, replace(flat, stages=(Stage((0, 2), ("home/1", "home/2")),))))


def test_the_scripts_of_two_nodes_train_together(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    torchrun = Path(sys.executable).parent / "torchrun"
    if not torchrun.exists() and shutil.which("torchrun") is None:
        pytest.skip("torchrun is not installed")
    files = export_torchrun(wide(), steps=2)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ) | {
        "PATH": f"{torchrun.parent}:{os.environ['PATH']}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    nodes = [
        subprocess.Popen(
            ["sh", tmp_path / f"launch-{node}.sh", "--device", "cpu", "--timeout-s", "60"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for node in ("home", "tokyo")
    ]
    try:
        said = [node.communicate(timeout=90) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    lines = [json.loads(line) for line in said[0][0].decode().splitlines() if line.startswith("{")]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    assert all(5 < loss < 6 for loss in losses)
