"""Step times of a replica as plain lists, so that an event loop never calls numpy."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from hetsched.cost.serving.replica import ReplicaTimes

PROBE = 1e6  # pairs or context tokens: times are straight lines in both, so two points tell them
LONGEST_TABLE = 65536  # tokens of a step of prompts that are tabulated; longer ones are asked for one by one


class Line(NamedTuple):
    """A stage's step of given sizes: seconds = base_s + pairs * per_pair_s + context tokens * per_context_s."""

    base_s: float
    per_pair_s: float
    per_context_s: float


class StepTimes:
    """The times of `ReplicaTimes`, tabulated as they are asked for.

    The engine's overhead is part of the first stage's time. hop_latency_s, hop_per_token_s: (depth,), from each stage
    to the next, the last back to the first.
    """

    def __init__(self, replica: ReplicaTimes) -> None:
        self.replica = replica
        self.depth = replica.depth
        self.capacity_tokens = replica.kv_capacity_tokens
        self.hop_latency_s = [float(hop.latency_s) for hop in replica.hops]
        self.hop_per_token_s = [float(hop.per_token_s) for hop in replica.hops]
        if self.depth == 1:
            self.hop_latency_s, self.hop_per_token_s = [0.0], [0.0]
        self._overhead_s = [replica.overhead_s, *[0.0] * (self.depth - 1)]
        self._decodes: list[tuple[list[float], list[float]]] = []
        self._mixed: dict[tuple[int, int, int], list[Line]] = {}
        self._prompts: dict[int, list[list[float]]] = {}
        self._heads: dict[int, list[float]] = {}

    def decode(self, sequences: int) -> tuple[list[float], list[float]]:
        """(base_s, per_context_s) by stage, of a decode step of so many sequences."""
        while sequences >= len(self._decodes):
            self._tabulate_decodes(max(64, 2 * len(self._decodes)))
        return self._decodes[sequences]

    def beyond_decode(self, seconds: list[float], sequences: int, context: float) -> list[float]:
        """By stage, what a step takes beyond the decode step of its sequences, `context` tokens together."""
        if not sequences:
            return seconds
        base, slope = self.decode(sequences)
        return [max(0.0, whole - b - c * context) for whole, b, c in zip(seconds, base, slope, strict=True)]

    def _tabulate_decodes(self, largest: int) -> None:
        table = self.replica.decode_table(largest)
        base = (table.base_s + np.array(self._overhead_s)[:, None]).T.tolist()
        self._decodes = list(zip(base, table.per_context_token_s.T.tolist(), strict=True))

    def prefill(self, tokens: int, pairs: float, prompts: int) -> list[float]:
        """Seconds by stage of a step of so many whole prompts."""
        if tokens > LONGEST_TABLE:
            return self.step(tokens, pairs, prompts, 0, 0.0)
        size = 1024
        while size < tokens:
            size *= 2
        table = self._prompts.get(size)
        if table is None:
            table = self._prompts[size] = self._tabulate_prompts(size)
        head = self._heads.get(prompts)
        if head is None:
            head = self._heads[prompts] = self._head_s(prompts)
        return [b + h + pairs * slope for b, h, slope in zip(table[tokens], head, self._per_pair_s, strict=True)]

    def _tabulate_prompts(self, size: int) -> list[list[float]]:
        """(size + 1, depth): a step of one prompt, pairs apart."""
        tokens = np.arange(size + 1, dtype=float)
        rows = [self.replica.prefill_s(stage, tokens, 0.0) + self._overhead_s[stage] for stage in range(self.depth)]
        table: list[list[float]] = np.stack(rows).T.tolist()
        return table

    def _head_s(self, prompts: int) -> list[float]:
        """(depth,): what so many prompts take beyond one of as many tokens, which is the head's work on their ends."""
        one = [float(self.replica.prefill_s(stage, 1.0, 0.0)) for stage in range(self.depth)]
        several = [float(self.replica.prefill_s(stage, 1.0, 0.0, prompts)) for stage in range(self.depth)]
        return [more - less for more, less in zip(several, one, strict=True)]

    @cached_property
    def _per_pair_s(self) -> list[float]:
        return [line.per_pair_s for line in self._lines(1, 1, 0)]

    def step(self, tokens: int, pairs: float, prompts: int, sequences: int, context_tokens: float) -> list[float]:
        """Seconds by stage of a step that prefills `tokens` tokens, of prompts that end with it, and decodes."""
        lines = self._lines(tokens, prompts, sequences)
        return [base + pairs * pair + context_tokens * context for base, pair, context in lines]

    def _lines(self, tokens: int, prompts: int, sequences: int) -> list[Line]:
        key = tokens, prompts, sequences
        found = self._mixed.get(key)
        if found is None:
            pairs, contexts = np.array([0.0, PROBE, 0.0]), np.array([0.0, 0.0, PROBE])
            found = self._mixed[key] = []
            for stage in range(self.depth):
                base, paired, held = self.replica.step_s(stage, tokens, pairs, prompts, sequences, contexts).tolist()
                overhead_s = self._overhead_s[stage]
                found.append(Line(base + overhead_s, (paired - base) / PROBE, (held - base) / PROBE))
        return found


def causal_pairs(tokens: int, past: int = 0) -> float:
    """Query-key pairs of `tokens` new tokens after `past`, as `hetsched.cost.serving.stage.causal_pairs`."""
    return tokens * (past + (tokens + 1) / 2)
