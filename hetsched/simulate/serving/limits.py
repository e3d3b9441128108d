"""How far a plan goes: the highest rate at which its objectives hold, and what it does when it is full."""

from collections.abc import Callable

import numpy as np

from hetsched.simulate.serving.result import Counts, Floats, ServingRun

PRECISION = 0.02  # of the rate, relative
MOST_RUNS = 40
TINY = 1e-12  # seconds


def highest_rate(holds: Callable[[float], bool], guess_per_s: float, precision: float = PRECISION) -> float:
    """The highest rate at which `holds(rate)`, within `precision` below it; 0 where it holds at none.

    It is taken to hold below a rate at which it holds. guess_per_s: where to begin; doubling or halving from there
    brackets the rate, then the bracket is halved, in the logarithm.
    """
    low, high, runs = 0.0, guess_per_s, 1
    if holds(high):
        low = high
        while high == low and runs < MOST_RUNS:
            high, runs = 2.0 * low, runs + 1
            low = high if holds(high) else low
    else:
        while not low and runs < MOST_RUNS:
            runs += 1
            if holds(high / 2.0):
                low = high / 2.0
            else:
                high /= 2.0
    while low and high > low * (1.0 + precision) and runs < MOST_RUNS:
        middle, runs = (low * high) ** 0.5, runs + 1
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def saturated_per_s(run: ServingRun) -> float:
    """Requests a second that a plan keeps up with, from a run in which all were there at once.

    What each replica does while it is full, over its share of the requests, is what the plan would do if the others
    were endless; the least of these is what it does. A replica that had all its requests in hand at once has shown no
    limit; one that prefills has always more to do. One that KV caches come to does what they let it, from when they are
    there: while they wait for room or for a link their requests make no tokens.
    """
    served, plan, requests = np.isfinite(run.finish_s), run.plan, run.requests
    rates = []
    for number, (pipeline, load) in enumerate(zip(plan.pipelines, run.loads, strict=True)):
        if pipeline.role == "prefill":
            mine, begun_s, ends_s = served & (run.entry == number), run.first_s, run.first_s
            tokens = requests.input_tokens
            shown = mine.any()
            since_s = float(np.min(ends_s, where=mine, initial=np.inf))  # its pipeline is full
        else:
            mine, begun_s, ends_s = served & (run.replica == number), run.begun_s, run.finish_s
            tokens = requests.output_tokens
            shown, since_s = mine.sum() > load.peak_batch, 0.0
            if plan.disaggregated and shown:
                since_s = float(np.sort(begun_s[mine])[load.peak_batch - 1])  # by then it may be full
        if shown:
            mean_tokens = float(tokens[served].mean())  # of all: a replica's own are longer or shorter by chance
            rate = full_per_s(begun_s[mine], ends_s[mine], tokens[mine], mean_tokens, since_s)
            rates.append(rate * served.sum() / mine.sum())
    return float(min(rates, default=run.requests_per_s))


def full_per_s(begun_s: Floats, finish_s: Floats, tokens: Counts, mean_tokens: float, since_s: float = 0.0) -> float:
    """Requests of mean length that a replica does a second, from a time on until the last one begins: by their tokens.

    Whole requests would mislead: those of one length end in crowds, and of many lengths the short ones end first.
    """
    until_s = float(np.max(finish_s, where=finish_s <= begun_s.max(), initial=0.0) or finish_s.max())
    since_s = since_s if since_s < until_s else 0.0
    takes_s = np.maximum(finish_s - begun_s, TINY)
    made = [np.clip((now - begun_s) / takes_s, 0.0, 1.0) @ tokens for now in (since_s, until_s)]
    return float((made[1] - made[0]) / mean_tokens / (until_s - since_s))
