"""What a cost model says of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from hetsched.cluster import Cluster
from hetsched.cost.chains import ChainPricer
from hetsched.model import ModelSpec
from hetsched.plan import Options, Plan
from hetsched.units import SECONDS_PER_HOUR, TOKENS_PER_MILLION
from hetsched.workload import TrainingJob


@dataclass(frozen=True, slots=True)
class Violation:
    """A limit that the plan breaks: an infeasible plan is data, not an exception."""

    device: str
    limit: str
    needed: float
    available: float

    @property
    def message(self) -> str:
        """One line for a person."""
        over = (self.needed - self.available) / 2**30
        return (
            f"{self.device} needs {self.needed / 2**30:.1f} GiB, {self.available / 2**30:.1f} GiB are usable "
            f"({over:.1f} GiB too much)"
        )

    def to_json(self) -> dict[str, Any]:
        """The violation for a JSON document."""
        return {
            "device": self.device,
            "limit": self.limit,
            "needed_bytes": int(self.needed),
            "available_bytes": int(self.available),
            "message": self.message,
        }


@dataclass(frozen=True)
class Cost:
    """Named numbers with units in the names.

    breakdown_s: seconds by cause; in `roofline` the parts add up to iteration_s. memory_bytes: by device.
    mfu counts no recomputed FLOPs, hfu does.
    """

    iteration_s: float
    tokens_per_iteration: int
    model_flops: float
    hardware_flops: float
    peak_flops_per_s: float
    breakdown_s: Mapping[str, float]
    memory_bytes: Mapping[str, int]
    violations: tuple[Violation, ...] = ()
    usd_per_hour: float | None = None
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the global batch a second."""
        return self.tokens_per_iteration / self.iteration_s if self.iteration_s else inf

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: FLOPs the model needs, over what the plan's devices could do in the time."""
        return self._utilisation(self.model_flops)

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilisation: recomputed FLOPs count too."""
        return self._utilisation(self.hardware_flops)

    def _utilisation(self, flops: float) -> float:
        possible = self.iteration_s * self.peak_flops_per_s
        return flops / possible if possible else 0.0

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Price of a million tokens, where every node's price is known."""
        if self.usd_per_hour is None:
            return None
        hours = self.iteration_s / SECONDS_PER_HOUR
        return self.usd_per_hour * hours / self.tokens_per_iteration * TOKENS_PER_MILLION

    @property
    def feasible(self) -> bool:
        """Whether no limit is broken."""
        return not self.violations

    def rank(self, objective: str = "time") -> tuple[float, float]:
        """Smaller is better: first by how far limits are broken, then by time or by price."""
        broken = sum(v.needed / v.available - 1 for v in self.violations)
        price = self.usd_per_million_tokens
        return broken, price if objective == "cost" and price is not None else self.iteration_s

    def predicted(self) -> dict[str, Any]:
        """The plan file's `predicted` object, with the violations."""
        return {
            "iteration_s": self.iteration_s,
            "tokens_per_s": self.tokens_per_s if self.iteration_s else 0.0,
            "mfu": self.mfu,
            "hfu": self.hfu,
            "usd_per_hour": self.usd_per_hour,
            "usd_per_million_tokens": self.usd_per_million_tokens,
            "breakdown_s": dict(self.breakdown_s),
            "memory_bytes": dict(self.memory_bytes),
            **self.details,
            "violations": [violation.to_json() for violation in self.violations],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a cost model takes as given of every plan, so that a search need not look at anything else.

    even_layers, even_batches: its stages, or its pipelines' batches, are equal. communication_only: it counts no
    computing. schedule, recompute, zero: the only setting it knows, None where it tells settings apart.
    """

    even_layers: bool = False
    even_batches: bool = False
    communication_only: bool = False
    schedule: str | None = None
    recompute: bool | None = None
    zero: int | None = None


NOTHING_ASSUMED = Assumptions()


class CostModel(Protocol):
    """Prices a plan on a cluster."""

    @property
    def name(self) -> str:
        """What `--cost-model` calls it."""
        ...

    @property
    def memory_fraction(self) -> float:
        """The share of a device's memory that a plan may use."""
        ...

    @property
    def assumes(self) -> Assumptions:
        """What it takes as given of every plan."""
        ...

    def refuses(self, plan: Plan) -> str | None:
        """Why the model has no price for plans of this shape, or None."""
        ...

    def price(self, cluster: Cluster, plan: Plan) -> Cost:
        """The plan's cost; HetschedError where it names a device that the cluster lacks, or is refused."""
        ...

    def chains(
        self,
        cluster: Cluster,
        members: Sequence[Sequence[int]],
        model: ModelSpec,
        job: TrainingJob,
        options: Options,
    ) -> ChainPricer | None:
        """A quick way to price many asymmetric plans, None where it has none; members: per class, its devices."""
        ...
