"""A batch that goes round a replica's stages, step after step."""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

from hetsched.simulate.serving.job import Job
from hetsched.simulate.serving.times import causal_pairs


class Group:
    """Sequences that are decoded together, and prompts that are prefilled among them.

    jobs: those that decode, in the order in which they joined; filling: with chunked prefill, those whose prompt is
    only partly done. steps: decode steps so far; context: tokens in the KV caches of `jobs`. A step that has started
    ends at end_s, and its sampled tokens are back at the first stage at ready_s; what `leaves` then, its `leaving`
    tokens of KV cache are free.
    """

    __slots__ = (
        "_due",
        "_joined",
        "context",
        "end_s",
        "filling",
        "jobs",
        "leaves",
        "leaving",
        "logged",
        "ready_s",
        "steps",
    )

    def __init__(self) -> None:
        self.jobs: dict[Job, None] = {}
        self.filling: deque[Job] = deque()
        self.logged: list[Job] = []
        self.steps = self.context = self.leaves = self.leaving = self._joined = 0
        self.end_s = self.ready_s = 0.0
        self._due: list[tuple[int, int, Job]] = []

    def join(self, job: Job, kv_tokens: int) -> None:
        """A sequence with so many tokens in its KV cache decodes from the next step on."""
        job.kv_tokens, job.joined = kv_tokens, self.steps
        self._joined += 1
        job.ticket = self._joined
        self.jobs[job] = None
        self.context += kv_tokens
        heappush(self._due, (self.steps + job.output - job.made, job.ticket, job))
        if job.log is not None:
            self.logged.append(job)

    def kv_of(self, job: Job) -> int:
        """Tokens in the KV cache of one that decodes here."""
        return job.kv_tokens + self.steps - job.joined

    def part(self, job: Job) -> int:
        """Take out one that decodes here; returns the tokens in its KV cache."""
        tokens = self.kv_of(job)
        job.made += self.steps - job.joined
        del self.jobs[job]
        self.context -= tokens
        if job.log is not None:
            self.logged.remove(job)
        return tokens

    @property
    def steps_to_next_end(self) -> int:
        """Decode steps until the first of the sequences is done; there must be some."""
        while True:
            due, ticket, job = self._due[0]
            if job in self.jobs and job.ticket == ticket:
                return due - self.steps
            heappop(self._due)

    def ended(self) -> list[Job]:
        """The sequences whose last token was made in the step that has just been counted."""
        found: list[Job] = []
        due = self._due
        while due and due[0][0] <= self.steps:
            _, ticket, job = heappop(due)
            if job in self.jobs and job.ticket == ticket:
                found.append(job)
        return found


def cut_chunks(filling: Iterable[Job], budget: int) -> tuple[list[tuple[Job, int]], int, float, int]:
    """The next chunks of prompts, in turn, of at most `budget` tokens in all.

    Returns (job, tokens) of each, their tokens, their query-key pairs, and how many prompts are done with them.
    """
    chunks: list[tuple[Job, int]] = []
    pairs, full, tokens = 0.0, 0, 0
    for job in filling:
        chunk = min(budget - tokens, job.to_prefill - job.filled)
        if not chunk:
            break
        pairs += causal_pairs(chunk, job.filled)
        tokens += chunk
        full += job.filled + chunk == job.to_prefill
        chunks.append((job, chunk))
    return chunks, tokens, pairs, full
