"""Where each second and byte of a serving plan goes, for a person at a terminal of 80 columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import isfinite

from hetsched.cost.serving.accounts import (
    Growth,
    ReplicaAccount,
    RouteAccount,
    ServingExplanation,
    ServingStageAccount,
)
from hetsched.plan import ServingPlan
from hetsched.report.text import bullet, columns, cut, gib, joined_ranges, large, seconds

SHOWN_REPLICAS, SHOWN_STAGES, SHOWN_ROUTES, SHOWN_LIMITS = 8, 12, 16, 6
LONGEST, LONGEST_NAMES = 22, 12
LEAST_MORE = 0.001  # of the plan's rate: a gain of less is none
CAUSES = {
    "weights": ("matrices", "blocks"),
    "attn": ("attention",),
    "KV": ("kv_read",),
    "talk": ("all_reduce", "embedding_all_reduce"),
    "start": ("launches",),
    "rest": ("elementwise", "head"),
    "hop": ("hop",),
}
WORDS = (
    "busy: whenever a request is in flight; weights: products with them (C: bound by arithmetic, M: by memory); "
    "attn: attention of the prompt; KV: reading the cache; talk: all-reduces; start: of kernels, by block; rest: "
    "norms, the LM head; hop: to the next stage, from the last back to the first"
)
Line = tuple[str, list[ServingStageAccount]]


def serving_explanation_text(
    found: ServingExplanation, plan: ServingPlan, cluster: str, emphasise: Callable[[str], str] = str
) -> str:
    """All of it; replicas that read alike stand once, and what is too long is summarised. cluster: its name."""
    roles = {replica.name: replica.role for replica in found.replicas}
    shown, hidden = _folded(found, roles)
    prompts, decodes = (
        [line for line in shown if roles[line[1][0].replica] != without] for without in ("decode", "prefill")
    )
    asked = "" if found.asked else ", where no rate is asked for"
    title = f"{plan.model.name} on {cluster}: at {large(found.requests_per_s)} requests/s{asked}"
    parts = [
        f"{emphasise(title)}\n  of {large(found.capacity_per_s)} that it could serve in a steady state by its routes",
        f"{emphasise('What limits it')}\n{bullet(found.limit)}",
        f"{emphasise('What would help, if it were free')}\n{_levers(found)}",
        f"{emphasise('What one more GPU of a kind would bring, its replica laid out anew')}\n{_growth(found.growth)}",
        f"{emphasise('Replicas')}\n{_replicas(found)}",
        f"{emphasise('A prompt of the mean length, by stage')}\n{_times(prompts, prompt=True)}{hidden}",
        f"{emphasise('A decode step, by stage')}\n{_times(decodes, prompt=False)}{hidden}\n{bullet(WORDS, '  ')}",
        f"{emphasise('Memory by stage, in GiB on each GPU')}\n{_memory(shown)}{hidden}",
    ]
    caches = [route for route in found.routes if route.source is not None]
    if caches:
        parts.append(f"{emphasise('KV caches on their way')}\n{_routes(caches)}")
    return "\n\n".join(parts)


def _levers(found: ServingExplanation) -> str:
    if not found.levers:
        return "  nothing by as much as 1%"
    lines = []
    for one in found.levers:
        gain = f", {one.capacity_per_s / found.capacity_per_s:.2f}×" if found.capacity_per_s else ""
        lines.append(bullet(f"{large(one.capacity_per_s)} requests/s{gain}: {one.what}"))
    return "\n".join(lines)


def _growth(found: Sequence[Growth]) -> str:
    if not found:
        return "  nothing is known of it"
    rows = []
    for growth in found:
        more = growth.after_per_s / growth.before_per_s - 1.0 if growth.before_per_s else 0.0
        to = f"to {growth.replica}" if growth.replica else "a replica of its own"
        rows.append(
            [
                f"  {growth.kind}",
                cut(growth.node, LONGEST),
                to if more >= LEAST_MORE else "-",
                f"{growth.before_per_s:.3g} → {growth.after_per_s:.3g}" if more >= LEAST_MORE else "no more",
                f"{more:+.1%}" if more >= LEAST_MORE else "",
            ]
        )
    return columns(["  kind", "on node", "goes", "requests/s", ""], rows)


def _replicas(found: ServingExplanation) -> str:
    arriving = {route.target: route.share for route in found.routes if route.source is None}
    alike: dict[tuple[str, ...], list[ReplicaAccount]] = {}
    for replica in found.replicas:
        load = replica.requests_per_s / replica.capacity_per_s if replica.capacity_per_s else 0.0
        key = (
            replica.role,
            f"{arriving[replica.name]:.1%}" if replica.name in arriving else "-",
            f"{replica.requests_per_s:.3g}",
            f"{load:.0%}",
            f"{replica.batch:.0f}",
            f"{replica.largest_batch:,}" + (" (KV)" if replica.kv_limits else ""),
            f"{replica.kv_capacity_tokens:,}",
        )
        alike.setdefault(key, []).append(replica)
    rows = [
        [f"  {_names([replica.name for replica in replicas])}", *key]
        for key, replicas in list(alike.items())[:SHOWN_REPLICAS]
    ]
    heads = ["  replica", "does", "share", "requests/s", "load", "in flight", "at most", "KV tokens"]
    table = columns(heads, rows)
    if len(alike) > SHOWN_REPLICAS:
        table += f"\n  and {len(alike) - SHOWN_REPLICAS} more kinds of replicas, in --json"
    limits: dict[str, list[str]] = {}
    for replica in found.replicas:
        limits.setdefault(replica.limit[1], []).append(replica.name)
    lines = [bullet(f"{_names(names)}: {words}") for words, names in list(limits.items())[:SHOWN_LIMITS]]
    return "\n".join([table, "  limited by", *lines])


def _names(names: Sequence[str]) -> str:
    joined = joined_ranges(names)
    return joined if len(joined) <= LONGEST_NAMES else f"{len(names)} like {names[0]}"


def _folded(found: ServingExplanation, roles: Mapping[str, str]) -> tuple[list[Line], str]:
    """(label, stages of the first) of replicas that read alike, and a line on those that are not shown."""
    lines = {name: list(stages) for name, stages in groupby(found.stages, key=lambda stage: stage.replica)}
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, stages in lines.items():
        key = tuple(
            (stage.kind, len(stage.devices), stage.layers, *_cells(stage, True), *_cells(stage, False))
            for stage in stages
        )
        alike.setdefault((roles[name], *key), []).append(name)
    shown = [(_names(names), lines[names[0]]) for names in list(alike.values())[:SHOWN_REPLICAS]]
    others = sum(map(len, list(alike.values())[SHOWN_REPLICAS:]))
    return shown, f"\n  and {others} more replicas, in --json" if others else ""


def _cells(stage: ServingStageAccount, prompt: bool) -> list[str]:
    """What a step takes, and the share of each cause."""
    parts: Mapping[str, float] = stage.prefill_s if prompt else stage.decode_s
    total = sum(parts.values())
    cells = [seconds(total)]
    for label, causes in CAUSES.items():
        share = sum(parts.get(cause, 0.0) for cause in causes) / total if total else 0.0
        bound = "" if label != "weights" else " C" if stage.computes[0 if prompt else 1] else " M"
        cells.append(f"{share:.0%}{bound}" if share >= 0.005 else "")
    return cells


def _times(shown: Sequence[Line], prompt: bool) -> str:
    cells = [(stage, _cells(stage, prompt)) for _, stages in shown for stage in stages]
    keep = [True, *(any(row[k + 1] for _, row in cells) for k in range(len(CAUSES)))]
    heads = [head for head, here in zip(["takes", *CAUSES], keep, strict=True) if here]
    rows = {id(stage): [cell for cell, here in zip(row, keep, strict=True) if here] for stage, row in cells}
    return _blocks(
        shown,
        ["blocks" if prompt else "busy", *heads],
        lambda stage: [str(stage.layers[1] - stage.layers[0]) if prompt else f"{stage.busy:.0%}", *rows[id(stage)]],
    )


def _memory(shown: Sequence[Line]) -> str:
    def cells(stage: ServingStageAccount) -> list[str]:
        held, room = stage.kv_held_bytes, stage.kv_room_bytes
        fixed = [gib(stage.weights_bytes), gib(stage.workspace_bytes), gib(stage.reserve_bytes)]
        full = f"{held / room:.0%}" if room > 0.0 else "no room"
        return [*fixed, gib(room), gib(held), full]

    return _blocks(shown, ["weights", "work", "reserve", "KV room", "KV held", "full"], cells)


def _blocks(shown: Sequence[Line], heads: Sequence[str], cells: Callable[[ServingStageAccount], list[str]]) -> str:
    """A table whose first column says which stage: with its replica's name, its GPUs."""
    rows = []
    for label, stages in shown:
        for stage in stages[:SHOWN_STAGES]:
            gpus = f"{len(stage.devices)} × {stage.kind.partition('-')[0]}" if stage.kind.count("-") < 2 else ""
            gpus = gpus or f"{len(stage.devices)} × {'-'.join(stage.kind.split('-')[:2])}"
            rows.append([f"  {label if stage.stage == 0 else ''}", str(stage.stage), gpus, *cells(stage)])
        if len(stages) > SHOWN_STAGES:
            rows.append([f"  and {len(stages) - SHOWN_STAGES} more stages, in --json"])
    return "\n".join(_aligned(["  replica", "stage", "GPUs", *heads], rows))


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Names to the left, figures to the right; a row of one cell is a remark."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(head), *(len(row[k]) for row in full)) for k, head in enumerate(heads)]
    for row in (heads, *rows):
        if len(row) == 1:
            yield row[0]
            continue
        cells = [
            cell.ljust(width) if head.strip() in ("replica", "GPUs") else cell.rjust(width)
            for cell, width, head in zip(row, widths, heads, strict=True)
        ]
        yield " ".join(cells).rstrip()


def _routes(routes: Sequence[RouteAccount]) -> str:
    """The fullest first."""
    ordered = sorted(routes, key=lambda route: -route.requests_per_s / route.most_per_s if route.most_per_s else 0.0)
    rows = [
        [
            f"  {route.source} → {route.target}",
            f"{route.share:.0%}",
            f"{route.requests_per_s:.3g}",
            f"{route.kv_bytes / 2**20:,.0f}",
            seconds(route.kv_s),
            f"{route.most_per_s:.3g}" if isfinite(route.most_per_s) else "-",
            "its links" if route.limit == "links" else f"{route.target}",
        ]
        for route in ordered[:SHOWN_ROUTES]
    ]
    table = columns(["  route", "share", "requests/s", "MiB each", "take", "at most", "limited by"], rows)
    if len(ordered) > SHOWN_ROUTES:
        table += f"\n  and {len(ordered) - SHOWN_ROUTES} that are less full, in --json"
    return table
