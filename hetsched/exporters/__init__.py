"""What starts a plan elsewhere: each exporter turns a plan into {file name: content}."""

from collections.abc import Callable

from hetsched.exporters.engines import export_sglang, export_vllm
from hetsched.exporters.nginx import export_nginx
from hetsched.exporters.torchrun import export_torchrun
from hetsched.plan import Plan, ServingPlan

EXPORTERS: dict[str, Callable[[Plan], dict[str, str]]] = {"torchrun": export_torchrun}
SERVING_EXPORTERS: dict[str, Callable[[ServingPlan], dict[str, str]]] = {
    "nginx": export_nginx,
    "sglang": export_sglang,
    "vllm": export_vllm,
}
