"""Where each second and byte of a training plan goes, for a person at a terminal of 80 columns."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from hetsched.cost.explain import Explanation, LinkAccount, RingAccount, StageAccount
from hetsched.plan import Plan
from hetsched.report.text import bullet, columns, cut, gib, joined_ranges, seconds
from hetsched.report.training_table import breakdown

SHOWN_PIPELINES, SHOWN_STAGES, SHOWN_LINKS, SHOWN_RINGS = 6, 16, 12, 8
LONGEST_DEVICE, LONGEST_LINK = 11, 17
SHARES = {
    "works": "working_s",
    "held": "held_s",
    "waits": "waiting_s",
    "peers": "peers_s",
    "reduce": "reducing_s",
    "step": "optimizer_s",
    "idle": "idle_s",
}
SHOWN_SHARE = 0.005  # a column in which nothing rounds to 1 % is left out
MEMORY = {
    "weights": "weights",
    "grads": "gradients",
    "states": "optimizer_states",
    "activ.": "activations",
    "msgs": "messages",
    "logits": "logits",
    "reserve": "reserve",
}
TIME_WORDS = (
    "forward and backward: of one micro-batch (talks: what of both its GPUs talk, and ZeRO 3's gathers). The rest in "
    "shares of the iteration: works: passes; held: sending and receiving that the stage does not overlap; waits: for "
    "messages; peers: for others to join an all-reduce; reduce: all-reduces; step: the optimiser's; idle: at the end"
)

LINK_WORDS = (
    "takes: until a message is there; keeps: how long it keeps its way from others, with what crosses it there; busy: "
    "the share of the iteration for which it is kept"
)


def explanation_text(explanation: Explanation, plan: Plan, cluster: str, emphasise: Callable[[str], str] = str) -> str:
    """All of it; pipelines that read alike stand once, and what is too long is summarised. cluster: its name."""
    shown, hidden = _folded(explanation, plan)
    total = explanation.iteration_s or 1.0
    parts = [
        emphasise(f"{plan.model.name} on {cluster}: {seconds(explanation.iteration_s)} an iteration"),
        f"{emphasise('What limits it')}\n{bullet(explanation.limit[1])}\n{bullet('memory: ' + explanation.memory)}",
        f"{emphasise('What would help, if it were free')}\n{_levers(explanation)}",
        f"{emphasise('Where the time goes')}\n"
        + breakdown({"iteration_s": explanation.iteration_s, "breakdown_s": explanation.breakdown_s}),
        f"{emphasise('Time by stage')}\n{_times(shown, total)}{hidden}\n{bullet(TIME_WORDS, '  ')}",
        f"{emphasise('Memory by stage, in GiB on each GPU')}\n{_memory(shown)}{hidden}",
    ]
    names = {stages[0].pipeline for _, stages in shown}
    links = [link for link in explanation.links if link.pipeline in names]
    if links:
        parts.append(f"{emphasise('Messages between stages')}\n{_links(links, total)}")
    if explanation.rings:
        parts.append(f"{emphasise('Gradients')}\n{_rings(explanation.rings)}")
    return "\n\n".join(parts)


def _levers(explanation: Explanation) -> str:
    if not explanation.levers:
        return "  nothing by as much as 0.5%"
    rows = [
        (lever.what, seconds(lever.iteration_s), f"{explanation.iteration_s / lever.iteration_s:.2f}× faster")
        for lever in explanation.levers
    ]
    lines = [bullet(f"{time}, {gain}: {what}") for what, time, gain in rows]
    return "\n".join(lines)


def _folded(explanation: Explanation, plan: Plan) -> tuple[list[tuple[str, list[StageAccount]]], str]:
    """(label, stages of the first) of pipelines that read alike, and a line on those that are not shown."""
    lines = {name: list(stages) for name, stages in groupby(explanation.stages, key=lambda stage: stage.pipeline)}
    batches = {pipeline.name: pipeline.micro_batches for pipeline in plan.pipelines}
    alike: dict[tuple[object, ...], list[str]] = {}
    total = explanation.iteration_s or 1.0
    for name, stages in lines.items():
        key = tuple((*_time_cells(stage, total), stage.kind, stage.layers, len(stage.devices)) for stage in stages)
        alike.setdefault((batches[name], *key), []).append(name)
    shown = []
    for names in list(alike.values())[:SHOWN_PIPELINES]:
        joined = joined_ranges(names)
        label = joined if len(joined) <= 40 else f"{len(names)} pipelines like {names[0]}"
        shown.append((f"{label}: {batches[names[0]]} micro-batches{' each' * (len(names) > 1)}", lines[names[0]]))
    others = sum(map(len, list(alike.values())[SHOWN_PIPELINES:]))
    return shown, f"\n  and {others} more pipelines, in --json" if others else ""


def _time_cells(stage: StageAccount, total_s: float) -> list[str]:
    talks = stage.tensor_parallel_s + 2 * stage.gather_s
    cells = [seconds(stage.forward_s), seconds(stage.backward_s), seconds(talks) if talks else ""]
    return cells + [f"{getattr(stage, name) / total_s:.0%}" for name in SHARES.values()]


def _times(shown: Sequence[tuple[str, list[StageAccount]]], total_s: float) -> str:
    stages = [stage for _, line in shown for stage in line]
    kept = [any(getattr(stage, name) >= SHOWN_SHARE * total_s for stage in stages) for name in SHARES.values()]
    keep = [True, True, any(stage.tensor_parallel_s or stage.gather_s for stage in stages), *kept]
    heads = [head for head, here in zip(["forward", "backward", "talks", *SHARES], keep, strict=True) if here]
    return _blocks(
        shown,
        ["  stage", "blocks", *heads],
        lambda stage: [
            str(stage.layers[1] - stage.layers[0]),
            *(cell for cell, here in zip(_time_cells(stage, total_s), keep, strict=True) if here),
        ],
    )


def _memory(shown: Sequence[tuple[str, list[StageAccount]]]) -> str:
    def cells(stage: StageAccount) -> list[str]:
        device = cut(stage.devices[0], LONGEST_DEVICE)
        if len(stage.devices) > 1:
            several = f"×{len(stage.devices)}"
            device = cut(stage.devices[0], LONGEST_DEVICE - len(several)) + several
        parts = [gib(stage.memory_bytes[cause]) for cause in MEMORY.values()]
        return [device, *parts, gib(stage.needed_bytes), gib(stage.usable_bytes)]

    return _blocks(shown, ["  stage", "GPUs", *MEMORY, "needs", "usable"], cells)


def _blocks(
    shown: Sequence[tuple[str, list[StageAccount]]],
    heads: Sequence[str],
    cells: Callable[[StageAccount], list[str]],
) -> str:
    """A table with a line of its own above the stages of each pipeline."""
    rows: list[list[str]] = []
    above: dict[int, str] = {}
    for label, stages in shown:
        above[len(rows)] = label
        for stage in stages[:SHOWN_STAGES]:
            rows.append([f"  {stage.stage:>5}", *cells(stage)])
        if len(stages) > SHOWN_STAGES:
            rows.append([f"  and {len(stages) - SHOWN_STAGES} more stages, in --json"])
    lines = [*_aligned(heads, rows)]
    table = [lines[0]]
    for number, line in enumerate(lines[1:]):
        if number in above:
            table.append(f"  {above[number]}")
        table.append(line)
    return "\n".join(table)


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Cells to the right, but for names; a row of one cell is a remark."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(head), *(len(row[k]) for row in full)) for k, head in enumerate(heads)]
    for row in (heads, *rows):
        if len(row) == 1:
            yield row[0]
        else:
            cells = [
                cell.ljust(width) if head == "GPUs" else cell.rjust(width)
                for cell, width, head in zip(row, widths, heads, strict=True)
            ]
            yield " ".join(cells).rstrip()


def _links(links: Sequence[LinkAccount], total_s: float) -> str:
    """The links that are busy for longest, the slowest first; the rest counted."""
    ordered = sorted(links, key=lambda link: -link.messages * link.arrival_s)
    rows = [
        [
            f"  {cut(link.source_device, LONGEST_LINK)}",
            cut(link.target_device, LONGEST_LINK),
            f"{link.message_bytes / 2**20:.1f}",
            seconds(link.arrival_s),
            seconds(link.occupied_s),
            f"{link.messages * link.message_bytes / 2**30:.2f}",
            f"{link.messages * link.occupied_s / total_s:.0%}",
        ]
        for link in ordered[:SHOWN_LINKS]
    ]
    table = columns(["  from", "to", "MiB each", "takes", "keeps", "GiB", "busy"], rows)
    if len(ordered) > SHOWN_LINKS:
        table += f"\n  and {len(ordered) - SHOWN_LINKS} that are busy for less, in --json"
    return f"{table}\n{bullet(LINK_WORDS, '  ')}"


def _rings(rings: Sequence[RingAccount]) -> str:
    ordered = sorted(rings, key=lambda ring: -ring.seconds)
    rows = [
        [
            "  embedding" if ring.layers is None else f"  {ring.layers[0]}-{ring.layers[1] - 1}",
            str(len(ring.members)),
            f"{ring.size_bytes / 2**20:,.0f}",
            seconds(ring.seconds),
            " → ".join(cut(name, LONGEST_LINK) for name in ring.slowest_link),
        ]
        for ring in ordered[:SHOWN_RINGS]
    ]
    table = columns(["  blocks", "stages", "MiB", "takes", "slowest link"], rows)
    if len(ordered) > SHOWN_RINGS:
        table += f"\n  and {len(ordered) - SHOWN_RINGS} that are shorter, in --json"
    return table
