"""Serving plans: by hand, there and back, and what is said of those that can't be."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hetsched.errors import HetschedError, HetschedWarning
from hetsched.plan import Plan, Route, ServingPlan
from hetsched.readers import read_any_plan, read_plan, read_serving_plan, write_plan
from hetsched.workload import Limit, TraceUse


def pipeline(name: str, role: str, device: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "max_batch": 4,
        "stages": [{"layers": [0, 12], "devices": [device]}],
        **more,
    }


def colocated(**changes: Any) -> dict[str, Any]:
    plan = {
        "format": "hetsched-plan/1",
        "kind": "serve",
        "model": "gpt2",
        "workload": {"isl": 100, "osl": 20},
        "pipelines": [
            {
                "max_batch": 8,
                "stages": [{"layers": [0, 5], "devices": ["a/0"]}, {"layers": [5, 12], "devices": ["b/0"]}],
            },
            {"max_batch": 2, "stages": [{"layers": [0, 12], "devices": ["a/1"]}]},
        ],
    }
    return json.loads(json.dumps(plan | changes))  # type: ignore[no-any-return]


def disaggregated(**changes: Any) -> dict[str, Any]:
    three = [pipeline("p0", "prefill", "a/0"), pipeline("d0", "decode", "a/1"), pipeline("d1", "decode", "b/0")]
    return colocated(**{"pipelines": three} | changes)


def route(source: str | None, target: str, share: float) -> dict[str, Any]:
    return {"source": source, "target": target, "share": share}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[dict[str, Any]], ServingPlan]:
    def make(data: dict[str, Any]) -> ServingPlan:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(data))
        return read_serving_plan(path)

    return make


def test_a_plan_by_hand_is_filled_in(read: Callable[..., ServingPlan]) -> None:
    plan = read(colocated())
    assert [(p.name, p.role, p.max_batch) for p in plan.pipelines] == [("r0", "both", 8), ("r1", "both", 2)]
    assert plan.routes == (Route(None, "r0", 0.5), Route(None, "r1", 0.5))
    assert plan.precision.weight_bits == plan.precision.kv_bits == 16
    assert not plan.disaggregated


def test_routes_of_prefill_pipelines_are_filled_in(read: Callable[..., ServingPlan]) -> None:
    plan = read(disaggregated())
    assert plan.shares(None) == {"p0": 1.0}
    assert plan.shares("p0") == {"d0": 0.5, "d1": 0.5}
    given = read(disaggregated(routes=[route("p0", "d0", 0.25), route("p0", "d1", 0.75)]))
    assert given.shares("p0") == {"d0": 0.25, "d1": 0.75}
    assert given.shares(None) == {"p0": 1.0}


def test_there_and_back(read: Callable[..., ServingPlan], tmp_path: Path) -> None:
    trace = {"name": "azure-2023-conv", "max_input_tokens": 2048, "seconds": 600}
    slo = {"ttft_ms": 500, "tpot_ms": 50, "tpot_percentile": 90, "scale": 5}
    workload = {"rate_per_s": 3, "trace": trace, "slo": slo, "dtype": "fp16"}
    options = {"weight_bits": 8, "kv_bits": 4, "chunked_prefill_tokens": 512}
    plan = read(disaggregated(workload=workload, options=options))
    assert plan.workload.trace == TraceUse("azure-2023-conv", max_input_tokens=2048, seconds=600.0)
    assert plan.workload.slo.limits == {"ttft": Limit(0.5), "tpot": Limit(0.05, 90.0), "scale": Limit(5.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_plan(plan, tmp_path / "again.json")
        assert read_serving_plan(tmp_path / "again.json") == plan
        assert read_any_plan(tmp_path / "again.json") == plan


def test_each_kind_where_the_other_is_needed(read: Callable[..., ServingPlan], tmp_path: Path) -> None:
    read(colocated())
    with pytest.raises(HetschedError, match="is a serving plan, a training plan is needed"):
        read_plan(tmp_path / "plan.json")
    training = colocated(kind="train", workload={"global_batch": 8})
    training["pipelines"] = [{"micro_batches": 8, "stages": [{"layers": [0, 12], "devices": ["a/0"]}]}]
    with pytest.raises(HetschedError, match="is a training plan, a serving plan is needed"):
        read(training)
    assert isinstance(read_any_plan(tmp_path / "plan.json"), Plan)


def test_an_unknown_key_warns(read: Callable[..., ServingPlan]) -> None:
    with pytest.warns(HetschedWarning, match=r"pipelines\[0\]: unknown key `micro_batches`"):
        read(colocated(pipelines=[pipeline("r0", "both", "a/0", micro_batches=3)]))


ONE = pipeline("r0", "both", "a/0")
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no max_batch": (
        colocated(pipelines=[{"stages": [{"layers": [0, 12], "devices": ["a/0"]}]}]),
        r"plan\.json: pipelines\[0\]: `max_batch` is missing",
    ),
    "max_batch of nothing": (colocated(pipelines=[ONE | {"max_batch": 0}]), "max_batch is 0, expected at least 1"),
    "a training role": (colocated(pipelines=[ONE | {"role": "train"}]), "role is 'train'"),
    "no pipelines": (colocated(pipelines=[]), "there are no pipelines"),
    "a block left out": (
        colocated(pipelines=[ONE | {"stages": [{"layers": [0, 11], "devices": ["a/0"]}]}]),
        "pipeline r0 ends at block 11, but gpt2 has 12 blocks",
    ),
    "a device twice": (
        colocated(pipelines=[ONE, pipeline("r1", "both", "a/0")]),
        "device a/0 is in pipeline r0 stage 0 and in pipeline r1 stage 0",
    ),
    "a name twice": (colocated(pipelines=[ONE, pipeline("r0", "both", "a/1")]), "two pipelines are named 'r0'"),
    "shares above one": (
        colocated(routes=[route(None, "r0", 0.7), route(None, "r1", 0.4)]),
        "the shares of arriving requests add up to 1.1, expected 1",
    ),
    "shares below one": (
        disaggregated(routes=[route("p0", "d0", 0.5), route("p0", "d1", 0.4)]),
        "the shares of pipeline p0 add up to 0.9, expected 1",
    ),
    "a share above one": (
        colocated(routes=[route(None, "r0", 1.5)]),
        r"routes\[0\]: share is the number 1.5, expected at most 1",
    ),
    "an unknown target": (
        colocated(routes=[route(None, "r0", 0.5), route(None, "r9", 0.5)]),
        r"routes\[1\]: no pipeline is named 'r9', its target",
    ),
    "an unknown source": (disaggregated(routes=[route("p9", "d0", 1)]), r"routes\[0\]: no pipeline is named 'p9'"),
    "a source that decodes": (disaggregated(routes=[route("d0", "d1", 1)]), "source d0 is a decode pipeline"),
    "arrivals to a decode": (disaggregated(routes=[route(None, "d0", 1)]), "target d0 is a decode pipeline"),
    "prefill to prefill": (
        disaggregated(
            pipelines=[
                pipeline("p0", "prefill", "a/0"),
                pipeline("p1", "prefill", "a/1"),
                pipeline("d0", "decode", "b/0"),
            ],
            routes=[route("p0", "p1", 1)],
        ),
        "target p1 is a prefill pipeline, and its requests need a decode",
    ),
    "a route twice": (colocated(routes=[route(None, "r0", 0.5), route(None, "r0", 0.5)]), "a route like it above"),
    "a pipeline without route": (colocated(routes=[route(None, "r0", 1)]), "no route leads to pipeline r1"),
    "no decode": (colocated(pipelines=[pipeline("p0", "prefill", "a/0")]), "p0 only prefills, and none decodes"),
    "no prefill": (colocated(pipelines=[ONE, pipeline("d0", "decode", "a/1")]), "d0 only decodes, and none prefills"),
    "odd bits": (colocated(options={"kv_bits": 6}), r"options: kv_bits is 6"),
    "an unknown dtype": (colocated(workload={"dtype": "fp8"}), "workload: dtype is 'fp8'"),
    "no tokens": (colocated(workload={"isl": 0}), "workload: isl is 0, expected at least 1"),
    "a rate of nothing": (colocated(workload={"rate_per_s": 0}), "rate_per_s is 0, expected a number greater than 0"),
    "a percentile of 120": (
        colocated(workload={"slo": {"ttft_ms": 1, "ttft_percentile": 120}}),
        "slo: ttft_percentile is 120",
    ),
    "a trace that is a number": (colocated(workload={"trace": 7}), "trace: expected a mapping"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said(read: Callable[..., ServingPlan], case: str) -> None:
    data, message = WRONG[case]
    with pytest.raises(HetschedError, match=message):
        read(data)
