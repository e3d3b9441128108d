"""Requests to serve, as arrays: when each arrives, how long its prompt is, and how many tokens it asks for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import HetschedError
from hetsched.workload import ServingLoad, TraceUse

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

HEAVY_INPUT_TOKENS, HEAVY_OUTPUT_TOKENS = 512, 128  # more than so many is heavy, as in HexGen-2 (arXiv 2502.07903)
CLASSES = ("HPHD", "HPLD", "LPHD", "LPLD")  # heavy or light prefill, heavy or light decode


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in the order in which they arrive.

    arrival_s, input_tokens, output_tokens: (requests,); the first arrives at 0 or later. `name` says where they are
    from. Raises HetschedError where there are none, or a figure can't be.
    """

    arrival_s: Floats
    input_tokens: Counts
    output_tokens: Counts
    name: str = "requests"

    def __post_init__(self) -> None:
        if not self.arrival_s.size:
            raise HetschedError(f"{self.name}: there are no requests", hint="widen what is cut from the trace")
        if not self.arrival_s.shape == self.input_tokens.shape == self.output_tokens.shape:
            raise HetschedError(f"{self.name}: arrivals and lengths differ in number")
        if self.input_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise HetschedError(f"{self.name}: a request has no tokens", hint="prompts and outputs have at least one")
        if not np.isfinite(self.arrival_s).all() or self.arrival_s[0] < 0 or (np.diff(self.arrival_s) < 0).any():
            raise HetschedError(f"{self.name}: arrivals are not in order")

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @cached_property
    def rate_per_s(self) -> float:
        """Requests a second from the first arrival to the last; infinite where all arrive at once."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span_s if span_s else float("inf")

    @property
    def mean_input_tokens(self) -> float:
        """Of a prompt."""
        return float(self.input_tokens.mean())

    @property
    def mean_output_tokens(self) -> float:
        """Of an output."""
        return float(self.output_tokens.mean())

    def used(self, use: TraceUse) -> "Requests":
        """The part of a trace that counts: first the window is cut, then what is too short or long is left out."""
        kept = self.arrival_s >= use.start_s
        if use.seconds is not None:
            kept &= self.arrival_s < use.start_s + use.seconds
        kept &= (self.input_tokens >= use.min_input_tokens) & (self.output_tokens >= use.min_output_tokens)
        if use.max_input_tokens is not None:
            kept &= self.input_tokens <= use.max_input_tokens
        if use.max_output_tokens is not None:
            kept &= self.output_tokens <= use.max_output_tokens
        return self._where(kept)

    def within(self, tokens: int) -> "Requests":
        """Those whose prompt and output have at most so many tokens together."""
        return self._where(self.input_tokens + self.output_tokens <= tokens)

    def of_class(self, name: str) -> "Requests":
        """Those of a class of `CLASSES`: HP or LP, heavy or light prefill, then HD or LD, likewise decode."""
        if name not in CLASSES:
            raise HetschedError(f"{name!r} is no class of requests", hint=f"use one of: {', '.join(CLASSES)}")
        heavy_prompt = self.input_tokens > HEAVY_INPUT_TOKENS
        heavy_output = self.output_tokens > HEAVY_OUTPUT_TOKENS
        return self._where((heavy_prompt == (name[0] == "H")) & (heavy_output == (name[2] == "H")))

    def first(self, count: int) -> "Requests":
        """The first so many."""
        return self._where(np.arange(len(self)) < count)

    def at_rate(self, rate_per_s: float) -> "Requests":
        """The same requests, faster or slower: their pattern stays, their mean rate is `rate_per_s`."""
        if len(self) < 2 or not np.isfinite(self.rate_per_s):
            raise HetschedError(f"{self.name}: its rate can't be changed, as all arrive at once")
        return Requests(
            self.arrival_s * (self.rate_per_s / rate_per_s), self.input_tokens, self.output_tokens, self.name
        )

    def at_once(self) -> "Requests":
        """The same requests, all there from the beginning."""
        return Requests(np.zeros(len(self)), self.input_tokens, self.output_tokens, self.name)

    def drawn(self, count: int, rate_per_s: float | None, rng: np.random.Generator) -> "Requests":
        """So many requests with the lengths of these, drawn with replacement, that arrive as a Poisson process.

        rate_per_s None: all at once.
        """
        chosen = rng.integers(len(self), size=count)
        return Requests(
            poisson(count, rate_per_s, rng), self.input_tokens[chosen], self.output_tokens[chosen], self.name
        )

    def spread(self, count: int, rng: np.random.Generator) -> "Requests":
        """So many requests, all at once, whose lengths are spread as those of these: no chance but in their order.

        Of these in an order in which each is like its neighbours, every so manyth is taken.
        """
        rows = int(len(self) ** 0.5)  # of about equal prompts; the outputs go up in one and down in the next
        row = np.argsort(np.argsort(self.input_tokens, kind="stable"), kind="stable") * rows // len(self)
        order = np.lexsort((np.where(row % 2, -1, 1) * self.output_tokens, row))
        chosen = order[((np.arange(count) + rng.random()) * len(self) / count).astype(np.intp)]
        rng.shuffle(chosen)
        return Requests(np.zeros(count), self.input_tokens[chosen], self.output_tokens[chosen], self.name)

    def _where(self, kept: Mask) -> "Requests":
        if not kept.any():
            raise HetschedError(f"{self.name}: no request is left", hint="widen what is cut from the trace")
        arrival_s = self.arrival_s[kept]
        return Requests(arrival_s - arrival_s[0], self.input_tokens[kept], self.output_tokens[kept], self.name)


def poisson(count: int, rate_per_s: float | None, rng: np.random.Generator) -> Floats:
    """(count,) arrivals of a Poisson process that begins at 0; None: all at 0."""
    if rate_per_s is None:
        return np.zeros(count)
    return np.asarray(np.cumsum(rng.exponential(1 / rate_per_s, count)))


def sampled(load: ServingLoad, count: int, rng: np.random.Generator, longest: int | None = None) -> Requests:
    """So many requests of a load without a trace: log-normal lengths of its means, Poisson arrivals at its rate.

    longest: prompt and output together have at most so many tokens; the output, then the prompt, is cut.
    """
    inputs = _lengths(load.isl, load.isl_sigma, count, rng)
    outputs = _lengths(load.osl, load.osl_sigma, count, rng)
    if longest is not None:
        inputs = np.minimum(inputs, longest - 1)
        outputs = np.minimum(outputs, longest - inputs)
    return Requests(poisson(count, load.rate_per_s, rng), inputs, outputs, "drawn at random")


def _lengths(mean: float, sigma: float, count: int, rng: np.random.Generator) -> Counts:
    drawn = mean * np.exp(sigma * rng.standard_normal(count) - sigma**2 / 2)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)
