"""What a replica does by itself when it has enough to do: prompts alone, the tokens after them alone, or both."""

from collections import deque

import numpy as np

from hetsched.plan import ServingOptions
from hetsched.requests import Requests
from hetsched.simulate.serving.engine import Engine
from hetsched.simulate.serving.job import Job
from hetsched.simulate.serving.limits import both_per_s, decodes_per_s, prompts_per_s
from hetsched.simulate.serving.times import StepTimes


def full_rate_per_s(times: StepTimes, role: str, max_batch: int, options: ServingOptions, requests: Requests) -> float:
    """Requests a second of a replica that has all of them in hand; 0 where it can hold none.

    A prefill replica is done with a request at its first token. A decode replica has the KV caches of all at its door,
    and takes them in as it has room.
    """
    engine = Engine("alone", times, role, max_batch, options)
    whole = zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
    jobs = [
        job
        for index, (prompt, output) in enumerate(whole)
        if role != "decode" or output > 1
        for job in [Job(index, 0.0, prompt, 1 if role == "prefill" else output)]
        if engine.fits(job)
    ]
    if not jobs:
        return 0.0
    if role == "decode":
        _decode(engine, jobs)
    else:
        for job in jobs:
            engine.arrive(job)
        engine.advance(float("inf"))
    begun_s, inputs, outputs, decoded = (
        np.array([getattr(job, name) for job in jobs]) for name in ("begun_s", "prompt", "output", "decoded_before")
    )
    if role == "prefill":
        return prompts_per_s(begun_s, inputs, float(inputs.mean()))
    after = float(outputs.mean()) - 1.0
    if role == "both":
        prompt_s = engine.stages.busiest_prompt_s(engine.prefilled, engine.decoded)
        return both_per_s(begun_s, decoded, prompt_s, float(inputs.sum()), (float(inputs.mean()), after))
    passing = float((requests.output_tokens > 1).mean())
    return decodes_per_s(begun_s, decoded, engine.peak_running, after) / passing


def _decode(engine: Engine, jobs: list[Job]) -> None:
    """Let requests in whose first tokens are made, in turn, as far as there is room, until all are done."""
    door, now = deque(jobs), 0.0
    while True:
        engine.advance(now)
        while door and engine.has_room(door[0], now):
            job = door.popleft()
            job.made, job.available_s, job.first_s = 1, now, now
            engine.expect(job, now)
            engine.land(job)
        while not engine.outcomes:
            next_s = engine.earliest_outcome_s()
            if next_s == float("inf"):
                return
            engine.advance(max(next_s, now), inclusive=True)
        now = min(outcome.time_s for outcome in engine.outcomes)
        engine.outcomes[:] = [outcome for outcome in engine.outcomes if outcome.time_s > now]
