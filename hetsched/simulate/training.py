"""One training iteration, event by event: passes, messages, collectives, and the networks they share.

Each stage does its passes in the order of its schedule, one at a time. With overlap a message queues for the link to
the neighbour, which carries one at a time each way, and stages go on meanwhile; without, a stage does nothing else
while it sends or receives. With ZeRO 3 each pass first gathers the stage's weights. After its last backward, when its
messages have left, a stage reduces the gradients of its blocks, group by group in the executor's order, and each group
waits for all its members; then it takes its optimiser step. A ring is one transfer of the ring's length, and slows down
with its slowest link.

What the cost model works out for a fixed share of each network, all that could be sent at once taken together, happens
here at the share that is free at the time. The model claims to be exact where no network of a node ever carries more
than one transfer at once: there both agree to rounding (`Simulation.exact`). Where several of one kind share (the
activations of several pipelines, say) the model's share is the least there can be. Activations and their gradients it
has meet on average (`cost.hops`); gradients of weights (with ZeRO 3's weights), and those of a tied embedding, which
come last, it has meet nothing else. So the simulated iteration may be shorter or longer; with `kinds_apart`, these four
kinds on networks of their own, it is never longer than the model's of the same.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from hetsched.cluster import Cluster
from hetsched.cost.base import Cost
from hetsched.cost.network import flows
from hetsched.cost.placement import Placement, place
from hetsched.cost.training import Iteration, iteration_cost
from hetsched.plan import Plan
from hetsched.simulate.stages import Event, Run, StageTimes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Simulation:
    """An iteration as it went. stages: [pipeline][stage]; reductions: (start, end) of each gradient group.

    exact: whether the cost model claims to be exact here; events: in the order of their ends, where they were asked
    for; happened: how many events the clock had.
    """

    placement: Placement
    stages: list[list[StageTimes]]
    reductions: list[tuple[float, float]]
    exact: bool
    happened: int
    events: list[Event]

    @property
    def iteration_s(self) -> float:
        """The whole iteration."""
        return max(times.finished_s for line in self.stages for times in line)


def simulate_iteration(
    cluster: Cluster,
    plan: Plan,
    *,
    record: bool = False,
    kinds_apart: bool = False,
    watch: Progress | None = None,
) -> Simulation:
    """Play one iteration of the plan; HetschedError where it names a device that the cluster lacks.

    record: keep all events; kinds_apart: see the module; watch: told now and then how many passes of how many are done.
    """
    placement = place(cluster, plan)
    run = Run(placement, kinds_apart, record)
    total = passes_of(plan)
    run.clock.run(None if watch is None else lambda: watch(run.passes, total))
    times = [[stage.times for stage in line] for line in run.stages]
    exact = _each_alone(placement, kinds_apart) and not run.wiring.shared
    return Simulation(placement, times, run.reductions, exact, run.clock.events, run.events or [])


def passes_of(plan: Plan) -> int:
    """Forwards and backwards of all its stages."""
    return sum(2 * pipeline.micro_batches * len(pipeline.stages) for pipeline in plan.pipelines)


def simulated_cost(
    simulation: Simulation, model: Iteration, memory_fraction: float, apart_s: float | None = None
) -> Cost:
    """The simulated plan's Cost, its time by cause from the simulation; under `simulation` what each stage did.

    model: the cost model's iteration of the same plan; apart_s: the simulated one with kinds kept apart, if known.
    """
    stages = simulation.stages
    cost = iteration_cost(
        replace(
            model,
            backward_s=[[times.backward_end_s for times in line] for line in stages],
            reduced_s=[[times.reduced_s for times in line] for line in stages],
            finished_s=[[times.finished_s for times in line] for line in stages],
            reductions_s=[end - start for start, end in simulation.reductions],
        ),
        memory_fraction,
    )
    found = {
        "exact": simulation.exact,
        "model_iteration_s": model.seconds,
        "kinds_apart_iteration_s": apart_s,
        "events": simulation.happened,
        "stages": [
            {"pipeline": pipeline.name, "stage": s, **asdict(times)}
            for pipeline, line in zip(simulation.placement.plan.pipelines, stages, strict=True)
            for s, times in enumerate(line)
        ],
    }
    return replace(cost, details={**cost.details, "simulation": found})


def _each_alone(placement: Placement, kinds_apart: bool) -> bool:
    """Whether the cost model shares no network: each of its flows has links, uplinks and downlinks to itself.

    Where kinds meet here too, its activations and their gradients must not slow each other down. What the devices of a
    stage on several nodes tell one another is played as if nothing else were on the way.
    """
    if any(team.spans for line in placement.teams for team in line):
        return False
    if not kinds_apart:
        apart = replace(placement, crossing_lanes=None)
        if any(placement.hops(p) != apart.hops(p) for p in range(len(placement.teams))):
            return False
    teams = placement.teams
    pairs = [(a, b) for line in teams for a, b in pairwise(line)]
    rings = [placement.members(ring) for ring in placement.rings]
    around = [list(zip(ring, [*ring[1:], ring[0]], strict=True)) for ring in rings]
    kinds = [
        (placement.forward_lanes, pairs, placement.in_parts),
        (placement.backward_lanes, [(b, a) for a, b in pairs], placement.in_parts),
        *((lanes, hops, True) for lanes, hops in zip(placement.gradient_lanes, around, strict=True)),
    ]
    return all(
        lanes.out[a.node] == lanes.into[b.node] == flows(a, b, in_parts)
        for lanes, transfers, in_parts in kinds
        for a, b in transfers
        if a.node != b.node
    )
