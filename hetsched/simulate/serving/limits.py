"""How far a plan goes: the highest rate at which its objectives hold, and what it does when it is full."""

from collections.abc import Callable

import numpy as np

from hetsched.simulate.serving.result import Counts, Floats, Mask, ServingRun

FULL, LAG = 0.95, 0.03  # of its room, on average; of the time: so much later comes what a replica keeps waiting
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
    limit; one that prefills has always more to do. One that KV caches come to has shown one where it was full, or where
    they came later and later, over a link. It does what they let it, from when as many are there as ever were: while
    they wait their requests make no tokens. Requests of mean length are counted, of all: a replica's own are longer or
    shorter by chance.
    """
    served, plan, requests = np.isfinite(run.finish_s), run.plan, run.requests
    mean_input, after = float(requests.input_tokens[served].mean()), requests.output_tokens[served] - 1
    rates = []
    for number, (pipeline, load) in enumerate(zip(plan.pipelines, run.loads, strict=True)):
        mine = served & ((run.entry if pipeline.role == "prefill" else run.replica) == number)
        inputs, begun_s, decoded = requests.input_tokens[mine], run.begun_s[mine], run.decoded_before[mine]
        if pipeline.role == "prefill" and mine.any():
            rate = prompts_per_s(run.first_s[mine], inputs, mean_input)
        elif pipeline.role == "decode" and mine.sum() > load.peak_batch and _limits(run, number, mine):
            rate = decodes_per_s(begun_s, decoded, load.peak_batch, float(after[after > 0].mean()))
        elif pipeline.role == "both" and mine.sum() > load.peak_batch:
            mean = mean_input, float(after.mean())
            rate = both_per_s(begun_s, decoded, load.prompt_s, float(inputs.sum()), mean)
        else:
            continue
        rates.append(rate * served.sum() / mine.sum())
    return float(min(rates, default=run.requests_per_s))


def _limits(run: ServingRun, number: int, mine: Mask) -> bool:
    """Whether the replica that decodes these requests, or a link to it, was all the time as busy as it can be."""
    load, order = run.loads[number], np.argsort(run.begun_s[mine], kind="stable")
    begun_s, waited_s = run.begun_s[mine][order], (run.begun_s - run.first_s)[mine][order]
    late = slice(-max(1, len(order) // 10), None)
    if float(waited_s[late].mean()) > LAG * float(begun_s[-1]):
        return True
    room = max(load.peak_batch / run.plan.pipelines[number].max_batch, load.kv_peak_tokens / load.kv_capacity_tokens)
    ended = np.searchsorted(np.sort(run.finish_s[mine]), begun_s, side="right")
    in_hand = (np.arange(1, len(order) + 1) - ended)[len(order) // 2 :]
    return room > FULL and float(in_hand.mean()) > FULL * load.peak_batch


def prompts_per_s(first_s: Floats, inputs: Counts, mean_input: float) -> float:
    """Prompts of mean length that a replica does a second, from the first on that is done: its pipeline is full."""
    since_s, until_s = float(first_s.min()), float(first_s.max())
    if since_s == until_s:
        return float(inputs.sum()) / mean_input / max(until_s, TINY)
    return float(inputs[first_s > since_s].sum()) / mean_input / (until_s - since_s)


def decodes_per_s(begun_s: Floats, decoded: Counts, peak: int, mean_after: float) -> float:
    """Requests that make so many tokens after their first that a decode replica does a second, until the last begins.

    decoded: (requests,), tokens that were made when each began. By tokens, as whole requests would mislead: those of
    one length end in crowds, and of many lengths the short ones end first. Counted from when `peak` of them have begun.
    """
    order = np.argsort(begun_s, kind="stable")
    since, last = order[min(peak, len(order)) - 1], order[-1]
    made, takes_s = float(decoded[last] - decoded[since]), float(begun_s[last] - begun_s[since])
    if made <= 0.0 or takes_s <= 0.0:
        return float("inf")
    return made / max(mean_after, TINY) / takes_s


def both_per_s(
    begun_s: Floats, decoded: Counts, prompt_s: float, prompt_tokens: float, mean: tuple[float, float]
) -> float:
    """Requests with a mean prompt and so many tokens after the first that a replica for both phases does a second.

    prompt_s: that it worked on all prompts, which have so many tokens. A request takes its part of that, and of the
    time that is left until the last one begins by the tokens that were made in it: then all prompts are done, but not
    all tokens of the requests in hand, so that one rate of both would be too low.
    """
    last = int(np.argmax(begun_s))
    rest_s, made = max(0.0, float(begun_s[last]) - prompt_s), float(decoded[last])
    request_s = prompt_s / prompt_tokens * mean[0] + (rest_s / made * mean[1] if made else 0.0)
    return 1.0 / max(request_s, TINY)
