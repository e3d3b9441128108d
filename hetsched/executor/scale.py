"""A plan of the same shape with a model small enough for a CPU."""

from dataclasses import replace

from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Plan

HEAD_DIM = 8
MICRO_BATCHES_A_PIPELINE = 4  # on average, where no batch is given


def scaled_plan(
    plan: Plan,
    *,
    hidden_size: int = 64,
    seq_len: int = 32,
    vocab_size: int = 256,
    global_batch: int | None = None,
    micro_batch: int = 1,
) -> Plan:
    """The plan with a small model: the same pipelines, stages, layers and options, and about the same batch shares.

    The FFN keeps its ratio to the hidden size, attention its ratio of query to key-value heads, in heads of 8.
    global_batch: sequences; None is 4 micro-batches a pipeline on average, or the plan's own count where that is less.
    Each pipeline keeps at least one micro-batch. Raises HetschedError where the batch is too small for that.
    """
    if min(hidden_size, seq_len, vocab_size, micro_batch) < 1:
        raise HetschedError("run: the scaled sizes must be at least 1")
    counts = [pipeline.micro_batches for pipeline in plan.pipelines]
    if global_batch is None:
        global_batch = min(sum(counts), MICRO_BATCHES_A_PIPELINE * len(counts)) * micro_batch
    shares = apportion(-(-global_batch // micro_batch), counts)
    return replace(
        plan,
        model=scaled_model(plan.model, hidden_size, seq_len, vocab_size),
        workload=replace(plan.workload, global_batch=global_batch, micro_batch=micro_batch, seq_len=seq_len),
        pipelines=tuple(
            replace(pipeline, micro_batches=share) for pipeline, share in zip(plan.pipelines, shares, strict=True)
        ),
        predicted={},
    )


def scaled_model(model: ModelSpec, hidden_size: int, seq_len: int, vocab_size: int) -> ModelSpec:
    """A model of the same make and depth with these sizes."""
    group = model.num_heads // model.num_kv_heads
    heads = max(hidden_size // HEAD_DIM // group, 1) * group
    spare_rows = model.position_rows - model.max_positions
    width = model.embedding_size
    return replace(
        model,
        name=f"{model.name}-scaled",
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=heads // group,
        head_dim=HEAD_DIM,
        ffn_size=max(round(model.ffn_size * hidden_size / model.hidden_size), 1),
        vocab_size=vocab_size,
        max_positions=seq_len,
        position_rows=seq_len + spare_rows if model.position_rows else 0,
        embedding_size=max(round(width * hidden_size / model.hidden_size), 1) if width else 0,
    )


def apportion(total: int, weights: list[int]) -> list[int]:
    """`total` in whole shares in proportion to `weights`, each at least 1 (largest remainders first)."""
    if total < len(weights):
        raise HetschedError(
            f"run: {total} micro-batches for {len(weights)} pipelines", hint="give a global batch of one each or more"
        )
    spare = total - len(weights)
    exact = [max(total * weight / sum(weights) - 1, 0.0) for weight in weights]
    scale = spare / sum(exact) if spare else 0.0
    shares = [int(share * scale) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: shares[k] - exact[k] * scale)
    for k in by_remainder[: spare - sum(shares)]:
        shares[k] += 1
    return [share + 1 for share in shares]
