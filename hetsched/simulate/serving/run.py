"""A serving plan and its requests, from the first arrival to the last token."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from hetsched.cluster import Cluster
from hetsched.cost.serving.kv_transfer import kv_parts
from hetsched.cost.serving.replica import ReplicaTimes, replica_times
from hetsched.plan import ServingPlan
from hetsched.requests import Requests
from hetsched.simulate.network import Clock, SharedNetwork
from hetsched.simulate.serving.engine import Engine
from hetsched.simulate.serving.job import Job, Outcome
from hetsched.simulate.serving.result import ReplicaLoad, ServingRun
from hetsched.simulate.serving.router import Router, router
from hetsched.simulate.serving.times import StepTimes
from hetsched.simulate.serving.transfers import KvRoute

MEMORY_FRACTION = 0.92
Watch = Callable[[int, int], None]  # requests done, of how many


@dataclass(frozen=True)
class Settings:
    """routing: of `ROUTINGS`; seed: of what is left to chance; record: the request whose life is kept, a position."""

    routing: str = "shares"
    seed: int = 0
    record: int | None = None


def simulate_serving(
    cluster: Cluster,
    plan: ServingPlan,
    requests: Requests,
    settings: Settings = Settings(),
    *,
    memory_fraction: float = MEMORY_FRACTION,
    times: Mapping[str, ReplicaTimes | StepTimes] | None = None,
    watch: Watch | None = None,
) -> ServingRun:
    """Play the requests on the plan. Equal seeds give equal runs.

    times: of pipelines by name, where they are known already; a table of steps goes on being filled. A request that no
    replica could ever hold is rejected when it comes to one. Raises HetschedError where the plan names a device that
    the cluster lacks.
    """
    known = times or {}
    steps = {
        pipeline.name: _tabulated(
            known.get(pipeline.name)
            or replica_times(cluster, plan.model, pipeline.stages, plan.precision, memory_fraction)
        )
        for pipeline in plan.pipelines
    }
    engines = [Engine(p.name, steps[p.name], p.role, p.max_batch, plan.options) for p in plan.pipelines]
    jobs = [
        Job(index, *figures, index == settings.record)
        for index, figures in enumerate(
            zip(
                requests.arrival_s.tolist(),
                requests.input_tokens.tolist(),
                requests.output_tokens.tolist(),
                strict=True,
            )
        )
    ]
    run = _Run(cluster, plan, engines, jobs, settings)
    if plan.disaggregated or settings.routing == "least-loaded":
        run.together(watch)
    else:
        run.one_by_one(watch)
    return _result(plan, requests, engines, jobs)


def _tabulated(times: ReplicaTimes | StepTimes) -> StepTimes:
    return times if isinstance(times, StepTimes) else StepTimes(times)


class _Run:
    """Engines, their routers, and what is between them."""

    def __init__(
        self, cluster: Cluster, plan: ServingPlan, engines: list[Engine], jobs: list[Job], settings: Settings
    ) -> None:
        self.cluster, self.plan, self.engines, self.jobs = cluster, plan, engines, jobs
        self.clock = Clock()
        self._done = 0
        self._under_way = [0] * len(engines)
        self._versions = [0] * len(engines)
        self._at_the_door: list[deque[tuple[Job, int]]] = [deque() for _ in engines]  # their KV waits for room
        position = {pipeline.name: k for k, pipeline in enumerate(plan.pipelines)}
        rng = np.random.default_rng(settings.seed)
        sources = [None, *(pipeline.name for pipeline in plan.pipelines if pipeline.role == "prefill")]
        self._routers: dict[int | None, Router] = {}
        for source in sources:
            shares = {position[target]: share for target, share in plan.shares(source).items()}
            self._routers[None if source is None else position[source]] = router(settings.routing, shares, rng)
        network = SharedNetwork(self.clock)
        self._routes: dict[tuple[int, int], KvRoute] = {}
        for route in plan.routes:
            if route.source is not None:
                ends = position[route.source], position[route.target]
                stages = (plan.pipelines[end].stages for end in ends)
                parts = kv_parts(cluster, plan.model, plan.precision, *stages)
                self._routes[ends] = KvRoute(cluster, parts, self.clock, network)
        network.know([channel for kv_route in self._routes.values() for channel in kv_route.channels])

    # ---- replicas that have nothing to do with one another

    def one_by_one(self, watch: Watch | None) -> None:
        """Play each replica's requests alone; which those are does not depend on what happens."""
        mine: list[list[Job]] = [[] for _ in self.engines]
        choose = self._routers[None].choose
        for job in self.jobs:
            mine[choose(self._under_way)].append(job)
        for number, (engine, jobs) in enumerate(zip(self.engines, mine, strict=True)):
            for job in jobs:
                if self._refused(job, number):
                    continue
                engine.advance(job.arrival_s)
                engine.arrive(job)
                engine.outcomes.clear()
                self._done += 1
                if watch is not None and self._done % 256 == 0:
                    watch(self._done, len(self.jobs))
            engine.advance(float("inf"))
            engine.outcomes.clear()

    def _refused(self, job: Job, number: int) -> bool:
        job.entry = job.replica = number
        job.rejected = not self.engines[number].fits(job)
        return job.rejected

    # ---- replicas on one clock

    def together(self, watch: Watch | None) -> None:
        """Play all replicas at once: what one does, others feel."""
        self.clock.at(self.jobs[0].arrival_s, self._arrive, 0)
        self.clock.run(None if watch is None else lambda: watch(self._done, len(self.jobs)))

    def _arrive(self, index: int) -> None:
        if index + 1 < len(self.jobs):
            self.clock.at(self.jobs[index + 1].arrival_s, self._arrive, index + 1)
        job, number = self.jobs[index], self._routers[None].choose(self._under_way)
        if self._refused(job, number):
            self._done += 1
            return
        self._under_way[number] += 1
        engine = self.engines[number]
        engine.advance(self.clock.now)
        engine.arrive(job)
        self._look_ahead(number)

    def _look_ahead(self, number: int) -> None:
        """See to it that what comes of an engine's steps is known in time."""
        engine = self.engines[number]
        for outcome in engine.outcomes:
            self.clock.at(outcome.time_s, self._came, (number, outcome))
        engine.outcomes.clear()
        self._versions[number] += 1
        next_s = engine.earliest_outcome_s()
        if next_s < float("inf"):
            self.clock.at(max(next_s, self.clock.now), self._woken, (number, self._versions[number]), last=True)

    def _woken(self, call: tuple[int, int]) -> None:
        number, version = call
        if version == self._versions[number]:
            self.engines[number].advance(self.clock.now, inclusive=True)
            self._look_ahead(number)

    def _came(self, call: tuple[int, Outcome]) -> None:
        number, outcome = call
        self._under_way[number] -= 1
        if outcome.done:
            self._done += 1
            if self._at_the_door[number]:
                self._let_in(number)
            return
        job, now = outcome.job, self.clock.now
        target = self._routers[number].choose(self._under_way)
        if not self.engines[target].fits(job):
            job.rejected = True
            self._done += 1
            self._release(job, number)
            return
        self._under_way[target] += 1
        job.available_s, job.replica = now, target
        self._at_the_door[target].append((job, number))
        self._let_in(target)

    def _let_in(self, number: int) -> None:
        """Send the KV that waits for a decode replica, in turn, as far as there is room."""
        engine, now, door = self.engines[number], self.clock.now, self._at_the_door[number]
        engine.advance(now)
        while door and engine.has_room(door[0][0], now):
            job, source = door.popleft()
            engine.expect(job, now)
            job.note("handoff", self.engines[source].name, job.available_s, now)
            job.available_s = now
            self._routes[source, number].send(job, partial(self._landed, source))
        self._look_ahead(number)

    def _landed(self, source: int, job: Job) -> None:
        now, number = self.clock.now, job.replica
        job.note("transfer", self.engines[number].name, job.available_s, now, job.prompt)
        job.available_s = now
        self._release(job, source)
        self.engines[number].advance(now)
        self.engines[number].land(job)
        self._look_ahead(number)

    def _release(self, job: Job, number: int) -> None:
        self.engines[number].advance(self.clock.now)
        self.engines[number].release(job, self.clock.now)
        self._look_ahead(number)


def _result(plan: ServingPlan, requests: Requests, engines: list[Engine], jobs: list[Job]) -> ServingRun:
    served = [0] * len(engines)
    for job in jobs:
        if not job.rejected:
            served[job.replica] += 1
    ends = np.array([job.finish_s for job in jobs])
    finished = ends[np.isfinite(ends)]
    span_s = float(finished.max() - requests.arrival_s[0]) if finished.size else 0.0
    loads = tuple(
        ReplicaLoad(
            name=engine.name,
            requests=served[number],
            decoded_tokens=engine.decoded,
            prefilled_tokens=engine.prefilled,
            steps=engine.steps,
            busy=tuple(busy_s / span_s if span_s else 0.0 for busy_s in engine.stages.busy_s),
            prompt_s=engine.stages.busiest_prompt_s(engine.prefilled, engine.decoded),
            peak_batch=engine.peak_running,
            preemptions=engine.preemptions,
            kv_capacity_tokens=engine.cache.capacity_tokens,
            kv_peak_tokens=engine.cache.peak_tokens,
            kv_mean_tokens=engine.cache.token_s / span_s if span_s else 0.0,
        )
        for number, engine in enumerate(engines)
    )
    logs = [job for job in jobs if job.log is not None]
    return ServingRun(
        plan=plan,
        requests=requests,
        first_s=np.array([job.first_s for job in jobs]),
        begun_s=np.array([job.begun_s for job in jobs]),
        decoded_before=np.array([job.decoded_before for job in jobs]),
        finish_s=ends,
        rejected=np.array([job.rejected for job in jobs]),
        preemptions=np.array([job.preemptions for job in jobs]),
        entry=np.array([job.entry for job in jobs]),
        replica=np.array([job.replica for job in jobs]),
        loads=loads,
        span_s=span_s,
        moments=tuple(logs[0].log or ()) if logs else (),
    )
