"""Runs a training plan as real torch processes: unequal pipelines, layers and batch shares.

Read in this order: shards, groups, compression, communication, tensor_parallel, model, schedule, stage, gradients,
reduction, train, check, launch. Only what runs inside a rank imports torch; `run_plan`, `check_plan` and `scaled_plan`
need it when they are called, not when they are imported.
"""

from hetsched.executor.launch import check_plan, run_plan
from hetsched.executor.scale import scaled_plan
from hetsched.executor.settings import CheckReport, RunReport, RunSettings, StepReport

__all__ = ["CheckReport", "RunReport", "RunSettings", "StepReport", "check_plan", "run_plan", "scaled_plan"]
