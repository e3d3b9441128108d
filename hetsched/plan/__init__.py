"""The plan: which blocks of a model run on which devices, and how; its checks and its JSON (`hetsched-plan/1`)."""

from hetsched.plan.layout import (
    FORMAT,
    ClusterReference,
    Layers,
    Stage,
    check_format,
    check_pipelines,
    devices_by_node,
    devices_of,
)
from hetsched.plan.serving import ROLES, Route, ServingOptions, ServingPipeline, ServingPlan, equal_routes
from hetsched.plan.training import FULL_BITS, SCHEDULES, WIRE_BITS, Compression, Options, Pipeline, Plan

AnyPlan = Plan | ServingPlan

__all__ = [
    "FORMAT",
    "FULL_BITS",
    "ROLES",
    "SCHEDULES",
    "WIRE_BITS",
    "AnyPlan",
    "ClusterReference",
    "Compression",
    "Layers",
    "Options",
    "Pipeline",
    "Plan",
    "Route",
    "ServingOptions",
    "ServingPipeline",
    "ServingPlan",
    "Stage",
    "check_format",
    "check_pipelines",
    "devices_by_node",
    "devices_of",
    "equal_routes",
]
