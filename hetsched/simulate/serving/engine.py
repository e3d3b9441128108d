"""One replica at work: continuous batching, step by step, with its stages and its KV cache.

As many groups of sequences as there are stages go round the pipeline, so that all stages may work (vLLM's virtual
engines, Kwon et al. 2023, arXiv 2309.06180; iteration-level scheduling after Orca, Yu et al., OSDI 2022). Whenever a
group is back at the first stage and that is free, it takes its next step: of the prompts that wait, or a decode step of
its sequences; with chunked prefill (Sarathi, arXiv 2308.16369) both at once. A stage, and a link between two, works on
one step at a time, first come first served. Where a decode step finds no room in the KV cache, the youngest sequence of
its group is preempted: its KV is dropped, and it waits, before all others, to be prefilled again with what it has made.

Nothing is decided at the end of a run of decode steps in which nothing changes, so a run is jumped over: at a fixed
batch a step's time is a straight line in the context, and their sum is known.
"""

from collections import deque
from math import ceil, inf

from hetsched.plan import ServingOptions
from hetsched.simulate.serving.group import Group, cut_chunks
from hetsched.simulate.serving.job import Job, Outcome
from hetsched.simulate.serving.stages import DecodeRun, KvCache, Stages
from hetsched.simulate.serving.times import StepTimes, causal_pairs


class Engine:
    """A replica; it is told what happens elsewhere in the order of time, after `advance` to that time.

    running: requests in its groups; expected: those whose KV is on its way here. outcomes: what has come of its steps,
    for the caller to take away.
    """

    def __init__(self, name: str, times: StepTimes, role: str, max_batch: int, options: ServingOptions) -> None:
        self.name, self.times, self.role, self.max_batch = name, times, role, max_batch
        self.options = options
        self.stages, self.cache = Stages(times), KvCache(times.capacity_tokens)
        self.waiting: deque[Job] = deque()
        self.landed: deque[Job] = deque()
        self.outcomes: list[Outcome] = []
        self.running = self.peak_running = self.expected = 0
        self.steps = self.decoded = self.prefilled = self.preemptions = 0
        self._groups = [Group() for _ in range(min(times.depth, max_batch))]
        self._blocked = False  # the first that waits finds no room
        self._admits_from_s = 0.0

    # ---- what happens elsewhere

    def fits(self, job: Job) -> bool:
        """Whether the request could ever be served here."""
        most = job.prompt if self.role == "prefill" else job.most_kv_tokens
        return most <= self.cache.capacity_tokens

    def arrive(self, job: Job) -> None:
        """A request waits here from `job.available_s` on."""
        self.waiting.append(job)

    def has_room(self, job: Job, now: float) -> bool:
        """Whether the KV of a request that comes from elsewhere may be sent here now."""
        self._settle(now)
        if self.waiting or self._promised >= self.max_batch:
            return False
        return not self.cache.used_tokens or job.prompt + self._promised + 1 <= self.cache.free_tokens

    def expect(self, job: Job, now: float) -> None:
        """The KV of a request is on its way here; room is kept for it."""
        self.cache.take(now, job.prompt)
        self.expected += 1

    def land(self, job: Job) -> None:
        """The KV of a request is here, from `job.available_s` on."""
        self.expected -= 1
        self.landed.append(job)

    def release(self, job: Job, now: float) -> None:
        """The KV of a request that was handed on is not needed here any more."""
        self._settle(now)
        self.cache.take(now, -job.prompt)
        self._unblock(now)

    # ---- time

    def advance(self, until: float, inclusive: bool = False) -> None:
        """Take all steps that start before `until`, or then too."""
        while True:
            group, now = self._next(until)
            if group is None or now > until or (now == until and not inclusive):
                return
            if self.landed:
                self._join_landed(group, now)
            if self.options.chunked_prefill_tokens:
                self._mixed_step(group, now, until, inclusive)
                continue
            admitted = self._admit(group, now, self.options.max_prefill_tokens, self.max_batch)
            if admitted:
                self._prompt_step(group, now, admitted)
            elif group.jobs:
                self._decode_step(group, now, until, inclusive)

    def earliest_outcome_s(self) -> float:
        """When the step that may bring the next outcome starts, at the earliest; infinite where nothing is under way.

        Exact where one group decodes alone.
        """
        _, now = self._next(-inf)
        if self.landed or self._may_admit() or any(each.filling for each in self._groups):
            return now
        earliest = min((each.end_s for each in self._groups if each.leaves), default=inf) if self.waiting else inf
        busy = [each for each in self._groups if each.jobs]
        shared = max(0, self.cache.free_tokens) // max(
            1, self.running
        )  # steps until one may be preempted, which changes all
        for each in busy:
            ahead = min(each.steps_to_next_end - 1, shared if len(busy) == 1 else max(0, shared - 1))
            run = DecodeRun(self.times, len(each.jobs), each.context)
            earliest = min(earliest, max(each.ready_s, self.stages.free_s[0]) + run.seconds(ahead))
        return earliest

    def _next(self, until: float) -> tuple[Group | None, float]:
        """The group that takes the next step, and when; what leaves before that, and by `until`, is let go."""
        first_free_s = self.stages.free_s[0]
        while True:
            best, best_s, leaver, leaves_s = None, inf, None, inf
            for group in self._groups:
                if group.leaves and group.end_s < leaves_s:
                    leaver, leaves_s = group, group.end_s
                start = group.ready_s if group.ready_s > first_free_s else first_free_s
                if not (group.jobs or group.filling):
                    start = max(start, self._new_work_s())
                if start < best_s or (start == best_s < inf and best is not None and group.ready_s < best.ready_s):
                    best, best_s = group, start
            if leaver is None or leaves_s > best_s or leaves_s > until:
                return best, best_s
            self._retire(leaver)

    def _new_work_s(self) -> float:
        """From when on a group without work could take some up."""
        since = self.landed[0].available_s if self.landed else inf
        if self._may_admit():
            since = min(since, max(self.waiting[0].available_s, self._admits_from_s))
        return since

    def _may_admit(self) -> bool:
        return bool(self.waiting) and not self._blocked and self._promised < self.max_batch

    @property
    def _promised(self) -> int:
        """Requests that have a place here."""
        return self.running + len(self.landed) + self.expected

    # ---- coming and going

    def _room_in(self, group: Group) -> int:
        """How many sequences more the group takes: groups are kept even."""
        total, groups = self.running + len(self.waiting) + len(self.landed), len(self._groups)
        fair = min(ceil(self.max_batch / groups), max(1, ceil(total / groups)))
        return fair - len(group.jobs) - len(group.filling)

    def _join_landed(self, group: Group, now: float) -> None:
        room = self._room_in(group)
        while room > 0 and self.landed and self.landed[0].available_s <= now:
            job = self.landed.popleft()
            job.note("landed", self.name, job.available_s, now)
            job.begun_s, job.decoded_before = now, self.decoded
            group.join(job, job.prompt)
            self._count_in()
            room -= 1

    def _admit(self, group: Group, now: float, most_tokens: float, most_jobs: int) -> list[Job]:
        """Take requests that wait into the group: in turn, while there is room for them and all tokens of a step.

        The first may be longer than most_tokens.
        """
        admitted: list[Job] = []
        if not self.waiting or self._blocked:
            return admitted
        room, tokens = min(most_jobs, self._room_in(group), self.max_batch - self._promised), 0
        while len(admitted) < room and self.waiting and self.waiting[0].available_s <= now:
            job = self.waiting[0]
            needed = job.to_prefill
            if admitted and tokens + needed > most_tokens:
                break
            growth = 0 if self.role == "prefill" else self.running + 1
            if self.cache.used_tokens and needed + growth > self.cache.free_tokens:
                self._blocked = True
                break
            self.waiting.popleft()
            self.cache.take(now, needed)
            self._count_in()
            job.note("preempted" if job.made else "queued", self.name, job.available_s, now)
            admitted.append(job)
            tokens += needed
        return admitted

    def _preempt(self, group: Group, now: float) -> None:
        """The group's youngest goes back to the head of the queue."""
        if group.filling:
            job = group.filling.pop()
            tokens, job.filled = job.to_prefill, 0
        else:
            job = next(reversed(group.jobs))
            tokens = group.part(job)
        self.cache.take(now, -tokens)
        self.running -= 1
        job.available_s = now
        job.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(job)

    def _count_in(self) -> None:
        self.running += 1
        self.peak_running = max(self.peak_running, self.running)

    def _settle(self, now: float) -> None:
        """Let go what has left by now."""
        for group in self._groups:
            if group.leaves and group.end_s <= now:
                self._retire(group)

    def _retire(self, group: Group) -> None:
        self.cache.take(group.end_s, -group.leaving)
        if self._blocked or self.running >= self.max_batch:
            self._unblock(group.end_s)
        self.running -= group.leaves
        group.leaves = group.leaving = 0

    def _unblock(self, now: float) -> None:
        self._blocked = False
        self._admits_from_s = now

    def _end(self, group: Group, job: Job, kv_tokens: int) -> None:
        """A request has its last token at the end of the group's step."""
        job.finish_s = group.end_s
        group.leaves += 1
        group.leaving += kv_tokens
        self.outcomes.append(Outcome(group.end_s, job, True))

    # ---- steps

    def _go(self, group: Group, now: float, seconds: list[float], tokens: int, sampled: int) -> None:
        self.steps += 1
        group.end_s, group.ready_s = self.stages.go_through(now, seconds, tokens, sampled)

    def _prompt_step(self, group: Group, now: float, jobs: list[Job]) -> None:
        """A step of prompts alone."""
        tokens = sum([job.to_prefill for job in jobs])
        pairs = sum([causal_pairs(job.to_prefill) for job in jobs])
        seconds = self.times.prefill(tokens, pairs, len(jobs))
        self._go(group, now, seconds, tokens, len(jobs))
        self.stages.count_prompts(seconds)
        self.prefilled += tokens
        for job in jobs:
            job.note("prefill", self.name, now, group.end_s, job.to_prefill, 1, len(jobs))
            self._prefill_done(group, job, now)

    def _prefill_done(self, group: Group, job: Job, now: float) -> None:
        kv_tokens = job.to_prefill
        if not job.made:
            job.first_s = job.begun_s = group.end_s
            job.decoded_before = self.decoded
        job.made += 1
        if job.made == job.output:
            self._end(group, job, kv_tokens)
        elif self.role == "prefill":
            group.leaves += 1  # its KV stays until it has been sent
            self.outcomes.append(Outcome(now if self.options.kv_overlap else group.end_s, job, False))
        else:
            group.join(job, kv_tokens)

    def _decode_step(self, group: Group, now: float, until: float, inclusive: bool) -> None:
        """A step of the group's sequences, or a run of steps where nothing else can happen meanwhile."""
        self._make_room(group, now)
        batch = len(group.jobs)
        if not batch:
            return
        alone = self.running == batch and not self.landed and not self._may_admit()
        if alone and self._run(group, now, until, inclusive):
            return
        base, slope = self.times.decode(batch)
        context = group.context + batch
        self._go(group, now, [b + c * context for b, c in zip(base, slope, strict=True)], batch, batch)
        self._count_decode(group, now, batch)

    def _run(self, group: Group, now: float, until: float, inclusive: bool) -> bool:
        """Jump over all steps but the last before a sequence ends, the KV cache is full, or `until`; False for none."""
        batch = len(group.jobs)
        steps = min(group.steps_to_next_end - 1, self.cache.free_tokens // batch)
        if steps < 1 or not self.stages.idle_at(now):
            return False
        run = DecodeRun(self.times, batch, group.context)
        if run.seconds(steps - 1) > until - now:
            steps = min(steps, run.steps_begun(until - now, inclusive))
        self.cache.take_run(now, run, steps)
        contexts = run.contexts(steps)
        for s, (base_s, per_context_s) in enumerate(zip(run.base, run.slope, strict=True)):
            self.stages.busy_s[s] += base_s * steps + per_context_s * contexts
        group.steps += steps
        group.context += batch * steps
        self.steps += steps
        self.decoded += batch * steps
        group.end_s = group.ready_s = now + run.seconds(steps)
        for job in group.logged:
            job.note("decode", self.name, now, group.end_s, steps, steps, batch)
        return True

    def _make_room(self, group: Group, now: float) -> None:
        """Preempt until each of the group's sequences can have a token more."""
        while group.jobs and len(group.jobs) > self.cache.free_tokens:
            self._preempt(group, now)

    def _count_decode(self, group: Group, now: float, batch: int) -> None:
        """A decode step is under way."""
        self.cache.take(now, batch)
        group.steps += 1
        group.context += batch
        self.decoded += batch
        for job in group.logged:
            job.note("decode", self.name, now, group.end_s, 1, 1, batch)
        for job in group.ended():
            self._end(group, job, group.part(job))

    def _mixed_step(self, group: Group, now: float, until: float, inclusive: bool) -> None:
        """A step with chunked prefill: a token of each sequence, and prompts in what is left of the step's tokens."""
        self._make_room(group, now)
        batch = len(group.jobs)
        budget = self.options.chunked_prefill_tokens - batch
        unfilled = sum([job.to_prefill - job.filled for job in group.filling])
        while unfilled < budget:
            admitted = self._admit(group, now, inf, 1)
            if not admitted:
                break
            group.filling.extend(admitted)
            unfilled += admitted[0].to_prefill
        if not group.filling or budget <= 0:
            if batch:
                self._decode_step(group, now, until, inclusive)
            return
        chunks, tokens, pairs, full = cut_chunks(group.filling, budget)
        context = group.context + batch if batch else 0
        seconds = self.times.step(tokens, pairs, full, batch, context)
        self._go(group, now, seconds, tokens + batch, full + batch)
        self.stages.count_prompts(self.times.beyond_decode(seconds, batch, context))
        self.prefilled += tokens
        if batch:
            self._count_decode(group, now, batch)
        for job, chunk in chunks:
            job.note("prefill", self.name, now, group.end_s, chunk, 1, batch + len(chunks))
            job.filled += chunk
        for _ in range(full):
            job = group.filling.popleft()
            job.filled = 0
            self._prefill_done(group, job, now)
