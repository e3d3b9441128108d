"""Scripts of plans with prefill and decode apart: what they start, seen by programs that write down their calls."""

import re
import subprocess
from pathlib import Path

import pytest

from hetsched.catalog import find_model
from hetsched.errors import HetschedError
from hetsched.exporters import SERVING_EXPORTERS
from hetsched.plan import Route, ServingPipeline, ServingPlan, Stage
from hetsched.workload import ServingLoad

RECORDER = """#!/bin/sh
{ printf '%s ' "$(basename "$0")" "$CUDA_VISIBLE_DEVICES" "$SGLANG_PP_LAYER_PARTITION$VLLM_PP_LAYER_PARTITION" "$@"
printf '\\n'; } >> "$CALLS"
"""


def plan(*decode: Stage, prefill: tuple[Stage, ...] = (Stage((0, 12), ("a/0",)),)) -> ServingPlan:
    """Two prefill replicas, the second of two stages on two nodes; two that decode; and one that does both."""
    model = find_model("gpt2")
    assert model is not None
    pipelines = (
        ServingPipeline("p0", prefill, 8, "prefill"),
        ServingPipeline("p1", (Stage((0, 5), ("b/0",)), Stage((5, 12), ("b/1",))), 8, "prefill"),
        ServingPipeline("d0", decode or (Stage((0, 12), ("b/2", "b/3")),), 64, "decode"),
        ServingPipeline("d1", (Stage((0, 12), ("a/2", "a/3")),), 64, "decode"),
        ServingPipeline("r0", (Stage((0, 12), ("c/7",)),), 16, "both"),
    )
    routes = (
        *(Route(None, name, share) for name, share in (("p0", 0.5), ("p1", 0.3), ("r0", 0.2))),
        *(Route("p0", name, share) for name, share in (("d0", 0.6), ("d1", 0.4))),
        Route("p1", "d1", 1.0),
    )
    return ServingPlan(model, ServingLoad(), pipelines, routes)


def calls_of(script: str, files: dict[str, str], folder: Path, **variables: str) -> list[str]:
    """What a script starts, sorted."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("python3", "vllm", "vllm-router"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    (folder / script).write_text(files[script])
    calls = folder / "calls"
    calls.write_text("")
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(calls), "MODEL": "a model", **variables}
    subprocess.run(["sh", str(folder / script)], env=environment, check=True, timeout=20)
    return sorted(" ".join(line.split()) for line in calls.read_text().splitlines())


@pytest.mark.parametrize("router", ["sglang", "vllm"])
def test_each_route_has_a_router_and_its_share(router: str, tmp_path: Path) -> None:
    files = SERVING_EXPORTERS["nginx"](plan())
    found = re.findall(r"server (\S+) weight=(\d+)", files["nginx.conf"])
    assert found == [("c:8000", "2"), ("127.0.0.1:9000", "3"), ("127.0.0.1:9001", "2"), ("127.0.0.1:9002", "3")]
    started = calls_of("handover.sh", files, tmp_path, PD_ROUTER=router)
    assert len(started) == 3
    for line, port, prefill, bootstrap, decode in zip(
        started,
        ("9000", "9001", "9002"),
        ("a:8000", "a:8000", "b:8000"),
        (8998, 8998, 8998),
        ("b:8001", "a:8001", "a:8001"),
        strict=True,
    ):
        known = f" {bootstrap}" if router == "sglang" else ""
        assert f"--port {port} " in line
        assert line.endswith(f"--prefill http://{prefill}{known} --decode http://{decode}")
    assert "share of each pair is kept" in " ".join(files["README.txt"].split()).replace("the share of", "share of")


def test_sglang_is_started_as_it_documents(tmp_path: Path) -> None:
    files = SERVING_EXPORTERS["sglang"](plan())
    assert {"launch-a.sh", "launch-b.sh", "launch-c.sh", "handover.sh", "nginx.conf"} <= set(files)
    server = "-m sglang.launch_server --model-path a model --host 0.0.0.0"
    handed = "--disaggregation-transfer-backend nixl"
    assert calls_of("launch-b.sh", files, tmp_path) == [
        f"python3 0,1 5,7 {server} --port 8000 --dtype bfloat16 --tp-size 1 --pp-size 2 --max-running-requests 8 "
        f"--disaggregation-mode prefill {handed} --disaggregation-bootstrap-port 8998",
        f"python3 2,3 {server} --port 8001 --dtype bfloat16 --tp-size 2 --pp-size 1 --max-running-requests 64 "
        f"--disaggregation-mode decode {handed}",
    ]
    (alone,) = calls_of("launch-c.sh", files, tmp_path)
    assert alone.startswith(f"python3 7 {server} --port 8000 ")
    assert "disaggregation" not in alone


def test_sglang_on_two_nodes_meets_at_the_first(tmp_path: Path) -> None:
    apart = plan(prefill=(Stage((0, 6), ("a/0",)), Stage((6, 12), ("c/1",))))
    files = SERVING_EXPORTERS["sglang"](apart)
    for rank, node in enumerate("ac"):
        first, *_ = calls_of(f"launch-{node}.sh", files, tmp_path)
        assert first.endswith(f"--nnodes 2 --node-rank {rank} --dist-init-addr a:20000")


def test_vllm_is_started_with_its_connector(tmp_path: Path) -> None:
    files = SERVING_EXPORTERS["vllm"](plan())
    first, second = calls_of("launch-b.sh", files, tmp_path)
    assert first.startswith("vllm 0,1 5,7 serve a model --host 0.0.0.0 --port 8000 ")
    assert first.endswith('--kv-transfer-config {"kv_connector":"NixlConnector","kv_role":"kv_producer"}')
    assert second.endswith('--kv-transfer-config {"kv_connector":"NixlConnector","kv_role":"kv_consumer"}')
    assert "VLLM_NIXL_SIDE_CHANNEL_HOST=b VLLM_NIXL_SIDE_CHANNEL_PORT=5700" in files["launch-b.sh"]


@pytest.mark.parametrize(
    ("engine", "decode", "reason"),
    [
        ("sglang", (Stage((0, 6), ("b/2",)), Stage((6, 12), ("b/3",))), "d0 decodes in 2 stages"),
        ("vllm", (Stage((0, 6), ("b/2",)), Stage((6, 12), ("b/3",))), "d0 decodes in 2 stages"),
    ],
)
def test_what_an_engine_can_not_run_is_refused(engine: str, decode: tuple[Stage, ...], reason: str) -> None:
    with pytest.raises(HetschedError, match=reason) as refused:
        SERVING_EXPORTERS[engine](plan(*decode))
    assert "--to nginx" in str(refused.value.hint)
    uneven = (Stage((0, 6), ("a/0",)), Stage((6, 12), ("a/4", "a/5")))
    with pytest.raises(HetschedError, match="p0 has stages of 1 and 2 GPUs"):
        SERVING_EXPORTERS[engine](plan(prefill=uneven))
