"""Where each second and each byte of a training plan goes, by the cost model: by stage, by link, by gradient group."""

from dataclasses import asdict, dataclass
from typing import Any

from hetsched.cluster import Cluster
from hetsched.cost.compute import StageWork
from hetsched.cost.levers import Lever, busiest_stage, levers, slowest_pipeline
from hetsched.cost.memory import reserve_bytes, stage_memory
from hetsched.cost.network import step_s
from hetsched.cost.schedule import NO_HOP, Hop, play
from hetsched.cost.traffic import GradientGroup, gradient_bytes, hop_bytes
from hetsched.cost.training import Iteration, breakdown_s, gathers_s, play_iteration
from hetsched.plan import Layers, Plan


@dataclass(frozen=True, slots=True)
class StageAccount:
    """One stage. Its seconds, from working_s to idle_s, add up to the iteration.

    forward_s, backward_s, gather_s (ZeRO 3, each pass), tensor_parallel_s (both passes): of one micro-batch, the first
    two with the others in them. working_s: all passes; held_s: sending and receiving that it does not overlap;
    waiting_s: for messages, until its last has left; peers_s: for others to join its all-reduces; idle_s: until the
    iteration ends. sent_bytes: of gradients, in its rings. memory_bytes: by cause, on each of its devices; the least
    usable_bytes of them.
    """

    pipeline: str
    stage: int
    devices: tuple[str, ...]
    kind: str
    layers: Layers
    forward_s: float
    backward_s: float
    tensor_parallel_s: float
    gather_s: float
    working_s: float
    held_s: float
    waiting_s: float
    peers_s: float
    reducing_s: float
    optimizer_s: float
    idle_s: float
    sent_bytes: float
    memory_bytes: dict[str, float]
    needed_bytes: int
    usable_bytes: float


@dataclass(frozen=True, slots=True)
class LinkAccount:
    """From a stage to a neighbour: seconds until a message is there, and how long others can't have its way; its bytes.

    The latter is longer where a message crosses others: on average it meets few, but none gets through for nothing.
    """

    pipeline: str
    source: int
    target: int
    source_device: str
    target_device: str
    arrival_s: float
    occupied_s: float
    message_bytes: float
    messages: int


@dataclass(frozen=True, slots=True)
class RingAccount:
    """A gradient group: layers (None: the tied embedding), its stages, bytes of each, seconds, and the slowest link."""

    layers: Layers | None
    members: tuple[tuple[str, int], ...]
    size_bytes: float
    seconds: float
    slowest_link: tuple[str, str]


@dataclass(frozen=True)
class Explanation:
    """All accounts of a plan. limit: (cause, sentence) of what takes most of the iteration, and where."""

    iteration_s: float
    breakdown_s: dict[str, float]
    stages: list[StageAccount]
    links: list[LinkAccount]
    rings: list[RingAccount]
    limit: tuple[str, str]
    memory: str
    levers: list[Lever]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, words, lists and dicts."""
        found = asdict(self)
        found["limit"] = {"cause": self.limit[0], "sentence": self.limit[1]}
        return found


def explain(cluster: Cluster, plan: Plan, memory_fraction: float) -> Explanation:
    """The accounts of a plan; HetschedError where it names a device that the cluster lacks."""
    iteration = play_iteration(cluster, plan)
    causes = breakdown_s(iteration)
    stages = _stages(iteration, memory_fraction)
    links = _links(iteration)
    rings = [_ring(iteration, number) for number in range(len(iteration.reductions_s))]
    return Explanation(
        iteration.seconds,
        causes,
        stages,
        links,
        rings,
        _limit(iteration, causes, rings),
        _memory(stages),
        levers(iteration),
    )


def _stages(iteration: Iteration, memory_fraction: float) -> list[StageAccount]:
    placement, gathers = iteration.placement, gathers_s(iteration.placement)
    plan, cluster = placement.plan, placement.cluster
    rings: dict[tuple[int, int], list[int]] = {}
    for number, group in enumerate(placement.groups):
        for seat in group.members:
            rings.setdefault(seat, []).append(number)
    accounts = []
    for p, pipeline in enumerate(plan.pipelines):
        depth, many = len(pipeline.stages), pipeline.micro_batches
        for s, stage in enumerate(pipeline.stages):
            work, numbers = iteration.works[p][s], rings.get((p, s), [])
            memory = stage_memory(plan.model, plan.workload, plan.options, stage, s, depth, many, len(plan.pipelines))
            sizes = [cluster.device(name).gpu.memory_bytes for name in stage.devices]
            kept = reserve_bytes(min(sizes))
            working = many * (work.forward_s + work.backward_s)
            held = 0.0 if plan.options.overlap else many * _held_s(iteration.hops[p], s)
            end, reduced = iteration.backward_s[p][s], iteration.reduced_s[p][s]
            reducing = sum(iteration.reductions_s[number] for number in numbers)
            by_cause = memory.by_cause()
            by_cause["reserve"] += kept
            accounts.append(
                StageAccount(
                    pipeline.name,
                    s,
                    stage.devices,
                    placement.workers[p][s].gpu.kind,
                    stage.layers,
                    work.forward_s,
                    work.backward_s,
                    work.tensor_parallel_s,
                    gathers[p][s],
                    working,
                    held,
                    end - working - held,
                    max(0.0, reduced - end - reducing),  # but for rounding
                    reducing,
                    iteration.finished_s[p][s] - reduced,
                    iteration.seconds - iteration.finished_s[p][s],
                    sum(_sent_bytes(plan, placement.groups[number]) for number in numbers),
                    by_cause,
                    memory.total + kept,
                    min(sizes) * memory_fraction,
                )
            )
    return accounts


def _held_s(hops: list[Hop], stage: int) -> float:
    """Seconds of one micro-batch that a stage sends and receives, where it does nothing else then."""
    before = hops[stage - 1] if stage > 0 else NO_HOP
    after = hops[stage] if stage < len(hops) else NO_HOP
    received = before.forward_occupied_s + before.forward_latency_s + after.backward_occupied_s
    return received + after.backward_latency_s + after.forward_occupied_s + before.backward_occupied_s


def _sent_bytes(plan: Plan, group: GradientGroup) -> float:
    """What each member of a ring sends (Patarasuk and Yuan 2009)."""
    members = len(group.members)
    return 2 * (members - 1) / members * gradient_bytes(plan, group)


def _links(iteration: Iteration) -> list[LinkAccount]:
    plan = iteration.placement.plan
    there, back = hop_bytes(plan)
    found = []
    for pipeline, hops in zip(plan.pipelines, iteration.hops, strict=True):
        first = [stage.devices[0] for stage in pipeline.stages]
        for s, hop in enumerate(hops):
            forward, backward = (
                (hop.forward_occupied_s + hop.forward_latency_s, hop.forward_occupied_s, there),
                (hop.backward_occupied_s + hop.backward_latency_s, hop.backward_occupied_s, back),
            )
            for a, b, times in ((s, s + 1, forward), (s + 1, s, backward)):
                found.append(LinkAccount(pipeline.name, a, b, first[a], first[b], *times, pipeline.micro_batches))
    return found


def _ring(iteration: Iteration, number: int) -> RingAccount:
    placement = iteration.placement
    plan, cluster = placement.plan, placement.cluster
    group, ring = placement.groups[number], placement.rings[number]
    size, members = gradient_bytes(plan, group), placement.members(ring)
    crowd = [sum(other.node == team.node for other in members) for team in members]
    steps = [
        step_s(cluster, a, b, size / len(members), placement.gradient_lanes[number], count)
        for a, b, count in zip(members, [*members[1:], members[0]], crowd, strict=True)
    ]
    worst = steps.index(max(steps))
    ends = ring[worst], ring[(worst + 1) % len(ring)]
    link = [plan.pipelines[p].stages[s].devices[0] for p, s in ends]
    return RingAccount(
        group.layers,
        tuple((plan.pipelines[p].name, s) for p, s in group.members),
        size,
        iteration.reductions_s[number],
        (link[0], link[1]),
    )


def _limit(iteration: Iteration, causes: dict[str, float], rings: list[RingAccount]) -> tuple[str, str]:
    cause = max(causes, key=lambda name: causes[name])
    share = causes[cause] / iteration.seconds if iteration.seconds else 0.0
    plan, p = iteration.placement.plan, slowest_pipeline(iteration)
    pipeline, works = plan.pipelines[p], iteration.works[p]
    s = busiest_stage(works)
    stage = f"stage {s} of {pipeline.name} ({', '.join(pipeline.stages[s].devices)})"
    match cause:
        case "compute":
            text = f"the computing of {stage}, the busiest of the pipeline that ends last"
        case "tensor_parallel":
            text = f"the tensor-parallel all-reduces inside {stage}"
        case "bubble":
            text = f"the bubble of {pipeline.name}: {pipeline.micro_batches} micro-batches in {len(works)} stages, of "
            text += f"which stage {s} is the slowest"
        case "pipeline_parallel":
            hop = _worst_hop(plan, works, iteration.hops[p], pipeline.micro_batches)
            ends = (pipeline.stages[number].devices[0] for number in (hop, hop + 1))
            text = f"the links of {pipeline.name}, first of all that between {' and '.join(ends)}"
        case "data_parallel":
            worst = max(rings, key=lambda ring: ring.seconds)
            what = (
                "the tied embedding" if worst.layers is None else f"blocks {worst.layers[0]} to {worst.layers[1] - 1}"
            )
            text = f"the all-reduce of gradients, first of all that of {what} over the link from "
            text += f"{worst.slowest_link[0]} to {worst.slowest_link[1]}"
        case _:
            text = "the optimiser step"
    return cause, f"{share:.0%} of the iteration is {text}"


def _worst_hop(plan: Plan, works: list[StageWork], hops: list[Hop], micro_batches: int) -> int:
    """The link of a pipeline that would gain most if it took no time."""
    ends = [
        max(play(plan.options.schedule, works, [*hops[:k], Hop(), *hops[k + 1 :]], micro_batches, plan.options.overlap))
        for k in range(len(hops))
    ]
    return ends.index(min(ends))


def _memory(stages: list[StageAccount]) -> str:
    """Which device is fullest, and what fills it."""
    fullest = max(stages, key=lambda stage: stage.needed_bytes / stage.usable_bytes)
    share = fullest.needed_bytes / fullest.usable_bytes
    most = max(fullest.memory_bytes, key=lambda cause: fullest.memory_bytes[cause])
    words = most.replace("_", " ").replace("optimizer", "optimiser")
    part = fullest.memory_bytes[most] / fullest.needed_bytes
    text = f"{fullest.devices[0]} needs {share:.0%} of what may be used of its memory, {part:.0%} of that for {words}"
    return f"{text}: the plan does not fit" if share > 1 else text
