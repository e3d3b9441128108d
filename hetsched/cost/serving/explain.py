"""Where each second of a serving plan goes, what holds its KV cache, and what limits it, in a steady state."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hetsched.cluster import Cluster
from hetsched.cost.memory import RESERVE_BYTES, reserve_bytes
from hetsched.cost.serving.accounts import (
    ReplicaAccount,
    RouteAccount,
    ServingExplanation,
    ServingLever,
    ServingStageAccount,
)
from hetsched.cost.serving.kv_transfer import kv_parts, last_block_s, route_s
from hetsched.cost.serving.plan_cost import arriving_shares, steady_replica
from hetsched.cost.serving.replica import Hop, ReplicaTimes, replica_times
from hetsched.cost.serving.steady import Operation, SteadyReplica, Traffic
from hetsched.plan import ServingPipeline, ServingPlan

HEALTHY, MOST = 0.8, 0.98  # of the capacity: the rate that is looked at where none is asked for, and at most
LEAST_GAIN = 0.01  # of the capacity: what gains less is no lever, and limits nothing
BOUNDLESS_BYTES = 1e15


def explain_serving(
    cluster: Cluster, plan: ServingPlan, memory_fraction: float, traffic: Traffic
) -> ServingExplanation:
    """The accounts of a plan but for its growth; HetschedError where it names a device that the cluster lacks."""
    view = _View(cluster, plan, memory_fraction, traffic)
    replicas = [view.replica(pipeline) for pipeline in plan.pipelines]
    stages = [account for pipeline in plan.pipelines for account in view.stages(pipeline)]
    routes = list(view.routes())
    return ServingExplanation(
        view.rate,
        view.capacity,
        plan.workload.rate_per_s is not None,
        _limit(replicas, routes, view.shares),
        replicas,
        stages,
        routes,
        view.levers(),
        [],
    )


class _View:
    """A plan in its steady state."""

    def __init__(self, cluster: Cluster, plan: ServingPlan, memory_fraction: float, traffic: Traffic) -> None:
        self.cluster, self.plan, self.traffic = cluster, plan, traffic
        self.shares = arriving_shares(plan)
        self.times = {
            p.name: replica_times(cluster, plan.model, p.stages, plan.precision, memory_fraction)
            for p in plan.pipelines
        }
        self.steady = {p.name: self.steadied(p, self.times[p.name]) for p in plan.pipelines}
        self.capacity = self.capacity_of(self.steady)
        asked = plan.workload.rate_per_s
        self.rate = HEALTHY * self.capacity if asked is None else min(asked, MOST * self.capacity)
        self.seen = {name: self._seen(name) for name in self.steady}

    def steadied(self, pipeline: ServingPipeline, times: ReplicaTimes) -> SteadyReplica:
        return steady_replica(self.plan, pipeline, times, self.traffic)

    def capacity_of(self, steady: Mapping[str, SteadyReplica]) -> float:
        """Of the plan with its shares."""
        whole = [steady[name].capacity_per_s / share for name, share in self.shares.items() if share > 0.0]
        return min(whole, default=0.0)

    def _seen(self, name: str) -> Operation:
        steady = self.steady[name]
        return steady.at(min(self.rate * self.shares[name], MOST * steady.capacity_per_s))

    # ---- replicas

    def replica(self, pipeline: ServingPipeline) -> ReplicaAccount:
        name, times = pipeline.name, self.times[pipeline.name]
        steady, seen = self.steady[name], self.seen[name]
        whole = self.traffic.input_tokens + self.traffic.output_tokens
        return ReplicaAccount(
            name,
            pipeline.role,
            self.rate * self.shares[name],
            steady.capacity_per_s,
            seen.batch,
            steady.largest_batch,
            times.kv_capacity_tokens,
            times.largest_batch(whole) < pipeline.max_batch,
            seen.tpot_s,
            times.overhead_s,
            self._limit_of(pipeline),
        )

    def _limit_of(self, pipeline: ServingPipeline) -> tuple[str, str]:
        """What would raise the replica's capacity most, if it were free: (cause, sentence)."""
        steady, times = self.steady[pipeline.name], self.times[pipeline.name]
        if steady.largest_batch < 1:
            stage = int(np.argmin(times.kv_room_bytes))
            return "kv_memory", f"no request's KV cache has room on {pipeline.stages[stage].devices[0]}"
        gains = {
            cause: self.steadied(pipeline, freed).capacity_per_s / steady.capacity_per_s
            for cause, freed in _freed(times).items()
        }
        busy = self._busy(pipeline)
        stage = int(np.argmax(busy))
        parts = _merged(self._decode_parts(pipeline, stage))
        where = f"{_gpus(self.cluster, pipeline, stage)} (stage {stage})"
        cause = max(gains, key=lambda cause: gains[cause])
        if gains[cause] < 1.0 + LEAST_GAIN:
            kind = "compute" if self._computes(pipeline, stage) else "memory_bandwidth"
            work = "arithmetic" if kind == "compute" else "reading of weights and KV"
            return kind, f"the {work} of {where}, which works {busy[stage]:.0%} of the time"
        words = {
            "links": "the links between its stages",
            "all_reduce": f"the all-reduces inside {where}, {parts.get('all_reduce', 0.0):.0%} of a step there",
            "kv_memory": f"KV memory: {steady.largest_batch} requests have room, on "
            f"{_gpus(self.cluster, pipeline, int(np.argmin(_tokens(times))))} least",
        }
        return cause, f"{words[cause]}; free of it, {gains[cause]:.2f} times as many requests"

    def _computes(self, pipeline: ServingPipeline, stage: int) -> bool:
        """Whether arithmetic takes most of the stage's time: of prompts, and of decode steps."""
        account = self._account(pipeline, stage)
        prompt = sum(account.prefill_s.values()) if pipeline.role != "decode" else 0.0
        group, _ = self._group(pipeline)
        token = sum(account.decode_s.values()) * self.traffic.output_tokens / max(1.0, group)
        token = token if pipeline.role != "prefill" else 0.0
        computing = prompt * account.computes[0] + token * account.computes[1]
        return computing > (prompt + token) / 2.0

    def _group(self, pipeline: ServingPipeline) -> tuple[float, float]:
        """(sequences of a group, tokens of their contexts)."""
        size = max(1.0, self.seen[pipeline.name].batch / len(pipeline.stages))
        return size, size * (self.traffic.input_tokens + self.traffic.output_tokens / 2.0)

    def _busy(self, pipeline: ServingPipeline) -> list[float]:
        """The share of the time that each stage works: a request's prompt, and its part of decode steps."""
        times, traffic, rate = self.times[pipeline.name], self.traffic, self.rate * self.shares[pipeline.name]
        size, context = self._group(pipeline)
        shares = []
        for stage in range(times.depth):
            prompt = float(times.prefill_s(stage, traffic.input_tokens, traffic.pairs))
            tokens = traffic.output_tokens * float(times.decode_s(stage, size, context)) / size
            work = prompt * (pipeline.role != "decode") + tokens * (pipeline.role != "prefill")
            shares.append(min(1.0, rate * work))
        return shares

    # ---- stages

    def stages(self, pipeline: ServingPipeline) -> Iterator[ServingStageAccount]:
        for stage in range(len(pipeline.stages)):
            yield self._account(pipeline, stage)

    def _account(self, pipeline: ServingPipeline, number: int) -> ServingStageAccount:
        times, stage = self.times[pipeline.name], pipeline.stages[number]
        of_stage, traffic = times.stages[number], self.traffic
        size, _ = self._group(pipeline)
        prompt = _plain(of_stage.step_parts_s(traffic.input_tokens, traffic.pairs, 1.0, 0.0, 0.0))
        last = number == times.depth - 1
        prompt["hop"] = float(times.hop_s(number, 1.0 if last else traffic.input_tokens))
        held = self.seen[pipeline.name].batch * (traffic.input_tokens + traffic.output_tokens)
        gpu_bytes = max(self.cluster.device(name).gpu.memory_bytes for name in stage.devices)
        return ServingStageAccount(
            pipeline.name,
            number,
            stage.devices,
            of_stage.gpu.kind,
            stage.layers,
            prompt,
            self._decode_parts(pipeline, number),
            (of_stage.computes(traffic.input_tokens), of_stage.computes(size)),
            self._busy(pipeline)[number],
            of_stage.weight_bytes,
            of_stage.workspace_bytes,
            RESERVE_BYTES + reserve_bytes(gpu_bytes),
            held * of_stage.kv_bytes_per_token,
            times.kv_room_bytes[number],
        )

    def _decode_parts(self, pipeline: ServingPipeline, number: int) -> dict[str, float]:
        times = self.times[pipeline.name]
        size, context = self._group(pipeline)
        parts = _plain(times.stages[number].step_parts_s(0.0, 0.0, 0.0, size, context))
        parts["hop"] = float(times.hop_s(number, size))
        return parts

    # ---- routes

    def routes(self) -> Iterator[RouteAccount]:
        plan, cluster = self.plan, self.cluster
        stages = {pipeline.name: pipeline.stages for pipeline in plan.pipelines}
        for route in plan.routes:
            sent = route.share * self.rate * (1.0 if route.source is None else self.shares[route.source])
            takes = self.steady[route.target].capacity_per_s
            if route.source is None:
                yield RouteAccount(None, route.target, route.share, sent, 0.0, 0.0, takes, "replica")
                continue
            parts = kv_parts(cluster, plan.model, plan.precision, stages[route.source], stages[route.target])
            tokens = self.traffic.input_tokens
            size = tokens * sum(part.bytes_per_token for part in parts)
            busy_s = route_s(cluster, parts, tokens) - route_s(cluster, parts, 0.0)
            per_token_s, latency_s = last_block_s(cluster, parts)
            after_s = tokens * per_token_s + latency_s if plan.options.kv_overlap else route_s(cluster, parts, tokens)
            links = 1.0 / busy_s if busy_s > 0.0 else np.inf
            yield RouteAccount(
                route.source,
                route.target,
                route.share,
                sent,
                size,
                after_s,
                min(links, takes),
                "links" if links < takes else "replica",
            )

    # ---- the whole

    def levers(self) -> list[ServingLever]:
        """What would let the whole plan serve more, the most first."""
        found = []
        whats = {
            "links": ("free_links", "links between stages that take no time"),
            "all_reduce": ("free_all_reduces", "all-reduces inside stages that take no time"),
            "kv_memory": ("boundless_kv", "KV memory without end"),
        }
        freed = {name: _freed(times) for name, times in self.times.items()}
        for cause, (lever, what) in whats.items():
            changed = {
                p.name: self.steadied(p, freed[p.name].get(cause, self.times[p.name])) for p in self.plan.pipelines
            }
            found.append(ServingLever(lever, what, self.capacity_of(changed)))
        arriving = [p.name for p in self.plan.pipelines if p.role != "decode"]
        later = [self.steady[p.name].capacity_per_s for p in self.plan.pipelines if p.role == "decode"]
        best = sum(self.steady[name].capacity_per_s for name in arriving)
        best = min(best, sum(later)) if later and all(p.role != "both" for p in self.plan.pipelines) else best
        found.append(ServingLever("shares", "routes by what the replicas can do", best))
        least = self.capacity * (1.0 + LEAST_GAIN)
        return sorted((one for one in found if one.capacity_per_s > least), key=lambda one: -one.capacity_per_s)


def _freed(times: ReplicaTimes) -> dict[str, ReplicaTimes]:
    """The replica without one of its causes; only causes that it has."""
    found = {"kv_memory": replace(times, kv_room_bytes=(BOUNDLESS_BYTES,) * times.depth)}
    if times.depth > 1:
        found["links"] = replace(times, hops=(Hop(0.0, 0.0),) * times.depth)
    if any(stage.degree > 1 and stage.measured is None for stage in times.stages):
        found["all_reduce"] = replace(times, stages=tuple(replace(stage, link=None) for stage in times.stages))
    return found


def _tokens(times: ReplicaTimes) -> list[float]:
    """How many tokens each stage's KV cache holds."""
    return [room / stage.kv_bytes_per_token for room, stage in zip(times.kv_room_bytes, times.stages, strict=True)]


def _plain(parts: Mapping[str, Any]) -> dict[str, float]:
    return {cause: float(seconds) for cause, seconds in parts.items()}


def _merged(parts: Mapping[str, float]) -> dict[str, float]:
    """As shares of all."""
    total = sum(parts.values()) or 1.0
    return {cause: seconds / total for cause, seconds in parts.items()}


def _gpus(cluster: Cluster, pipeline: ServingPipeline, stage: int) -> str:
    names = pipeline.stages[stage].devices
    device = cluster.device(names[0])
    return f"{len(names)} × {device.gpu.kind} on {device.node}"


def _limit(replicas: list[ReplicaAccount], routes: list[RouteAccount], shares: Mapping[str, float]) -> str:
    """The replica that is full first as more is asked, or the links to it."""
    used = [replica for replica in replicas if shares[replica.name] > 0.0]
    if not used:
        return "nothing is sent to any replica"
    first = min(used, key=lambda replica: replica.capacity_per_s / shares[replica.name])
    links = [route for route in routes if route.limit == "links" and route.requests_per_s > 0.0]
    tight = max(links, key=lambda route: route.requests_per_s / route.most_per_s, default=None)
    if not first.capacity_per_s:
        return f"{first.name} serves nothing: {first.limit[1]}"
    load = first.requests_per_s / first.capacity_per_s
    if tight is not None and tight.requests_per_s / tight.most_per_s > load:
        return f"the links from {tight.source} to {tight.target}, for KV caches: {tight.most_per_s:.3g} requests/s"
    return f"{first.name} is full first, at {load:.0%} of its capacity now, by {first.limit[1]}"
