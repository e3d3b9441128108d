"""A simulated iteration in Chrome's trace format, for Perfetto and chrome://tracing.

A process for each pipeline, a thread for each stage, and one for each direction of each link between stages. Format:
"Trace Event Format", complete events (`ph: X`) with `ts` and `dur` in microseconds, and metadata (`ph: M`).
"""

import json
from collections.abc import Iterator
from typing import Any

from hetsched.plan import Plan
from hetsched.simulate.stages import Event
from hetsched.simulate.training import Simulation

MICROSECONDS = 1e6
NUMBERS = {"all_reduce": "gradient_group", "gather": "gradient_group", "optimizer": None}  # else a micro-batch


def chrome_trace(simulation: Simulation) -> str:
    """The JSON document, an event a line. The simulation must have been told to record its events."""
    plan = simulation.placement.plan
    lines = [json.dumps(event, separators=(",", ":")) for event in _names(plan)]
    for event in simulation.events:
        lines.extend(_lines(event, len(plan.pipelines[event.pipeline].stages), plan.options.overlap))
    about = json.dumps({"model": plan.model.name, "iteration_s": simulation.iteration_s, "exact": simulation.exact})
    body = ",\n".join(lines)
    return f'{{"displayTimeUnit":"ms","otherData":{about},"traceEvents":[\n{body}\n]}}\n'


def _link_thread(depth: int, source: int, target: int) -> int:
    """Threads of links come after those of stages: there and back between stages 0 and 1, then 1 and 2, and so on."""
    return depth + 2 * min(source, target) + (source > target)


def _names(plan: Plan) -> Iterator[dict[str, Any]]:
    for number, pipeline in enumerate(plan.pipelines):
        depth = len(pipeline.stages)
        yield _named("process_name", number, 0, f"pipeline {pipeline.name}")
        for s, stage in enumerate(pipeline.stages):
            blocks = f"blocks {stage.layers[0]}-{stage.layers[1] - 1}"
            yield _named("thread_name", number, s, f"stage {s}: {', '.join(stage.devices)}, {blocks}")
        for s in range(depth - 1):
            for source, target in ((s, s + 1), (s + 1, s)):
                thread = _link_thread(depth, source, target)
                yield _named("thread_name", number, thread, f"link {source} to {target}")
        for thread in range(depth + 2 * (depth - 1)):
            args = {"sort_index": thread}
            yield {"ph": "M", "name": "thread_sort_index", "pid": number, "tid": thread, "args": args}


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _lines(event: Event, depth: int, overlap: bool) -> Iterator[str]:
    start, took = event.start_s * MICROSECONDS, (event.end_s - event.start_s) * MICROSECONDS
    key = NUMBERS.get(event.what, "micro_batch")
    args = f'{{"{key}":{event.number}}}' if key else "{}"
    threads = [event.stage]
    if event.to is not None:  # a message stands on its link, and on the stage where that waits for it
        link = _link_thread(depth, event.stage, event.to)
        threads = [link] if overlap else [event.stage, link]
    for thread in threads:
        yield (
            f'{{"ph":"X","name":"{event.what}","pid":{event.pipeline},"tid":{thread},"ts":{start:.3f},'
            f'"dur":{took:.3f},"args":{args}}}'
        )
