"""A slow simulator of the same rules, token by token and event by event, that the fast one must equal.

It shares no code with it: passes queue at stages and links, every decode step is an event, KV is counted job by job,
and times come from `ReplicaTimes` one at a time.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil

from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.cost.serving.stage import causal_pairs
from hetsched.plan import ServingOptions


@dataclass(eq=False)
class Request:
    arrival_s: float
    prompt: int
    output: int
    token_times: list[float] = field(default_factory=list)
    kv: int = 0
    filled: int = 0
    preemptions: int = 0
    replica: int = -1

    @property
    def known(self) -> int:
        return self.prompt + len(self.token_times)


class Time:
    """Events, those of one time in the order of calling; then whoever looks for work may look."""

    def __init__(self) -> None:
        self.now, self.queue, self.serial = 0.0, list[tuple[float, int, Callable[[], None]]](), count()
        self.lookers: list[Callable[[], bool]] = []

    def at(self, time: float, call: Callable[[], None]) -> None:
        heappush(self.queue, (time, next(self.serial), call))

    def run(self) -> None:
        while self.queue:
            self.now = self.queue[0][0]
            while self.queue and self.queue[0][0] == self.now:
                heappop(self.queue)[2]()
            while any(look() for look in self.lookers):
                pass


class Server:
    """A stage or a link: one at a time, first come first served."""

    def __init__(self, time: Time) -> None:
        self.time, self.line, self.busy = time, deque[tuple[float, Callable[[], None]]](), False

    def serve(self, seconds: float, then: Callable[[], None]) -> None:
        self.line.append((seconds, then))
        if not self.busy:
            self._next()

    def _next(self) -> None:
        if self.line:
            seconds, then = self.line.popleft()
            self.busy = True
            self.time.at(self.time.now + seconds, lambda: self._done(then))

    def _done(self, then: Callable[[], None]) -> None:
        self.busy = False
        then()
        self._next()


@dataclass(eq=False)
class Batch:
    jobs: list[Request] = field(default_factory=list)
    filling: list[Request] = field(default_factory=list)
    away: bool = False
    ready_s: float = 0.0


class Replica:
    def __init__(self, time: Time, times: ReplicaTimes, max_batch: int, options: ServingOptions, role: str) -> None:
        self.time, self.times, self.max_batch, self.options, self.role = time, times, max_batch, options, role
        self.capacity = times.kv_capacity_tokens
        self.batches = [Batch() for _ in range(min(times.depth, max_batch))]
        self.stages = [Server(time) for _ in range(times.depth)]
        self.links = [Server(time) for _ in range(times.depth)]
        self.waiting: deque[Request] = deque()
        self.landed: deque[Request] = deque()
        self.inside: list[Request] = []  # all that have a place in a batch
        self.held: list[Request] = []  # all whose KV takes room
        self.expected = self.peak_kv = 0
        self.done: Callable[[Request], None] = lambda _: None
        self.hand_on: Callable[[Request], None] = lambda _: None
        time.lookers.append(self.look)

    @property
    def used(self) -> int:
        return sum(job.kv for job in self.held)

    def look(self) -> bool:
        """Start a step, if one can start now."""
        if self.stages[0].busy:
            return False
        for batch in sorted((b for b in self.batches if not b.away), key=lambda b: b.ready_s):
            if self.start(batch):
                return True
        return False

    def room(self, batch: Batch) -> int:
        total = len(self.inside) + len(self.waiting) + len(self.landed)
        fair = min(ceil(self.max_batch / len(self.batches)), max(1, ceil(total / len(self.batches))))
        return fair - len(batch.jobs) - len(batch.filling)

    def admit(self, batch: Batch, most_tokens: float, most_jobs: int) -> list[Request]:
        promised = len(self.inside) + len(self.landed) + self.expected
        room, found = min(most_jobs, self.room(batch), self.max_batch - promised), list[Request]()
        while self.waiting and len(found) < room:
            job = self.waiting[0]
            growth = 0 if self.role == "prefill" else len(self.inside) + 1
            if found and sum(other.known for other in found) + job.known > most_tokens:
                break
            if self.used and self.used + job.known + growth > self.capacity:
                break
            job.kv = job.known
            found.append(self.waiting.popleft())
            self.inside.append(job)
            self.held.append(job)
        return found

    def start(self, batch: Batch) -> bool:
        room = self.room(batch)
        for _ in range(max(0, room)):
            if self.landed:
                job = self.landed.popleft()
                batch.jobs.append(job)
                self.inside.append(job)
        chunk = self.options.chunked_prefill_tokens
        if not chunk:
            found = self.admit(batch, self.options.max_prefill_tokens, self.max_batch)
            if found:
                self.step(batch, [(job, job.known) for job in found], [])
                return True
        self.preempt(batch)
        chunks: list[tuple[Request, int]] = []
        if chunk:
            budget = chunk - len(batch.jobs)
            while sum(job.known - job.filled for job in batch.filling) < budget:
                found = self.admit(batch, float("inf"), 1)
                batch.filling.extend(found)
                if not found:
                    break
            for job in batch.filling:
                size = min(budget, job.known - job.filled)
                if size > 0:
                    chunks.append((job, size))
                    budget -= size
        if not batch.jobs and not chunks:
            return False
        self.step(batch, chunks, batch.jobs)
        return True

    def preempt(self, batch: Batch) -> None:
        while batch.jobs and self.used + len(batch.jobs) > self.capacity:
            victim = batch.filling.pop() if batch.filling else batch.jobs.pop()
            victim.kv = victim.filled = 0
            victim.preemptions += 1
            self.inside.remove(victim)
            self.held.remove(victim)
            self.waiting.appendleft(victim)

    def step(self, batch: Batch, chunks: list[tuple[Request, int]], decoding: list[Request]) -> None:
        for job in decoding:
            job.kv += 1
        self.peak_kv = max(self.peak_kv, self.used)
        assert self.used <= self.capacity
        tokens = sum(size for _, size in chunks)
        pairs = sum(float(causal_pairs(size, job.filled)) for job, size in chunks)
        full = [job for job, size in chunks if job.filled + size == job.known]
        context = sum(job.kv for job in decoding)
        batch.away = True
        sampled = len(full) + len(decoding)
        depth = self.times.depth

        def go(stage: int) -> None:
            seconds = float(self.times.step_s(stage, tokens, pairs, len(full), len(decoding), context))
            seconds += self.times.overhead_s if stage == 0 else 0.0
            self.stages[stage].serve(seconds, lambda: left(stage))

        def left(stage: int) -> None:
            if stage == depth - 1:
                made()
                return
            latency_s = float(self.times.hop_s(stage, 0))
            busy_s = float(self.times.hop_s(stage, tokens + len(decoding))) - latency_s
            self.links[stage].serve(busy_s, lambda: self.time.at(self.time.now + latency_s, lambda: go(stage + 1)))

        def made() -> None:
            for job, size in chunks:
                job.filled += size
            for job in [*decoding, *full]:
                job.token_times.append(self.time.now)
            for job in full:
                job.filled = 0
                if job in batch.filling:
                    batch.filling.remove(job)
                if self.role != "prefill" or len(job.token_times) == job.output:
                    batch.jobs.append(job)
                else:
                    self.inside.remove(job)
                    self.hand_on(job)
            for job in [job for job in batch.jobs if len(job.token_times) == job.output]:
                batch.jobs.remove(job)
                self.inside.remove(job)
                self.held.remove(job)
                self.done(job)
            back_s = float(self.times.return_s(sampled)) if depth > 1 else 0.0
            self.time.at(self.time.now + back_s, back)

        def back() -> None:
            batch.away, batch.ready_s = False, self.time.now

        go(0)


def play(
    requests: list[Request],
    replicas: list[tuple[ReplicaTimes, int]],
    options: ServingOptions,
    choose: Callable[[int, list[int]], int],
) -> list[Replica]:
    """Co-located: `choose(request, under way)` says which replica (times, max_batch) a request goes to."""
    time = Time()
    made = [Replica(time, times, max_batch, options, "both") for times, max_batch in replicas]
    under_way = [0] * len(made)

    def arrive(number: int) -> None:
        job = requests[number]
        job.replica = choose(number, under_way)
        under_way[job.replica] += 1
        made[job.replica].waiting.append(job)

    def done(job: Request) -> None:
        under_way[job.replica] -= 1

    for replica in made:
        replica.done = done
    for number, job in enumerate(requests):
        time.at(job.arrival_s, lambda number=number: arrive(number))  # type: ignore[misc]
    time.run()
    return made


def play_disaggregated(
    requests: list[Request],
    prefill: tuple[ReplicaTimes, int],
    decode: tuple[ReplicaTimes, int],
    options: ServingOptions,
    kv_s: Callable[[int], tuple[float, float]],
) -> tuple[Replica, Replica]:
    """One prefill and one decode replica; kv_s: (seconds on the link, latency) of a prompt's KV."""
    time = Time()
    first = Replica(time, *prefill, options, "prefill")
    second = Replica(time, *decode, options, "decode")
    link, door = Server(time), deque[Request]()

    def let_in() -> None:
        while door:
            job, promised = door[0], len(second.inside) + len(second.landed) + second.expected
            if second.waiting or promised >= second.max_batch:
                return
            if second.used and second.used + job.prompt + promised + 1 > second.capacity:
                return
            door.popleft()
            place = Request(0.0, 0, 0, kv=job.prompt)  # room for it, while the prefill side still holds its own
            second.held.append(place)
            second.expected += 1
            busy_s, latency_s = kv_s(job.prompt)
            link.serve(
                busy_s,
                lambda job=job, place=place, latency_s=latency_s: time.at(  # type: ignore[misc]
                    time.now + latency_s, lambda: land(job, place)
                ),
            )

    def land(job: Request, place: Request) -> None:
        first.held.remove(job)
        second.held.remove(place)
        second.held.append(job)
        second.expected -= 1
        second.landed.append(job)

    def hand_on(job: Request) -> None:
        door.append(job)
        let_in()

    first.hand_on = hand_on
    second.done = lambda _: let_in()
    for job in requests:
        time.at(job.arrival_s, lambda job=job: first.waiting.append(job))  # type: ignore[misc]
    time.run()
    return first, second
