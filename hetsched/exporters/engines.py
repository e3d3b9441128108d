"""Scripts that start a serving plan's replicas with SGLang or vLLM, and the router in front of them.

Both engines have one tensor-parallel degree for all stages of a replica. Options are those of SGLang 0.5 and vLLM 0.32:
a decode replica of SGLang has one stage, or as many as all prefill replicas that hand on to it; one of vLLM has one
stage; GPUs of a replica of vLLM stand in one node, of SGLang in equal numbers on its nodes.
"""

import json
from collections.abc import Callable

from hetsched.errors import HetschedError
from hetsched.exporters.handover import ENDS_TOGETHER, addresses, bootstrap_ports
from hetsched.exporters.nginx import PORT, export_nginx
from hetsched.plan import ServingPipeline, ServingPlan

FIRST_MEETING_PORT = 20000  # of the processes of an SGLang replica on several nodes
FIRST_SIDE_CHANNEL_PORT, APART = 5600, 100  # where vLLM's decode servers ask a prefill server for its KV
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

Lines = dict[str, list[str]]  # by node: what is started there


def export_sglang(plan: ServingPlan) -> dict[str, str]:
    """{file name: content}: `launch-<node>.sh` for each node beside what `export_nginx` writes.

    Raises HetschedError for replicas that SGLang can't run.
    """
    return _export(plan, "sglang", _sglang_refusal, _sglang)


def export_vllm(plan: ServingPlan) -> dict[str, str]:
    """As `export_sglang`, with vLLM. Raises HetschedError for replicas that vLLM can't run."""
    return _export(plan, "vllm", _vllm_refusal, _vllm)


def _export(
    plan: ServingPlan,
    engine: str,
    refusal: Callable[[ServingPlan, ServingPipeline], str | None],
    lines: Callable[[ServingPlan, int, ServingPipeline, int], Lines],
) -> dict[str, str]:
    files = export_nginx(plan)
    reasons = [f"{p.name} {reason}" for p in plan.pipelines if (reason := refusal(plan, p))]
    if (plan.options.weight_bits, plan.options.kv_bits) != (16, 16):
        reasons.append("it has quantised weights or KV cache, for which an engine needs a checkpoint of its own")
    if reasons:
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        raise HetschedError(
            f"export to {engine}: {'; '.join(reasons[:3])}{more}",
            hint="export --to nginx writes the router alone, for servers that you start by other means",
        )
    ports = {name: int(address.rpartition(":")[2]) for name, address in addresses(plan, PORT).items()}
    found: Lines = {}
    for number, pipeline in enumerate(plan.pipelines):
        for node, more_lines in lines(plan, number, pipeline, ports[pipeline.name]).items():
            found.setdefault(node, []).extend(more_lines)
    scripts = {f"launch-{node}.sh": _script(node, started) for node, started in found.items()}
    router = files.pop("README.txt").replace("PD_ROUTER=sglang sh", f"PD_ROUTER={engine} sh")
    return {**scripts, **files, "README.txt": _readme(plan, engine, list(scripts)) + router}


def _degree(plan: ServingPlan, pipeline: ServingPipeline) -> str | None:
    """Why its stages do not suit either engine."""
    degrees = {stage.tensor_parallel for stage in pipeline.stages}
    if len(degrees) > 1:
        return f"has stages of {' and '.join(map(str, sorted(degrees)))} GPUs, and the engine has one degree for all"
    return None


def _sglang_refusal(plan: ServingPlan, pipeline: ServingPipeline) -> str | None:
    if _takes_in(plan, pipeline) and pipeline.role == "both":
        return "prefills requests and takes in KV caches too, which SGLang's servers do not"
    counts = {len(devices) for devices in _by_node(pipeline).values()}
    if len(counts) > 1:
        return "has more GPUs on one of its nodes than on another, which SGLang has not"
    depths = {
        len(source.stages)
        for route in plan.routes
        for source in plan.pipelines
        if route.target == pipeline.name and route.source == source.name
    }
    if pipeline.role == "decode" and len(pipeline.stages) > 1 and depths != {len(pipeline.stages)}:
        return (
            f"decodes in {len(pipeline.stages)} stages, and SGLang wants one, or as many as its prefill replicas have"
        )
    return _degree(plan, pipeline)


def _vllm_refusal(plan: ServingPlan, pipeline: ServingPipeline) -> str | None:
    if _takes_in(plan, pipeline) and len(pipeline.stages) > 1:
        return f"decodes in {len(pipeline.stages)} stages, and vLLM takes in KV caches with one only"
    if len(_by_node(pipeline)) > 1:
        return "stands on several nodes, for which vLLM needs a Ray cluster"
    return _degree(plan, pipeline)


def _takes_in(plan: ServingPlan, pipeline: ServingPipeline) -> bool:
    """Whether KV caches come to it."""
    return any(route.source is not None and route.target == pipeline.name for route in plan.routes)


def _by_node(pipeline: ServingPipeline) -> dict[str, list[str]]:
    """Indices of GPUs by node, in the order of the stages."""
    found: dict[str, list[str]] = {}
    for name in pipeline.devices:
        node, _, index = name.rpartition("/")
        found.setdefault(node, []).append(index)
    return found


def _layers(pipeline: ServingPipeline) -> str:
    return ",".join(str(stage.num_layers) for stage in pipeline.stages)


def _sglang(plan: ServingPlan, number: int, pipeline: ServingPipeline, port: int) -> Lines:
    nodes, depth = _by_node(pipeline), len(pipeline.stages)
    options = [
        f'--model-path "$MODEL" --host 0.0.0.0 --port {port} --dtype {DTYPES[plan.workload.dtype]}',
        f"--tp-size {pipeline.stages[0].tensor_parallel} --pp-size {depth} --max-running-requests {pipeline.max_batch}",
    ]
    if pipeline.role != "both":
        options.append(f'--disaggregation-mode {pipeline.role} --disaggregation-transfer-backend "$KV_BACKEND"')
    if pipeline.role == "prefill":
        options.append(f"--disaggregation-bootstrap-port {bootstrap_ports(plan)[pipeline.name]}")
    first = next(iter(nodes))
    found: Lines = {}
    for rank, (node, indices) in enumerate(nodes.items()):
        among = []
        if len(nodes) > 1:
            meeting = f"--dist-init-addr {first}:{FIRST_MEETING_PORT + APART * number}"
            among = [f"--nnodes {len(nodes)} --node-rank {rank} {meeting}"]
        layers = f"SGLANG_PP_LAYER_PARTITION={_layers(pipeline)} " if depth > 1 else ""
        variables = f"{layers}CUDA_VISIBLE_DEVICES={','.join(indices)}"
        found[node] = [_command(pipeline, variables, "python3 -m sglang.launch_server", [*options, *among])]
    return found


def _vllm(plan: ServingPlan, number: int, pipeline: ServingPipeline, port: int) -> Lines:
    ((node, indices),) = _by_node(pipeline).items()
    depth = len(pipeline.stages)
    variables = f"CUDA_VISIBLE_DEVICES={','.join(indices)}"
    if depth > 1:
        variables = f"VLLM_PP_LAYER_PARTITION={_layers(pipeline)} {variables}"
    options = [
        f"--host 0.0.0.0 --port {port} --dtype {DTYPES[plan.workload.dtype]}",
        f"--tensor-parallel-size {pipeline.stages[0].tensor_parallel} --pipeline-parallel-size {depth}",
        f"--max-num-seqs {pipeline.max_batch}",
    ]
    if pipeline.role != "both" or _takes_in(plan, pipeline):
        side = FIRST_SIDE_CHANNEL_PORT + APART * number
        variables = f"VLLM_NIXL_SIDE_CHANNEL_HOST={node} VLLM_NIXL_SIDE_CHANNEL_PORT={side} {variables}"
        role = {"prefill": "kv_producer", "decode": "kv_consumer", "both": "kv_both"}[pipeline.role]
        settings = json.dumps({"kv_connector": "NixlConnector", "kv_role": role}, separators=(",", ":"))
        options.append(f"--kv-transfer-config '{settings}'")
    return {node: [_command(pipeline, variables, 'vllm serve "$MODEL"', options)]}


def _command(pipeline: ServingPipeline, variables: str, program: str, options: list[str]) -> str:
    lines = " \\\n    ".join([f"{variables} {program}", *options])
    return f'# {pipeline.name}, {pipeline.role}\n{lines} "$@" &\npids="$pids $!"\n'


def _script(node: str, started: list[str]) -> str:
    commands = "\n".join(started)
    return f"""#!/bin/sh
# What runs on {node}. Options given here go to all its servers.
set -eu
: "${{MODEL:?set it to a folder or a Hugging Face name}}"
KV_BACKEND="${{KV_BACKEND:-nixl}}"
export KV_BACKEND
{ENDS_TOGETHER}
{commands}
wait
"""


def _readme(plan: ServingPlan, engine: str, scripts: list[str]) -> str:
    name = {"sglang": "SGLang", "vllm": "vLLM"}[engine]
    listed = "\n".join(f"  MODEL=... sh {script}" for script in scripts)
    handed = {
        "sglang": "KV caches go by the NIXL back end of SGLang; KV_BACKEND=mooncake, or mooncake_tcp over plain TCP, "
        "for another.",
        "vllm": "KV caches go by vLLM's NixlConnector (pip install nixl).",
    }[engine]
    return f"""Servers of {" ".join(plan.model.name.split())} by the plan in plan.json, with {name}.

Each on its own node, MODEL being the model's folder or its Hugging Face name; they end when the script does:

{listed}
{chr(10) + handed + chr(10) if plan.disaggregated else ""}
"""
