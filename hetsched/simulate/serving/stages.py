"""What of a replica is busy, and until when: its stages and the links between them; and how full its KV cache is."""

from hetsched.simulate.serving.times import StepTimes


class Stages:
    """Stages and links, each on one step at a time, first come first served.

    free_s: (depth,), from when on each stage is idle; busy_s, prompt_s: (depth,), how long each has worked, and how
    much of that on prompts.
    """

    def __init__(self, times: StepTimes) -> None:
        self.times = times
        self.free_s = [0.0] * times.depth
        self.busy_s = [0.0] * times.depth
        self.prompt_s = [0.0] * times.depth
        self._links_free_s = [0.0] * times.depth

    def go_through(self, now: float, seconds: list[float], tokens: int, sampled: int) -> tuple[float, float]:
        """(when the step's tokens are made, when they are back at the first stage) of a step that starts now.

        seconds: of each stage; tokens: that go from stage to stage; sampled: that go back.
        """
        free, links, busy = self.free_s, self._links_free_s, self.busy_s
        latency, per_token = self.times.hop_latency_s, self.times.hop_per_token_s
        last = len(seconds) - 1
        at = now
        for s, taken in enumerate(seconds):
            at = (at if at > free[s] else free[s]) + taken
            free[s] = at
            busy[s] += taken
            if s < last:
                at = (at if at > links[s] else links[s]) + tokens * per_token[s]
                links[s] = at
                at += latency[s]
        return at, at + latency[last] + sampled * per_token[last]

    def count_prompts(self, seconds: list[float]) -> None:
        """So much of what was done is for prompts."""
        self.prompt_s = [before + more for before, more in zip(self.prompt_s, seconds, strict=True)]

    def busiest_prompt_s(self, prefilled: int, decoded: int) -> float:
        """That what works most, a stage or a link between two, worked on prompts, of so many tokens of both kinds."""
        works = list(zip(self.busy_s, self.prompt_s, strict=True))
        for per_token_s in self.times.hop_per_token_s[: self.times.depth - 1]:
            works.append(((prefilled + decoded) * per_token_s, prefilled * per_token_s))
        return max(works)[1]

    def idle_at(self, now: float) -> bool:
        """Whether all stages and links are."""
        return max(self.free_s) <= now and max(self._links_free_s) <= now


class DecodeRun:
    """Decode steps of one batch that waits for no other, one after the other.

    A step takes a fixed time and more for each token of its context, which grows by the batch from step to step; so
    `steps` of them take (grow_s * steps + fixed_s) * steps seconds.
    """

    __slots__ = ("base", "batch", "first_context", "fixed_s", "grow_s", "slope")

    def __init__(self, times: StepTimes, batch: int, context: int) -> None:
        self.batch, self.first_context = batch, context + batch
        self.base, self.slope = times.decode(batch)
        per_context_s = sum(self.slope)
        self.grow_s = per_context_s * batch / 2
        self.fixed_s = (
            sum(self.base)
            + sum(times.hop_latency_s)
            + batch * sum(times.hop_per_token_s)
            + per_context_s * self.first_context
            - self.grow_s
        )

    def seconds(self, steps: int) -> float:
        """What so many steps take."""
        return (self.grow_s * steps + self.fixed_s) * steps

    def steps_begun(self, left_s: float, inclusive: bool) -> int:
        """How many steps begin before `left_s`, or then too; the first begins at 0 and always counts."""
        grow_s, fixed_s = self.grow_s, self.fixed_s
        steps = 1 + int(2 * left_s / (fixed_s + (fixed_s * fixed_s + 4 * grow_s * left_s) ** 0.5))
        while steps > 1 and (self.seconds(steps - 1) > left_s or (not inclusive and self.seconds(steps - 1) == left_s)):
            steps -= 1
        return steps

    def contexts(self, steps: int) -> float:
        """The sum of the contexts of so many steps."""
        return self.first_context * steps + self.batch * (steps * (steps - 1) / 2)

    def held(self, steps: int, first_tokens: int) -> float:
        """Token-seconds of a KV cache with `first_tokens` in the first step and `batch` more in each after it."""
        first_s, more_s = self.grow_s + self.fixed_s, 2 * self.grow_s
        triangle, pyramid = steps * (steps - 1) / 2, (steps - 1) * steps * (2 * steps - 1) / 6
        return (
            first_tokens * first_s * steps
            + (first_tokens * more_s + self.batch * first_s) * triangle
            + self.batch * more_s * pyramid
        )


class KvCache:
    """Tokens whose keys and values a replica holds: now, at most, and their integral over time."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.used_tokens = self.peak_tokens = 0
        self.token_s = self._counted_s = 0.0

    @property
    def free_tokens(self) -> int:
        """Those it has room for."""
        return self.capacity_tokens - self.used_tokens

    def take(self, now: float, tokens: int) -> None:
        """So many more from now on; fewer where negative."""
        self.token_s += self.used_tokens * (now - self._counted_s)
        self._counted_s = now
        self.used_tokens += tokens
        self.peak_tokens = max(self.peak_tokens, self.used_tokens)

    def take_run(self, now: float, run: DecodeRun, steps: int) -> None:
        """What a run of decode steps that starts now adds."""
        self.take(now, 0)
        self.token_s += run.held(steps, self.used_tokens + run.batch)
        self._counted_s = now + run.seconds(steps)
        self.used_tokens += run.batch * steps
        self.peak_tokens = max(self.peak_tokens, self.used_tokens)
