"""What `hetsched estimate` prints: a replica's figures in words, or a table of several."""

from collections.abc import Callable, Sequence

from hetsched.cluster import Gpu
from hetsched.cost.serving.estimate import Estimate
from hetsched.model import ModelSpec
from hetsched.report.text import columns, gib, large, seconds

Row = tuple[int, int, Estimate]  # tensor-parallel degree, stages, and the figures


def estimate_table(
    model: ModelSpec, gpu: Gpu, rows: Sequence[Row], memory_fraction: float, emphasise: Callable[[str], str] = str
) -> str:
    """All rows; a single one in words."""
    usable = gpu.memory_bytes * memory_fraction
    body = _single(gpu, rows[0], usable) if len(rows) == 1 else _several(rows)
    first = rows[0][2]
    title = f"{model.name} on {gpu.kind}: prompts of {first.input_tokens:,} tokens, outputs of {first.output_tokens:,}"
    notes = []
    if gpu.serving is None:
        notes.append(f"What kernels reach on {gpu.kind} was not measured: a default is taken.")
    if len(rows) > 1 and not all(row.fits for _, _, row in rows):
        notes.append(f"Where it does not fit: {gib(usable)} GiB of a GPU may be used.")
    return "\n\n".join([emphasise(title) + "\n" + body, *notes])


def _single(gpu: Gpu, row: Row, usable: float) -> str:
    degree, depth, one = row
    fits = "fits" if one.fits else "DOES NOT FIT"
    lines = [
        ("GPUs", f"{degree * depth} ({depth} stages of tensor parallel {degree})" if depth > 1 else f"{degree}"),
        ("prefill", f"{seconds(one.prefill_s)} for a batch of {one.batch:,}"),
        ("time per token", f"{one.token_s * 1e3:.2f} ms at a batch of {one.batch:,}"),
        ("output", f"{large(one.output_tokens_per_s)} tokens/s, prefill included"),
        ("steady state", f"{one.steady_requests_per_s:.3g} requests/s with {one.batch} in flight, if they fit"),
        ("memory", f"{gib(one.memory_bytes)} GiB of {gib(usable)} usable on the fullest GPU: {fits}"),
        ("largest batch", f"{one.max_batch:,} such requests"),
    ]
    return "\n".join(f"  {name:<15} {value}" for name, value in lines)


def _several(rows: Sequence[Row]) -> str:
    heads = ["TP", "PP", "batch", "prefill", "ms/token", "tokens/s", "req/s", "GiB/GPU", "largest", "fits"]
    cells = [
        [
            degree,
            depth,
            one.batch,
            seconds(one.prefill_s),
            f"{one.token_s * 1e3:.2f}",
            f"{one.output_tokens_per_s:,.0f}",
            f"{one.steady_requests_per_s:.3g}",
            gib(one.memory_bytes),
            one.max_batch,
            "yes" if one.fits else "NO",
        ]
        for degree, depth, one in rows
    ]
    return columns(heads, cells)
