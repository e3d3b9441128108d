"""What `explain` says of a serving plan: its stages, replicas and routes, and what would let it serve more."""

from dataclasses import asdict, dataclass
from typing import Any

from hetsched.plan import Layers


@dataclass(frozen=True, slots=True)
class ServingStageAccount:
    """One stage. prefill_s: of a mean prompt; decode_s: of a step of its group of sequences: seconds by cause.

    `hop` is what lies between the stage and the next one, the last and the first. computes: whether arithmetic, not
    memory traffic, takes longer in the products of a prompt, and of a decode step. busy: the share of the time it
    works. Bytes are on each GPU, on the one that has least room.
    """

    replica: str
    stage: int
    devices: tuple[str, ...]
    kind: str
    layers: Layers
    prefill_s: dict[str, float]
    decode_s: dict[str, float]
    computes: tuple[bool, bool]
    busy: float
    weights_bytes: float
    workspace_bytes: float
    reserve_bytes: float
    kv_held_bytes: float
    kv_room_bytes: float


@dataclass(frozen=True, slots=True)
class ReplicaAccount:
    """One replica at `requests_per_s`; capacity_per_s: all that it could do.

    batch: mean sequences in flight, of `largest_batch`, which the plan's max_batch or the KV cache sets; round_s: from
    a token to the next, of which overhead_s is the engine's; limit: (cause, sentence).
    """

    name: str
    role: str
    requests_per_s: float
    capacity_per_s: float
    batch: float
    largest_batch: int
    kv_capacity_tokens: int
    kv_limits: bool
    round_s: float
    overhead_s: float
    limit: tuple[str, str]


@dataclass(frozen=True, slots=True)
class RouteAccount:
    """What arrives at a replica (source None), or the KV caches that go from one to another.

    kv_bytes: of a request; kv_s: on the way; most_per_s: what the links and the target could take.
    """

    source: str | None
    target: str
    share: float
    requests_per_s: float
    kv_bytes: float
    kv_s: float
    most_per_s: float
    limit: str


@dataclass(frozen=True, slots=True)
class ServingLever:
    """A change, and the capacity of the whole plan with it."""

    name: str
    what: str
    capacity_per_s: float


@dataclass(frozen=True, slots=True)
class Growth:
    """One GPU more of a kind on a node: which replica gains most by it (None: it makes one), and what all then serve.

    before_per_s, after_per_s: of the whole plan, within the SLO, requests shared as the replicas can take them.
    """

    kind: str
    node: str
    replica: str | None
    layout: str
    before_per_s: float
    after_per_s: float


@dataclass(frozen=True)
class ServingExplanation:
    """All accounts of a plan, at `requests_per_s`. limit: what gives way first when more is asked."""

    requests_per_s: float
    capacity_per_s: float
    asked: bool
    limit: str
    replicas: list[ReplicaAccount]
    stages: list[ServingStageAccount]
    routes: list[RouteAccount]
    levers: list[ServingLever]
    growth: list[Growth]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, words, lists and dicts."""
        found = asdict(self)
        for replica in found["replicas"]:
            replica["limit"] = {"cause": replica["limit"][0], "sentence": replica["limit"][1]}
        return found
