"""A serving replica in a steady state: continuous batching (Yu et al. 2022, Orca, OSDI) of requests of a mean length.

Sequences in flight form as many groups as there are stages, which take turns: a stage works on one group at a time, and
a group makes one token each time round. Prompts have steps of their own, which go first, or chunks of them go along
with the decode steps (Agrawal et al. 2024, Sarathi-Serve, arXiv 2403.02310). This is a mean-value model without
randomness but for the queues; the request simulator is what decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt

import numpy as np

from hetsched.cost.serving.operators import Floats
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.cost.serving.stage import causal_pairs
from hetsched.requests import Requests

MOST_BATCH = 1024  # sequences in flight; engines have a limit of that order
EACH, APART = 512, 0.01  # numbers of sequences that are all looked at; from one to the next of those beyond


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests as a replica sees them: mean tokens of prompts and outputs, and the mean of a prompt's `causal_pairs`.

    Long prompts are dearer than their number of tokens says, so the mean of the pairs is not the pairs of the mean.
    """

    input_tokens: float
    output_tokens: float
    pairs: float

    @classmethod
    def of(cls, input_tokens: float, output_tokens: float, sigma: float = 0.0) -> "Traffic":
        """Lengths with these means; prompts log-normal with that sigma of the logarithm."""
        square = input_tokens**2 * np.exp(sigma**2)
        return cls(input_tokens, output_tokens, float((square + input_tokens) / 2.0))

    @classmethod
    def of_requests(cls, requests: Requests) -> "Traffic":
        """Requests by their means."""
        pairs = causal_pairs(requests.input_tokens).mean()
        return cls(requests.mean_input_tokens, requests.mean_output_tokens, float(pairs))


@dataclass(frozen=True, slots=True)
class Operation:
    """A replica at a rate: mean sequences in flight, and what a request sees on average."""

    requests_per_s: float
    batch: float
    ttft_s: float
    tpot_s: float
    e2e_s: float


@dataclass(frozen=True, eq=False)
class SteadyReplica:
    """A replica under such traffic, with at most `max_batch` sequences in flight, and what its KV cache holds.

    chunked: prompts go along with decode steps in chunks; else in steps of their own of at most `prefill_tokens`.
    prefills, decodes: whether it does the prompts, and the tokens after the first one.
    """

    times: ReplicaTimes
    traffic: Traffic
    max_batch: int = MOST_BATCH
    chunked: bool = False
    prefill_tokens: int = 8192
    prefills: bool = True
    decodes: bool = True

    @cached_property
    def largest_batch(self) -> int:
        """Sequences in flight at most: the limit, or what the KV cache holds of whole requests."""
        whole = self.traffic.input_tokens + self.traffic.output_tokens
        return min(self.max_batch, self.times.largest_batch(whole))

    @cached_property
    def prompt_s(self) -> float:
        """Seconds from when a prompt's prefill begins until its first token, the replica being idle."""
        times, traffic = self.times, self.traffic
        if not self.prefills:
            return 0.0
        stages = float(sum(self._by_stage(lambda s: times.prefill_s(s, traffic.input_tokens, traffic.pairs))))
        hops = sum(float(times.hop_s(s, traffic.input_tokens)) for s in range(times.depth - 1))
        return stages + hops + float(times.return_s(1.0)) + times.overhead_s

    @cached_property
    def token_s(self) -> Floats:
        """(sizes,): seconds between tokens with so many sequences in flight and no prompt in between."""
        way = self._rounds.sum(axis=0) + self.times.overhead_s
        return np.asarray(np.maximum(way, self._busy.max(axis=0)))

    @cached_property
    def capacity_per_s(self) -> float:
        """Requests a second at most; 0 where not one sequence has room."""
        if self.largest_batch < 1:
            return 0.0
        return float(self._rates().max())

    def at(self, requests_per_s: float) -> Operation:
        """What requests see at a rate; infinite times where it is beyond the capacity."""
        largest, output = self.largest_batch, self._tokens
        beyond = Operation(requests_per_s, float(largest), inf, inf, inf)
        if largest < 1 or requests_per_s >= self.capacity_per_s:
            return beyond
        busy_share = requests_per_s * self._prompt_busy_s
        tpot = self.token_s / (1.0 - busy_share)
        sizes = self.sizes
        enough = requests_per_s * (self.prompt_s + output * tpot) <= sizes
        if not enough.any():
            return beyond
        size = int(np.argmax(enough))
        step = float(tpot[size])
        full = requests_per_s / self.capacity_per_s
        admission = (self.prompt_s + output * step) / largest * full ** (sqrt(2.0 * (largest + 1)) - 1) / (1.0 - full)
        waiting = busy_share / (1.0 - busy_share) * self._prompt_busy_s / 2.0 + float(self.token_s[size]) / 2.0
        ttft = self.prompt_s + waiting + admission
        return Operation(requests_per_s, float(sizes[size]), ttft, step, ttft + max(0.0, output - 1.0) * step)

    @cached_property
    def sizes(self) -> Floats:
        """Ascending: numbers of sequences in flight that are looked at, 1 and the largest batch among them."""
        few = np.arange(1, min(self.largest_batch, EACH) + 1, dtype=float)
        if self.largest_batch <= EACH:
            return few
        times = self.largest_batch / EACH
        many = np.rint(EACH * np.geomspace(1.0, times, 2 + int(np.log(times) / APART))[1:])
        return np.concatenate([few, many])

    @cached_property
    def _groups(self) -> tuple[Floats, Floats]:
        """(sizes,) each: sequences of a group, and groups."""
        group = np.maximum(1.0, self.sizes / self.times.depth)
        return group, self.sizes / group

    @cached_property
    def _rounds(self) -> Floats:
        """(2 · depth, sizes): what a group waits for in turn: each stage, and each hop."""
        group, _ = self._groups
        stages = self._stages_s
        hops = [self.times.hop_s(s, group) for s in range(self.times.depth)]
        return np.concatenate([stages, np.stack(hops)])

    @cached_property
    def _stages_s(self) -> Floats:
        group, _ = self._groups
        context = group * (self.traffic.input_tokens + self.traffic.output_tokens / 2.0)
        return np.stack(self._by_stage(lambda s: self.times.decode_s(s, group, context)))

    def _by_stage(self, seconds: Callable[[int], Floats]) -> list[Floats]:
        """(depth): of each stage; of those that are equal it is asked once."""
        known: dict[tuple[object, ...], Floats] = {}
        found = []
        for number, stage in enumerate(self.times.stages):
            key = stage.gpu.kind, stage.degree, stage.link, stage.blocks, stage.embeds, stage.ends
            if key not in known:
                known[key] = seconds(number)
            found.append(known[key])
        return found

    @cached_property
    def _busy(self) -> Floats:
        """(2 · depth - 1, sizes): how long each stage, and each link between two, works for a turn of all."""
        group, groups = self._groups
        return np.concatenate([self._stages_s, self._per_token_s[:, None] * group]) * groups

    @cached_property
    def _per_token_s(self) -> Floats:
        """(depth - 1,): how long the link after each stage but the last is busy for a token."""
        return np.array([hop.per_token_s for hop in self.times.hops[: self.times.depth - 1]])

    @cached_property
    def _prompt_works_s(self) -> Floats:
        """(2 · depth - 1,): seconds that each stage, and each link between two, works on a prompt."""
        sent = self.traffic.input_tokens if self.prefills else 0.0
        return np.concatenate([self._prompt_stages_s, self._per_token_s * sent])

    @property
    def _prompt_stages_s(self) -> Floats:
        """(depth,): seconds each stage works on a prompt, when as many go together as a step takes."""
        traffic = self.traffic
        if not self.prefills:
            return np.zeros(self.times.depth)
        several = max(1.0, min(self.prefill_tokens // traffic.input_tokens, float(self.largest_batch)))
        if self.chunked and self.decodes:  # beside what the decode step of the same size takes
            return np.array(self._by_stage(self._along_s))
        together = several * traffic.input_tokens, several * traffic.pairs, several
        return np.array(self._by_stage(lambda s: self.times.prefill_s(s, *together))) / several

    def _along_s(self, stage: int) -> Floats:
        """What a prompt adds to the decode steps that its chunks go along with, at the largest batch."""
        traffic, (group, _) = self.traffic, self._groups
        size = float(group[-1])
        context = size * (traffic.input_tokens + traffic.output_tokens / 2.0)
        share = size / traffic.output_tokens  # of a prompt, for each step
        both = self.times.step_s(stage, share * traffic.input_tokens, share * traffic.pairs, share, size, context)
        return np.asarray((both - self.times.decode_s(stage, size, context)) / share)

    @property
    def _tokens(self) -> float:
        """Rounds of a request."""
        return self.traffic.output_tokens if self.decodes else 0.0

    @property
    def _prompt_busy_s(self) -> float:
        return float(self._prompt_works_s.max())

    def _rates(self) -> Floats:
        """(sizes,): requests a second with so many sequences in flight at all times.

        The busiest stage, or link, does a request's prompt and its part of `output_tokens` rounds; and a round takes at
        least as long as a group's way, prompts of others in between.
        """
        sizes, output = self.sizes, self._tokens
        stage = self._prompt_works_s[:, None] + output * self._busy / sizes
        way = self._prompt_busy_s + output * self.token_s / sizes
        return np.asarray(1.0 / np.maximum(stage.max(axis=0), way))
