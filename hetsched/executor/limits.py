"""What this executor does not run, said before anything starts."""

from dataclasses import asdict

from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import WIRE_BITS, Plan

BYTES = 256  # tokens are bytes


def check_limits(plan: Plan) -> tuple[str, ...]:
    """What the run will do other than the plan says, in words. Raises HetschedError for what can't be run at all."""
    tokens = plan.workload.micro_batch * plan.workload.seq_len
    for pipeline, number, stage in plan.stages:
        degree, where = stage.tensor_parallel, f"run: pipeline {pipeline.name} stage {number}"
        if degree > min(plan.model.num_heads, plan.model.ffn_size):
            raise HetschedError(
                f"{where} has tensor-parallel degree {degree}, {plan.model.name} has {plan.model.num_heads} heads",
                hint="give a stage at most as many devices as the model has attention heads",
            )
        if degree > tokens:
            raise HetschedError(
                f"{where} has {degree} devices, a micro-batch has {tokens} tokens",
                hint="use longer sequences, or fewer devices in a stage",
            )
    refuse_experts(plan.model)
    if plan.model.vocab_size < BYTES:
        raise HetschedError(
            f"run: the vocabulary has {plan.model.vocab_size} tokens, and text is read as {BYTES} bytes",
            hint=f"use a vocabulary of {BYTES} or more",
        )
    if plan.workload.seq_len > plan.model.max_positions:
        raise HetschedError(
            f"run: sequences of {plan.workload.seq_len} tokens, and {plan.model.name} has "
            f"{plan.model.max_positions} positions",
            hint="use a shorter seq_len",
        )
    for name, bits in asdict(plan.options.compression).items():
        if bits not in WIRE_BITS:
            raise HetschedError(
                f"run: {name} is {bits}, and what is compressed has 2 to 8 bits",
                hint="use 2 to 8 bits, or 16 for none",
            )
    if plan.options.zero > 1:
        return (f"zero {plan.options.zero} is run as zero 1: optimiser states alone are sharded",)
    return ()


def refuse_experts(model: ModelSpec) -> None:
    """HetschedError where the model is a mixture of experts."""
    if model.num_experts:
        raise HetschedError(
            f"model {model.name} is a mixture of experts, which this version does not execute",
            hint="use a dense model",
        )
