"""What is asked of the cluster."""

from dataclasses import dataclass

from hetsched.errors import HetschedError
from hetsched.units import DTYPE_BYTES

DEFAULT_ISL, DEFAULT_OSL = 512.0, 128.0  # tokens in and out
WIDEST_SIGMA = 5.0  # of the logarithm of a length: e to that is a factor of 150
LEAST_RATE, MOST_RATE = 1e-6, 1e9  # requests a second


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training iteration: `global_batch` sequences of `seq_len` tokens, `micro_batch` sequences at a time."""

    global_batch: int
    seq_len: int
    micro_batch: int = 1
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("global_batch", "seq_len", "micro_batch"):
            if getattr(self, name) < 1:
                raise HetschedError(f"workload: {name} is {getattr(self, name)}, expected at least 1")
        if self.dtype not in DTYPE_BYTES:
            raise HetschedError(f"workload: dtype is {self.dtype!r}", hint=f"use one of: {', '.join(DTYPE_BYTES)}")

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight or activation on the wire and in the forward pass."""
        return DTYPE_BYTES[self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens an iteration is credited for."""
        return self.global_batch * self.seq_len


@dataclass(frozen=True, slots=True)
class Limit:
    """A target of a service-level objective: so many percent of the requests are to be within `value`."""

    value: float
    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not 0.0 < self.value < float("inf"):
            raise HetschedError(f"slo: a limit is {self.value}, expected a number greater than 0")
        if not 0.0 < self.percentile <= 100.0:
            raise HetschedError(f"slo: a percentile is {self.percentile}", hint="give a number up to 100, e.g. 99")


@dataclass(frozen=True, slots=True)
class Slo:
    """Service-level objectives: what is not None must hold.

    ttft, tpot, e2e: limits in seconds on the time to the first token, the time per output token after it, and the whole
    of a request. scale: a limit on a request's time over what it would take alone on a reference replica, as in HexGen
    and AlpaServe (arXiv 2302.11665).
    """

    ttft: Limit | None = None
    tpot: Limit | None = None
    e2e: Limit | None = None
    scale: Limit | None = None

    @property
    def limits(self) -> dict[str, Limit]:
        """Those that are set, by name."""
        named = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e, "scale": self.scale}
        return {name: limit for name, limit in named.items() if limit is not None}

    @property
    def bounds_requests(self) -> bool:
        """Whether the limits bound all of a request's time: then none is kept while a queue grows without end."""
        whole = self.e2e is not None or self.scale is not None
        return whole or (self.ttft is not None and self.tpot is not None)


@dataclass(frozen=True, slots=True)
class TraceUse:
    """A trace of requests and the part of it that counts.

    trace: a name of the catalogue or a path. Requests with fewer or more tokens are left out; start_s and seconds cut a
    window, in the trace's own time.
    """

    trace: str
    min_input_tokens: int = 1
    max_input_tokens: int | None = None
    min_output_tokens: int = 1
    max_output_tokens: int | None = None
    start_s: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ServingLoad:
    """Requests to serve.

    rate_per_s: requests a second, None: those of the trace as it is, or as many as can be served. Where there is no
    trace, prompts have `isl` tokens and outputs `osl` on average, log-normal with these sigmas (of the logarithm), and
    arrivals are a Poisson process. Raises HetschedError where a figure can't be.
    """

    isl: float = DEFAULT_ISL
    osl: float = DEFAULT_OSL
    rate_per_s: float | None = None
    isl_sigma: float = 0.0
    osl_sigma: float = 0.0
    trace: TraceUse | None = None
    dtype: str = "bf16"
    slo: Slo = Slo()

    def __post_init__(self) -> None:
        for name in ("isl", "osl"):
            if not 1.0 <= getattr(self, name) < float("inf"):
                raise HetschedError(f"workload: {name} is {getattr(self, name)}, expected at least 1 token")
        for name in ("isl_sigma", "osl_sigma"):
            if not 0.0 <= getattr(self, name) <= WIDEST_SIGMA:
                raise HetschedError(f"workload: {name} is {getattr(self, name)}, expected 0 to {WIDEST_SIGMA:g}")
        if self.rate_per_s is not None and not LEAST_RATE <= self.rate_per_s <= MOST_RATE:
            raise HetschedError(
                f"workload: rate_per_s is {self.rate_per_s:g}, expected {LEAST_RATE:g} to {MOST_RATE:g}",
                hint="requests a second",
            )
        if self.dtype not in DTYPE_BYTES:
            raise HetschedError(f"workload: dtype is {self.dtype!r}", hint=f"use one of: {', '.join(DTYPE_BYTES)}")
