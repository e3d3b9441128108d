"""A simulated serving plan for a person, and the life of one of its requests, also in Chrome's trace format."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from hetsched.report.serving_table import figures, latencies, notes, replica_loads, replicas, slo_line
from hetsched.report.text import bullet, columns, large, seconds
from hetsched.simulate.serving.job import Moment
from hetsched.simulate.serving.result import ServingRun

SHOWN_MOMENTS = 40
MICROSECONDS = 1e6
WORDS = {
    "queued": "waits to be taken in",
    "prefill": "prefill",
    "handoff": "its KV waits for room",
    "transfer": "its KV is sent to",
    "landed": "waits for a decode step",
    "decode": "decode",
    "preempted": "preempted: waits to be prefilled again",
}


def serving_simulation_table(
    run: ServingRun, predicted: Mapping[str, Any], cluster: str, rate: str, emphasise: Callable[[str], str] = str
) -> str:
    """What the simulation found. predicted: of `ServingRun.predicted`, with notes; rate: of what kind its rate is."""
    plan, requests = run.plan, run.requests
    offered = "all at once" if requests.rate_per_s == float("inf") else f"{requests.rate_per_s:.4g} a second"
    title = f"{plan.model.name} on {cluster}: {large(run.requests_per_s)} requests/s, played event by event"
    lines = [
        emphasise(title),
        bullet(rate, "  "),
        f"  {', '.join(figures(predicted))}",
        f"  {replicas(plan)}",
        bullet(
            f"{len(requests):,} requests ({requests.name}), {offered}: {requests.mean_input_tokens:,.0f} tokens in and "
            f"{requests.mean_output_tokens:,.0f} out on average; done after {seconds(run.span_s)}",
            "  ",
        ),
    ]
    if plan.workload.slo.limits:
        lines.append(bullet(slo_line(plan.workload.slo, predicted), "  "))
    if "highest_rate_per_s" in predicted:
        lines.append(f"  the limits hold at up to {predicted['highest_rate_per_s']:.3g} requests/s")
    rejected = int(run.rejected.sum())
    if rejected:
        lines.append(emphasise(f"  {rejected:,} requests are larger than the KV cache they came to, and were rejected"))
    parts = [
        "\n".join(lines),
        f"{emphasise('Latency')}\n{latencies(predicted)}",
        f"{emphasise('Load')}\n{replica_loads(predicted)}",
        notes(predicted, emphasise),
    ]
    return "\n\n".join(part for part in parts if part)


def request_life(run: ServingRun, number: int, emphasise: Callable[[str], str] = str) -> str:
    """The life of the request that was recorded, moment by moment."""
    requests, moments = run.requests, run.moments
    arrival_s = float(requests.arrival_s[number])
    head = (
        f"Request {number}: {requests.input_tokens[number]:,} tokens in, {requests.output_tokens[number]:,} out, "
        f"arrives at {arrival_s:.3f} s"
    )
    if run.rejected[number]:
        return f"{emphasise(head)}\n  rejected: it is larger than the KV cache it came to"
    rows = [_row(moment, arrival_s) for moment in moments[:SHOWN_MOMENTS]]
    text = columns(["  after", "for", "where", "what"], rows)
    if len(moments) > SHOWN_MOMENTS:
        text += f"\n  and {len(moments) - SHOWN_MOMENTS} more moments; --timeline writes all of them"
    tpot_s = float(run.tpot_s[number])
    ends = f"  first token after {seconds(float(run.ttft_s[number]))}, last after {seconds(float(run.e2e_s[number]))}"
    each = "" if math.isnan(tpot_s) else f", {seconds(tpot_s)} a token"
    return f"{emphasise(head)}\n{ends}{each}\n{text}"


def _row(moment: Moment, arrival_s: float) -> list[str]:
    what = WORDS[moment.what]
    if moment.what == "prefill":
        what += f" of {moment.tokens:,} tokens, {moment.batch} sequence{'s' * (moment.batch > 1)} in the step"
    elif moment.what == "decode":
        what += f" of {moment.steps:,} token{'s' * (moment.steps > 1)} in a batch of {moment.batch}"
    elif moment.what == "transfer":
        what = f"its KV, {moment.tokens:,} tokens, is sent there"
    return [
        f"  {seconds(max(0.0, moment.start_s - arrival_s))}",
        seconds(moment.end_s - moment.start_s),
        moment.replica,
        what,
    ]


def request_trace(run: ServingRun, number: int) -> str:
    """The same in Chrome's trace format, for Perfetto: a process for each replica, times in µs from the arrival."""
    arrival_s = float(run.requests.arrival_s[number])
    names = list(dict.fromkeys(moment.replica for moment in run.moments))
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for pid, name in enumerate(names)
    ]
    events += [
        {
            "ph": "X",
            "name": moment.what,
            "cat": moment.what,
            "pid": names.index(moment.replica),
            "tid": 0,
            "ts": (moment.start_s - arrival_s) * MICROSECONDS,
            "dur": (moment.end_s - moment.start_s) * MICROSECONDS,
            "args": {"tokens": moment.tokens, "steps": moment.steps, "batch": moment.batch},
        }
        for moment in run.moments
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False) + "\n"
