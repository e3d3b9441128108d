"""Solvers of serving problems: which GPUs make which replicas."""

from hetsched.solvers.serving.base import ServingSolver
from hetsched.solvers.serving.distserve import DistServe
from hetsched.solvers.serving.genetic import Genetic
from hetsched.solvers.serving.maxflow import MaxFlow
from hetsched.solvers.serving.pipeline_dp import PipelineDp
from hetsched.solvers.serving.uniform import Uniform

SERVING_SOLVERS: dict[str, ServingSolver] = {
    "genetic": Genetic(),
    "pipeline-dp": PipelineDp(),
    "maxflow": MaxFlow(),
    "uniform": Uniform(),
    "distserve": DistServe(),
}
