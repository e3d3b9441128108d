"""Plans side by side, for a person at a terminal of 80 columns or for a script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hetsched.cluster import Cluster
from hetsched.cost.base import Cost
from hetsched.plan import Compression, Plan
from hetsched.report.text import WIDTH, bullet, cut, gib, large, seconds
from hetsched.report.training_table import CAUSES, SCHEDULE_NAMES, cost_model_name

LONGEST_COLUMN, LONGEST_OF_TWO = 18, 26  # three of the one, or two of the other, beside the rows' names
EQUAL = 5e-3  # relative: closer times read as equal


@dataclass(frozen=True)
class Compared:
    """A plan with its price on its cluster; name: what it is called in the table; path: its file."""

    name: str
    path: str
    plan: Plan
    cluster: Cluster
    cost_model: str
    cost: Cost


def comparison_table(several: Sequence[Compared], emphasise: Callable[[str], str] = str) -> str:
    """A column for each plan, and what makes them answers to different questions."""
    return side_by_side(_rows(several), differences(several), emphasise)


def side_by_side(
    rows: Sequence[tuple[str, list[str]]], notes: Sequence[str], emphasise: Callable[[str], str] = str
) -> str:
    """Named rows of a cell for each plan, the first of which has their names, and notes below.

    In several tables where 80 columns are too few; the first plan stands in each of them.
    """
    count = len(rows[0][1])
    widths = [max(len(cells[k]) for _, cells in rows) for k in range(count)]
    label = max(len(name) for name, _ in rows)
    tables, others = [], list(range(1, count))
    while True:
        chosen, used = [0], label + 2 + widths[0]
        while others and (len(chosen) == 1 or used + 2 + widths[others[0]] <= WIDTH):
            used += 2 + widths[others[0]]
            chosen.append(others.pop(0))
        lines = [
            "  ".join([name.ljust(label), *(cells[k].ljust(widths[k]) for k in chosen)]).rstrip()
            for name, cells in rows
            if any(cells[k] for k in chosen)
        ]
        tables.append("\n".join([emphasise(lines[0]), *lines[1:]]))
        if not others:
            break
    return "\n\n".join([*tables, *(["\n".join(bullet(note) for note in notes)] if notes else [])])


def comparison_json(several: Sequence[Compared]) -> dict[str, Any]:
    """The same as one document."""
    first = several[0].cost.iteration_s
    return {
        "plans": [
            {
                "name": one.name,
                "path": one.path,
                "model": one.plan.model.name,
                "cluster": one.cluster.name,
                "cost_model": one.cost_model,
                "predicted": one.cost.predicted(),
                "iteration_relative_to_first": one.cost.iteration_s / first if first else None,
                **_shape(one.plan),
                "gpus_used": _used(one.plan),
                "gpus": len(one.cluster.devices),
                "solver": one.plan.provenance.get("solver"),
                "seed": one.plan.provenance.get("seed"),
            }
            for one in several
        ],
        "notes": differences(several),
    }


def differences(several: Sequence[Compared]) -> list[str]:
    """What makes the plans answers to different questions."""
    found = unlike(
        ("for different models", [one.plan.model.name for one in several]),
        ("for different clusters", [one.cluster.name for one in several]),
        ("priced by different cost models", [cost_model_name(one.cost_model) for one in several]),
    )
    batches = {(one.plan.workload.global_batch, one.plan.workload.seq_len) for one in several}
    if len(batches) > 1:
        found.append("the plans train on different batches: compare tokens/s, not iterations")
    return found


def unlike(*facts: tuple[str, Sequence[str]]) -> list[str]:
    """Of (what, a value for each plan), those whose values differ, in words."""
    return [
        f"the plans are {what}: {', '.join(dict.fromkeys(values))}" for what, values in facts if len(set(values)) > 1
    ]


def _shape(plan: Plan) -> dict[str, Any]:
    stages = [stage for _, _, stage in plan.stages]
    return {
        "pipelines": len(plan.pipelines),
        "stages": sorted({len(pipeline.stages) for pipeline in plan.pipelines}),
        "tensor_parallel": sorted({stage.tensor_parallel for stage in stages}),
        "micro_batch": plan.workload.micro_batch,
        "schedule": plan.options.schedule,
        "recompute": plan.options.recompute,
        "zero": plan.options.zero,
    }


def _used(plan: Plan) -> int:
    return sum(len(pipeline.devices) for pipeline in plan.pipelines)


def _rows(several: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    first = several[0].cost
    longest = LONGEST_COLUMN if len(several) > 2 else LONGEST_OF_TWO

    def row(name: str, cell: Callable[[Compared], str]) -> tuple[str, list[str]]:
        return name, [cut(cell(one), longest) for one in several]

    rows = [
        row("", lambda one: one.name),
        row("model", lambda one: one.plan.model.name),
        row("cluster", lambda one: one.cluster.name),
        row("iteration", lambda one: seconds(one.cost.iteration_s)),
        row("against the first", lambda one: "" if one is several[0] else _against(one.cost, first)),
        row("tokens/s", lambda one: large(one.cost.tokens_per_s)),
        row("MFU", lambda one: f"{one.cost.mfu:.1%}"),
        row("$ an hour", lambda one: _usd(one.cost.usd_per_hour, ".2f")),
        row("$ a million tokens", lambda one: _usd(one.cost.usd_per_million_tokens, ".4g")),
        row("GPUs used", lambda one: f"{_used(one.plan)} of {len(one.cluster.devices)}"),
        row("pipelines", lambda one: str(len(one.plan.pipelines))),
        row("stages", lambda one: _range(_shape(one.plan)["stages"])),
        row("tensor parallel", lambda one: ", ".join(map(str, _shape(one.plan)["tensor_parallel"]))),
        row("global batch", lambda one: f"{one.plan.workload.global_batch} × {one.plan.workload.seq_len}"),
        row("micro-batch", lambda one: str(one.plan.workload.micro_batch)),
        row("schedule", lambda one: SCHEDULE_NAMES.get(one.plan.options.schedule, one.plan.options.schedule)),
        row("overlap", lambda one: "yes" if one.plan.options.overlap else "no"),
        row("recompute", lambda one: "yes" if one.plan.options.recompute else "no"),
        row("ZeRO", lambda one: str(one.plan.options.zero)),
        row("compression", _compression),
    ]
    causes = {cause for one in several for cause, spent in one.cost.breakdown_s.items() if spent > 0}
    for cause in (*(cause for cause in CAUSES if cause in causes), *sorted(causes - set(CAUSES))):
        rows.append((CAUSES.get(cause, cause), [_spent(one.cost, cause) for one in several]))
    rows.append(row("fullest GPU", _fullest))
    rows.append(row("fits", lambda one: "yes" if one.cost.feasible else f"no: {len(one.cost.violations)} GPUs"))
    rows.append(row("solver", lambda one: str(one.plan.provenance.get("solver", ""))))
    rows.append(row("seed", lambda one: str(one.plan.provenance.get("seed", ""))))
    rows.append(row("priced by", lambda one: one.cost_model))
    return rows


def _against(cost: Cost, first: Cost) -> str:
    """By tokens/s, so that unequal batches compare too."""
    ratio = cost.tokens_per_s / first.tokens_per_s
    if abs(ratio - 1) < EQUAL:
        return "equal"
    return f"{ratio:.2f}× as fast"


def _usd(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _compression(one: Compared) -> str:
    bits = one.plan.options.compression
    if bits == Compression():
        return ""
    return f"{bits.activation_bits}/{bits.activation_grad_bits}/{bits.grad_bits} bits"


def _spent(cost: Cost, cause: str) -> str:
    spent = cost.breakdown_s.get(cause, 0.0)
    return f"{seconds(spent)} {spent / (cost.iteration_s or 1.0):.0%}" if spent else ""


def _fullest(one: Compared) -> str:
    sizes = {name: one.cluster.device(name).gpu.memory_bytes for name in one.cost.memory_bytes}
    name = max(sizes, key=lambda name: one.cost.memory_bytes[name] / sizes[name])
    needed = one.cost.memory_bytes[name]
    return f"{gib(needed)}/{gib(sizes[name])} GiB {needed / sizes[name]:.0%}"
