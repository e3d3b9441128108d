"""A finished training plan for a person at a terminal of 80 columns."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from hetsched.cluster import Cluster
from hetsched.plan import Compression, Plan
from hetsched.report.placement import placement
from hetsched.report.text import bar, bullet, columns, gib, large, seconds

SHOWN_VIOLATIONS = 4
SHOWN_NOTES = 6
SAME = 0.005  # relative: what a person need not be told of
CAUSES = {
    "compute": "computing",
    "tensor_parallel": "tensor parallel",
    "pipeline_parallel": "pipeline links",
    "bubble": "pipeline bubble",
    "data_parallel": "gradient all-reduce",
    "optimizer": "optimiser step",
}
COST_MODEL_NAMES = {
    "roofline": "the roofline model",
    "dtfm": "DT-FM's formula",
    "flashflex": "FlashFlex's formulas",
}
SCHEDULE_NAMES = {"1f1b": "1F1B", "gpipe": "GPipe"}


def training_table(plan: Plan, cluster: Cluster, emphasise: Callable[[str], str] = str) -> str:
    """The plan in words and columns. `plan.predicted` must be filled; `emphasise` marks headings (bold, say)."""
    predicted = plan.predicted
    parts = [
        _headline(plan, cluster, emphasise),
        f"{emphasise('What is where')}\n{placement(plan, cluster)}",
        f"{emphasise('Where the time goes')}\n{breakdown(predicted)}",
        f"{emphasise('Memory')}\n{_memory(plan, cluster)}",
        _comparison(plan, emphasise),
        _notes(predicted, emphasise),
    ]
    return "\n\n".join(part for part in parts if part)


def cost_model_name(name: str) -> str:
    """What a cost model is called in a sentence."""
    return COST_MODEL_NAMES.get(name, name)


def _headline(plan: Plan, cluster: Cluster, emphasise: Callable[[str], str]) -> str:
    predicted, job = plan.predicted, plan.workload
    used = sum(len(pipeline.devices) for pipeline in plan.pipelines)
    lines = [emphasise(f"{plan.model.name} on {cluster.name}: {seconds(predicted['iteration_s'])} an iteration")]
    if predicted["breakdown_s"].get("compute"):
        figures = [f"{large(predicted['tokens_per_s'])} tokens/s", f"MFU {predicted['mfu']:.1%}"]
    else:
        figures = ["communication alone: computing is not counted"]
    if predicted.get("usd_per_hour") is not None:
        figures += [
            f"${predicted['usd_per_hour']:.2f} an hour",
            f"${predicted['usd_per_million_tokens']:.4g} a million tokens",
        ]
    lines.append("  " + ", ".join(figures))
    lines.append(
        f"  {used} of {len(cluster.devices)} GPUs, {_pipelines(plan)}; {job.global_batch} "
        f"sequence{'s' * (job.global_batch > 1)} of {job.seq_len} tokens"
    )
    lines.append(f"  {_options(plan)}")
    name = plan.provenance.get("cost_model")
    if name:
        lines.append(f"  predicted by {cost_model_name(str(name))}{_simulated(predicted)}")
    lines += _bound(plan)
    for violation in predicted.get("violations", ())[:SHOWN_VIOLATIONS]:
        lines.append(emphasise(bullet(violation["message"], "  DOES NOT FIT: ")))
    hidden = len(predicted.get("violations", ())) - SHOWN_VIOLATIONS
    if hidden > 0:
        lines.append(emphasise(f"  DOES NOT FIT: {hidden} more GPUs"))
    return "\n".join(lines)


def _simulated(predicted: Mapping[str, Any]) -> str:
    """What the simulation says, where it says something else."""
    simulated_s, total = predicted.get("simulated_iteration_s"), predicted["iteration_s"]
    if not simulated_s or abs(simulated_s / total - 1.0) < SAME:
        return ""
    return f"; played event by event {seconds(simulated_s)} ({simulated_s / total - 1:+.1%})"


def _bound(plan: Plan) -> list[str]:
    """A line on what no plan can beat, where that is known."""
    bound_s, taken_s = plan.predicted.get("lower_bound_iteration_s") or 0.0, plan.predicted["iteration_s"]
    if not bound_s or not math.isfinite(bound_s):
        why = str(plan.predicted.get("lower_bound_because") or "")
        return [f"  {why}"] if why.startswith("no bound") else []
    where = " on the nodes rented" if "budget_usd_per_hour" in plan.provenance else ""
    fixed = _fixed(plan)
    line = f"  no plan{where}{' so fixed' * bool(fixed)} takes less than {seconds(bound_s)}"
    if plan.provenance.get("objective") == "cost":
        return [*fixed, f"{line}; the search was for the cheapest"]
    return [*fixed, f"{line}: at most {max(0.0, taken_s / bound_s - 1):.0%} above any plan's bound"]


def _fixed(plan: Plan) -> list[str]:
    """A line on what the user fixed, as the options are called, if anything: the bound is on such plans alone."""
    words, fixed = [], plan.provenance.get("fixed")
    for name, value in fixed.items() if isinstance(fixed, Mapping) else ():
        option = name.replace("_", "-")
        words.append(f"--{'no-' * (value is False)}{option}{'' if isinstance(value, bool) else f' {value}'}")
    return [f"  fixed by {' '.join(words)}"] if words else []


def _pipelines(plan: Plan) -> str:
    depths = {len(pipeline.stages) for pipeline in plan.pipelines}
    count = len(plan.pipelines)
    stages = f"{min(depths)}" if len(depths) == 1 else f"{min(depths)} to {max(depths)}"
    return f"{count} pipeline{'s' * (count > 1)} of {stages} stage{'s' * (depths != {1})}"


def _options(plan: Plan) -> str:
    options, job = plan.options, plan.workload
    words = [f"micro-batch {job.micro_batch}", job.dtype, SCHEDULE_NAMES.get(options.schedule, options.schedule)]
    words.append("activations recomputed" if options.recompute else "no recompute")
    words.append(f"ZeRO {options.zero}")
    if options.compression != Compression():
        bits = options.compression
        words.append(f"compressed to {bits.activation_bits}/{bits.activation_grad_bits}/{bits.grad_bits} bits")
    return ", ".join(words)


def breakdown(predicted: Mapping[str, Any]) -> str:
    """Seconds, shares and bars by cause; predicted: with `iteration_s` and `breakdown_s`."""
    total = predicted["iteration_s"] or 1.0
    rows = [(CAUSES.get(cause, cause), spent) for cause, spent in predicted["breakdown_s"].items() if spent > 0]
    if not rows:
        return "  nothing that this cost model counts takes time"
    return "\n".join(
        f"  {name:<20} {seconds(spent):>9} {spent / total:>6.1%}  {bar(spent / total)}".rstrip() for name, spent in rows
    )


def _memory(plan: Plan, cluster: Cluster) -> str:
    needed: Mapping[str, int] = plan.predicted["memory_bytes"]
    sizes = {name: cluster.device(name).gpu.memory_bytes for name in needed}
    kinds: dict[str, list[str]] = {}
    for name in needed:
        kinds.setdefault(cluster.device(name).gpu.kind, []).append(name)
    lines = []
    for kind, names in kinds.items():
        fullest = max(names, key=lambda name: needed[name] / sizes[name])
        share = needed[fullest] / sizes[fullest]
        lines.append(f"  fullest {kind}: {fullest}, {gib(needed[fullest])} of {gib(sizes[fullest])} GiB ({share:.0%})")
    limit = plan.provenance.get("memory_fraction")
    if isinstance(limit, int | float):
        lines[-1] += f"; {limit:.0%} may be used"
    return "\n".join(lines)


def _comparison(plan: Plan, emphasise: Callable[[str], str]) -> str:
    predicted = plan.predicted
    lines: list[str] = []
    prices = predicted.get("baselines_usd_per_million_tokens") or {}
    by_cost = plan.provenance.get("objective") == "cost" and predicted.get("usd_per_million_tokens") is not None
    rows = []
    for name, theirs in (predicted.get("baselines") or {}).items():
        if theirs is None:
            rows.append([f"  {name}", "does not fit", ""])
        elif by_cost and prices.get(name) is not None:
            price, other = predicted["usd_per_million_tokens"], prices[name]
            rows.append([f"  {name}", f"${other:.4g} a million tokens", _gain(other, price, "cheaper", "dearer")])
        else:
            rows.append([f"  {name}", seconds(theirs), _by_time(predicted, name)])
    if rows:
        table = columns(["  baseline", "", "this plan is"], rows)
        lines.append(f"{emphasise('Compared with')}\n{table}")
    if any(" slower" in row[2] or " dearer" in row[2] for row in rows):
        lines.append("a longer search may find better: --max-steps, --max-seconds, or another --solver")
    for name, iteration_s in (predicted.get("other_cost_models_iteration_s") or {}).items():
        alone = " (communication alone)" if name == "dtfm" else ""
        lines.append(f"under {cost_model_name(name)}: {seconds(iteration_s)}{alone}")
    return "\n".join(lines)


def _by_time(predicted: Mapping[str, Any], name: str) -> str:
    """By price; by what both take as played where the price has the plan slower, as it may be chosen for that."""
    theirs, mine = predicted["baselines"][name], predicted["iteration_s"]
    theirs_s = (predicted.get("baselines_simulated_iteration_s") or {}).get(name)
    mine_s = predicted.get("simulated_iteration_s")
    if theirs < mine and theirs_s and mine_s:
        return f"{_gain(theirs_s, mine_s, 'faster', 'slower')} as played"
    return _gain(theirs, mine, "faster", "slower")


def _gain(theirs: float, mine: float, better: str, worse: str) -> str:
    if not mine or not theirs:
        return ""
    ratio = theirs / mine
    if 0.995 < ratio < 1.005:
        return "equal"
    return f"{ratio:.2f}× {better}" if ratio > 1 else f"{1 / ratio:.2f}× {worse}"


def _notes(predicted: Mapping[str, Any], emphasise: Callable[[str], str]) -> str:
    notes = list(predicted.get("notes") or ())
    if not notes:
        return ""
    lines = [bullet(note) for note in notes[:SHOWN_NOTES]]
    if len(notes) > SHOWN_NOTES:
        lines.append(f"  and {len(notes) - SHOWN_NOTES} more, in the plan's JSON under predicted.notes")
    return "\n".join([emphasise("Assumed"), *lines])
