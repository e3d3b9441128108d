"""A request under way, and what happened to it."""

from typing import NamedTuple


class Moment(NamedTuple):
    """A stretch of a request's life.

    what: queued, prefill, handoff (its KV waits for room), transfer, landed (it waits for its first decode step),
    decode, or preempted (its KV is dropped, it waits to be prefilled again). replica: a pipeline's name. tokens: worked
    on, or sent; steps and batch: of a decode, its steps and the sequences in them.
    """

    what: str
    replica: str
    start_s: float
    end_s: float
    tokens: int = 0
    steps: int = 0
    batch: int = 0


class Job:
    """A request in the simulation.

    made: tokens it has so far; kv_tokens: what it holds while no decode step is under way (see `Group.kv_of`). entry,
    replica: positions of the pipeline that it came to and of the one where it is. available_s: since when it waits.
    first_s, finish_s: when its first and last tokens were made; begun_s: since when it is decoded, which is later than
    first_s where its KV was handed on; decoded_before: tokens that its replica's decode steps had made by then.
    """

    __slots__ = (
        "arrival_s",
        "available_s",
        "begun_s",
        "decoded_before",
        "entry",
        "filled",
        "finish_s",
        "first_s",
        "index",
        "joined",
        "kv_tokens",
        "log",
        "made",
        "output",
        "preemptions",
        "prompt",
        "rejected",
        "replica",
        "ticket",
    )

    def __init__(self, index: int, arrival_s: float, prompt: int, output: int, record: bool = False) -> None:
        self.index, self.arrival_s, self.prompt, self.output = index, arrival_s, prompt, output
        self.available_s = arrival_s
        self.made = self.kv_tokens = self.filled = self.joined = self.ticket = self.preemptions = 0
        self.decoded_before = 0
        self.first_s = self.begun_s = self.finish_s = float("nan")
        self.rejected = False
        self.entry = self.replica = -1
        self.log: list[Moment] | None = [] if record else None

    @property
    def to_prefill(self) -> int:
        """Tokens whose keys and values are to be computed before its next token: all it has, where it was preempted."""
        return self.prompt + self.made

    @property
    def most_kv_tokens(self) -> int:
        """What it holds in the end; the last token's keys and values are never needed."""
        return self.prompt + self.output - 1

    def note(
        self, what: str, replica: str, start_s: float, end_s: float, tokens: int = 0, steps: int = 0, batch: int = 0
    ) -> None:
        """Keep a stretch of its life, where that is asked for; one that goes on as the last did lengthens it."""
        if self.log is None or end_s <= start_s:
            return
        if self.log:
            last = self.log[-1]
            if what == "decode" == last.what and last.replica == replica and last.batch == batch:
                self.log[-1] = last._replace(end_s=end_s, tokens=last.tokens + tokens, steps=last.steps + steps)
                return
        self.log.append(Moment(what, replica, start_s, end_s, tokens, steps, batch))


class Outcome(NamedTuple):
    """A request has all its tokens, or, on a prefill pipeline, its first (`done` False): it is to be handed on.

    With `kv_overlap` that is told when the step that makes the first token starts.
    """

    time_s: float
    job: Job
    done: bool
