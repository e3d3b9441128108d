"""The simulator's judgement of a draft: what it is worth by the problem's objective."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hetsched.cost.serving.flow import carried_per_s
from hetsched.cost.serving.reference import alone
from hetsched.cost.serving.replica import ReplicaTimes
from hetsched.plan import Route, ServingPipeline, ServingPlan
from hetsched.requests import Requests
from hetsched.serving_problem import ServingProblem
from hetsched.simulate.serving.alone import full_rate_per_s
from hetsched.simulate.serving.limits import PRECISION, highest_rate, saturated_per_s
from hetsched.simulate.serving.result import ServingRun
from hetsched.simulate.serving.run import Settings, simulate_serving
from hetsched.simulate.serving.times import StepTimes
from hetsched.solvers.serving.workshop import Draft, Replica
from hetsched.workload import LEAST_RATE

FEW_REQUESTS, ALONE_PRECISION = 300, 0.05  # of a replica by itself
LEAST_REQUESTS, ROUNDS_AT_ONCE = 800, 4  # without a rate every replica gets so many times what fits at once
LEAST_ROUNDS = 2.5  # in a plan of many replicas: it fills, and is full for a while
LIMITS_LONG, MOST_REQUESTS = 10.0, 6_000  # a run lasts so many times the longest limit, but has no more requests
MOST_AT_ONCE = 16  # times the usual number of requests
LOWEST_SHARE = 1.0 / 64  # of the steady state's capacity: an SLO that does not hold there holds nowhere
LARGEST = 1e12
SETTINGS = Settings()


@dataclass(frozen=True, eq=False)
class Verdict:
    """A draft, the requests a second it was played at, what happened, and its value: larger is better.

    keeps: whether every limit of the SLO held, and the plan keeps up with the rate; usd_per_hour: of its nodes, None
    where a price is not known.
    """

    draft: Draft
    rate_per_s: float
    run: ServingRun
    value: tuple[float, ...]
    keeps: bool
    usd_per_hour: float | None = None


@dataclass(frozen=True, eq=False)
class Judge:
    """Plays drafts. count: requests of a run; seed: of their arrivals and lengths."""

    problem: ServingProblem
    reference: ReplicaTimes | None
    count: int = LEAST_REQUESTS
    seed: int = 0
    _alone: dict[tuple[object, ...], float] = field(default_factory=dict)
    _full: dict[tuple[object, ...], float] = field(default_factory=dict)
    _steps: dict[int, StepTimes] = field(default_factory=dict)

    def play(self, draft: Draft, rate_per_s: float | None) -> ServingRun:
        """A run at a rate; None: all requests at once."""
        times = {p.name: self._table(r.times) for p, r in zip(draft.plan.pipelines, draft.replicas, strict=True)}
        requests = self._requests(draft, rate_per_s)
        return simulate_serving(self.problem.cluster, draft.plan, requests, SETTINGS, times=times)

    def most_per_s(self, draft: Draft) -> float:
        """The requests a second that the plan does when all are there at once."""
        key = (draft.plan.pipelines, draft.plan.routes)
        if key not in self._full:
            self._full[key] = saturated_per_s(self.play(draft, None))
        return self._full[key]

    def keeps_up(self, draft: Draft, rate_per_s: float) -> bool:
        """Whether no queue grows without end.

        Limits that bound all of a request's time see that by themselves, where a run lasts many times as long.
        """
        whole = self.problem.load.slo.bounds_requests and self._enough(rate_per_s) <= MOST_REQUESTS
        return whole or rate_per_s <= self.most_per_s(draft)

    def highest(self, draft: Draft, guess_per_s: float, precision: float = PRECISION) -> float:
        """The highest rate at which the SLO holds and the plan keeps up; 0 where that is nowhere near its score."""
        slo = self.problem.load.slo
        least = max(draft.score * LOWEST_SHARE, LEAST_RATE)
        guess = guess_per_s if self.keeps_up(draft, guess_per_s) else self.most_per_s(draft)

        def holds(rate_per_s: float) -> bool:
            tried = rate_per_s >= least and self.keeps_up(draft, rate_per_s)
            return tried and self.play(draft, rate_per_s).keeps(slo, self.reference)

        return highest_rate(holds, guess, precision)

    def _enough(self, rate_per_s: float) -> float:
        """Requests that a run at a rate needs to last many times as long as the SLO lets one take."""
        return LIMITS_LONG * self._longest_limit_s * rate_per_s

    def _table(self, times: ReplicaTimes) -> StepTimes:
        """Of these very times, which a workshop's replicas share where they are alike; it is filled from run to run."""
        known = self._steps.get(id(times))
        if known is None:
            known = self._steps[id(times)] = StepTimes(times)
        return known

    @property
    def plays(self) -> int:
        """How many replicas were played by themselves so far."""
        return len(self._alone)

    def rate_alone(self, replica: Replica) -> float:
        """The highest rate at which a replica by itself keeps the SLO, or all that it serves where there is none.

        Those that are alike but for their GPUs' names are played once. With an SLO what a replica for one phase keeps
        is left as the steady state has it: there are no limits for a part of a request.
        """
        if replica.role != "both" and self.problem.load.slo.limits:
            return replica.rate_per_s
        times = replica.times
        stages = tuple((stage.blocks, stage.degree, stage.gpu.kind) for stage in times.stages)
        key = (replica.role, stages, times.hops, times.kv_room_bytes, replica.max_batch)
        if key not in self._alone:
            self._alone[key] = self._played_alone(replica) if replica.rate_per_s > 0.0 else 0.0
        return self._alone[key]

    def _played_alone(self, replica: Replica) -> float:
        problem = self.problem
        if not problem.load.slo.limits:
            count = max(FEW_REQUESTS, ROUNDS_AT_ONCE * replica.max_batch)
            requests = problem.requests.spread(count, np.random.default_rng(self.seed))
            table = self._table(replica.times)
            return full_rate_per_s(table, replica.role, replica.max_batch, problem.options, requests)
        pipeline = ServingPipeline("r0", replica.stages, replica.max_batch)
        plan = ServingPlan(problem.model, problem.load, (pipeline,), (Route(None, "r0", 1.0),), problem.options)
        draft, short = Draft(plan, (replica,), replica.rate_per_s), replace(self, count=FEW_REQUESTS)
        return short.highest(draft, replica.rate_per_s, ALONE_PRECISION)

    def promised_per_s(self, draft: Draft) -> float:
        """The requests a second that the plan would do if its replicas did as they do alone: what is fullest.

        That is one of them, or a network that KV caches go over.
        """
        shares = _shares(draft.plan)
        rates = zip(draft.plan.pipelines, draft.replicas, strict=True)
        used = [(self.rate_alone(replica), shares.get(pipeline.name, 0.0)) for pipeline, replica in rates]
        carried = carried_per_s(self.problem.cluster, draft.plan, self.problem.requests.mean_input_tokens)
        return min(carried, *(rate / share for rate, share in used if share > 0.0))

    def verdict(self, draft: Draft, to_beat: Verdict | None = None) -> Verdict | None:
        """The draft's verdict, None where it is seen early that it does not beat another."""
        problem, slo = self.problem, self.problem.load.slo
        usd = self._usd(draft)
        if problem.objective == "throughput" and slo.limits:
            return self._throughput(draft, usd, to_beat)
        if problem.objective == "throughput":
            run = self.play(draft, None)
            rate = saturated_per_s(run)
            return Verdict(draft, rate, run, (rate,), True, usd)
        rate = problem.load.rate_per_s or 0.0
        run, keeps_up = self.play(draft, rate), self.keeps_up(draft, rate)
        keeps = keeps_up and run.keeps(slo, self.reference)
        attained = float(keeps_up), run.attainment(slo, self.reference), self._spare(run)
        value = attained if problem.objective != "cost" else (float(keeps), -(usd or 0.0) if keeps else 0.0, *attained)
        return Verdict(draft, rate, run, value, keeps, usd)

    def _spare(self, run: ServingRun) -> float:
        """By how much the limits are kept: larger is better."""
        slo = self.problem.load.slo
        return -min(run.tightness(slo, self.reference), LARGEST) if slo.limits else -float(np.nanmean(run.e2e_s))

    def _throughput(self, draft: Draft, usd: float | None, to_beat: Verdict | None) -> Verdict | None:
        slo, guess = self.problem.load.slo, max(draft.score, LEAST_RATE)
        if to_beat is not None and to_beat.keeps:
            guess = max(guess, to_beat.rate_per_s)
            keeps = self.keeps_up(draft, to_beat.rate_per_s)
            if not keeps or not self.play(draft, to_beat.rate_per_s).keeps(slo, self.reference):
                return None
        rate = self.highest(draft, guess)
        run = self.play(draft, rate or max(draft.score * LOWEST_SHARE, LEAST_RATE))
        return Verdict(draft, rate, run, (rate, run.attainment(slo, self.reference), self._spare(run)), rate > 0.0, usd)

    def _requests(self, draft: Draft, rate_per_s: float | None) -> Requests:
        requests = self.problem.requests
        if rate_per_s is None:
            shares = _shares(draft.plan)
            decoding = [p for p in draft.plan.pipelines if p.role != "prefill" and shares.get(p.name, 0.0) > 0.0]
            enough = max(self.count, *(ROUNDS_AT_ONCE * p.max_batch / shares[p.name] for p in decoding))
            at_once = sum(pipeline.max_batch for pipeline in decoding)
            count = int(max(min(enough, MOST_AT_ONCE * self.count), LEAST_ROUNDS * at_once))
            return requests.spread(count, np.random.default_rng(self.seed))
        count = int(min(max(self.count, self._enough(rate_per_s)), MOST_REQUESTS))
        if self.problem.load.trace is not None and len(requests) >= count:
            return requests.first(count).at_rate(rate_per_s)
        return requests.drawn(count, rate_per_s, np.random.default_rng(self.seed))

    @cached_property
    def _longest_limit_s(self) -> float:
        """How long the SLO lets a request take: a run is to last many times that, or overload would pass unnoticed."""
        slo, requests = self.problem.load.slo, self.problem.requests
        limits = [limit.value for limit in (slo.ttft, slo.e2e) if limit is not None]
        if slo.tpot is not None:
            limits.append(slo.tpot.value * requests.mean_output_tokens)
        if slo.scale is not None and self.reference is not None:
            mean = requests.mean_input_tokens, requests.mean_output_tokens
            limits.append(slo.scale.value * float(alone(self.reference, *mean)[1]))
        return max(limits, default=0.0)

    def _usd(self, draft: Draft) -> float | None:
        cluster = self.problem.cluster
        nodes = {cluster.device(name).node for pipeline in draft.plan.pipelines for name in pipeline.devices}
        return cluster.usd_per_hour(sorted(nodes))


def _shares(plan: ServingPlan) -> dict[str, float]:
    """Of all requests, by pipeline: those that arrive there, or are handed on to it."""
    shares = dict(plan.shares(None))
    for pipeline in plan.pipelines:
        if pipeline.role == "prefill":
            for target, share in plan.shares(pipeline.name).items():
                shares[target] = shares.get(target, 0.0) + shares.get(pipeline.name, 0.0) * share
    return shares


def polished(judge: Judge, best: Verdict, rounds: int = 3) -> Verdict:
    """The best verdict with shares moved from replicas that miss the SLO to those that keep it, where that helps.

    Plans that hand requests on keep the shares of their flow.
    """
    slo, plan = judge.problem.load.slo, best.draft.plan
    movable = best.keeps and bool(slo.limits) and len(plan.routes) > 1 and not plan.disaggregated
    for _ in range(rounds if movable else 0):
        run = judge.play(best.draft, best.rate_per_s * 1.05) if judge.problem.objective == "throughput" else best.run
        met = run.meets(slo, judge.reference)
        kept = np.array(
            [
                met[run.replica == number].mean() if (run.replica == number).any() else 1.0
                for number in range(len(best.draft.plan.pipelines))
            ]
        )
        shares = np.array([route.share for route in best.draft.plan.routes])
        moved = shares * np.where(kept < kept.mean(), 0.94, 1.03)
        moved = moved / moved.sum()
        routes = tuple(
            replace(route, share=float(share)) for route, share in zip(best.draft.plan.routes, moved, strict=True)
        )
        draft = replace(best.draft, plan=replace(best.draft.plan, routes=routes))
        verdict = judge.verdict(draft, best)
        if verdict is None or verdict.value <= best.value:
            break
        best = verdict
    return best
