"""The serving plan: replicas for prefill, decode or both, and which share of the requests goes where."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hetsched.errors import HetschedError
from hetsched.fields import Fields
from hetsched.model import ModelSpec
from hetsched.plan.layout import (
    FORMAT,
    ClusterReference,
    Stage,
    check_format,
    check_pipelines,
    devices_by_node,
    devices_of,
    read_cluster_reference,
    read_stage,
    stage_json,
)
from hetsched.plan.serving_load import load_json, read_load
from hetsched.precision import QUANTISED_BITS, Precision
from hetsched.workload import ServingLoad

ROLES = ("both", "prefill", "decode")
LARGEST_BATCH = 100_000  # sequences at once in a replica
MOST_TOKENS = 10_000_000  # in one step
SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ServingPipeline:
    """One replica of the model, with at most `max_batch` sequences in it at once.

    role: prefill hands a request on to a decode pipeline after its first token; both does all of it.
    """

    name: str
    stages: tuple[Stage, ...]
    max_batch: int
    role: str = "both"

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices, stage by stage."""
        return devices_of(self.stages)


@dataclass(frozen=True, slots=True)
class Route:
    """What share of `source`'s requests goes on to `target`; of the arriving ones where `source` is None."""

    source: str | None
    target: str
    share: float


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """How the replicas run.

    weight_bits, kv_bits: 16, 8 or 4. chunked_prefill_tokens: how many tokens a step works on at most, decoded ones
    first and prompts in chunks for the rest; 0: prompts have steps of their own, which go first, of
    `max_prefill_tokens` at most (or one prompt, if that is longer). kv_overlap: a prefill replica sends the KV of a
    block while it works on the next ones, as SGLang's and Mooncake's engines do; else when all of the prompt is done.
    """

    weight_bits: int = 16
    kv_bits: int = 16
    chunked_prefill_tokens: int = 0
    max_prefill_tokens: int = 8192
    kv_overlap: bool = False


@dataclass(frozen=True)
class ServingPlan:
    """A whole serving plan; it stands alone.

    Routes from None say which share of the arriving requests each `both` or `prefill` pipeline gets, and add up to 1;
    so do those of each prefill pipeline, to `decode` or `both` pipelines. devices, predicted, provenance: as in `Plan`.
    Raises HetschedError where stages leave a block out, a device is used twice, or the routes do not add up.
    """

    model: ModelSpec
    workload: ServingLoad
    pipelines: tuple[ServingPipeline, ...]
    routes: tuple[Route, ...]
    options: ServingOptions = ServingOptions()
    kind: Literal["serve"] = "serve"
    cluster: ClusterReference = ClusterReference()
    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_pipelines(self.pipelines, self.model)
        for pipeline in self.pipelines:
            if pipeline.max_batch < 1:
                raise HetschedError(
                    f"plan: pipeline {pipeline.name} has max_batch {pipeline.max_batch}", hint="at least 1 sequence"
                )
        _check_roles(self.pipelines)
        _check_routes(self.pipelines, self.routes)

    @property
    def precision(self) -> Precision:
        """In how many bits the model is served."""
        return Precision(self.workload.dtype, self.options.weight_bits, self.options.kv_bits)

    @property
    def disaggregated(self) -> bool:
        """Whether any pipeline hands its requests on."""
        return any(pipeline.role == "prefill" for pipeline in self.pipelines)

    @property
    def entries(self) -> tuple[ServingPipeline, ...]:
        """The pipelines that arriving requests go to."""
        return tuple(pipeline for pipeline in self.pipelines if pipeline.role != "decode")

    def shares(self, source: str | None) -> dict[str, float]:
        """{target: share} of a source's routes."""
        return {route.target: route.share for route in self.routes if route.source == source}

    @property
    def stages(self) -> tuple[tuple[ServingPipeline, int, Stage], ...]:
        """Every stage with its pipeline and its position there."""
        return tuple((pipe, number, stage) for pipe in self.pipelines for number, stage in enumerate(pipe.stages))

    @property
    def devices_by_node(self) -> dict[str, tuple[str, ...]]:
        """The devices in use, by index inside each node, nodes in the order in which the pipelines name them."""
        return devices_by_node(self.pipelines)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain ints, floats, strings, lists and dicts."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "cluster": self.cluster.to_json(),
            "model": self.model.to_json(),
            "workload": load_json(self.workload),
            "options": asdict(self.options),
            "pipelines": [
                {
                    "name": pipeline.name,
                    "role": pipeline.role,
                    "max_batch": pipeline.max_batch,
                    "stages": [stage_json(stage) for stage in pipeline.stages],
                }
                for pipeline in self.pipelines
            ],
            "routes": [asdict(route) for route in self.routes],
            "devices": {name: dict(facts) for name, facts in self.devices.items()},
            "predicted": dict(self.predicted),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "plan") -> "ServingPlan":
        """A plan from its JSON; what has a default may be left out. Raises HetschedError that names the place.

        Without routes from a source, its targets get equal shares.
        """
        source = Fields(data, where)
        check_format(source)
        if source.choice("kind", ("train", "serve")) == "train":
            raise HetschedError(f"{where} is a training plan, a serving plan is needed here")
        model = ModelSpec.from_json(source.child("model").data, source.at("model"))
        pipelines = tuple(_pipeline(item, n) for n, item in enumerate(source.children("pipelines")))
        routes = tuple(_route(item) for item in source.children("routes", ()))
        plan = cls(
            model=model,
            workload=read_load(source.child("workload")),
            pipelines=pipelines,
            routes=routes + equal_routes(pipelines, {route.source for route in routes}),
            options=_options(source.child("options")) if "options" in source else ServingOptions(),
            cluster=read_cluster_reference(source),
            devices=dict(source.child("devices").data) if "devices" in source else {},
            predicted=dict(source.child("predicted").data) if "predicted" in source else {},
            provenance=dict(source.child("provenance").data) if "provenance" in source else {},
        )
        source.finish()
        return plan


def equal_routes(pipelines: Sequence[ServingPipeline], routed: Set[str | None] = frozenset()) -> tuple[Route, ...]:
    """Routes that share evenly, from every source that is not in `routed`: arriving requests, and prefill pipelines."""
    entries = [pipeline.name for pipeline in pipelines if pipeline.role != "decode"]
    decodes = [pipeline.name for pipeline in pipelines if pipeline.role == "decode"]
    sources: dict[str | None, list[str]] = {None: entries}
    sources |= {pipeline.name: decodes for pipeline in pipelines if pipeline.role == "prefill"}
    return tuple(
        Route(source, target, 1 / len(targets))
        for source, targets in sources.items()
        if source not in routed
        for target in targets
    )


def _check_roles(pipelines: Sequence[ServingPipeline]) -> None:
    names: dict[str, list[str]] = {role: [] for role in ROLES}
    for pipeline in pipelines:
        if pipeline.role not in ROLES:
            raise HetschedError(
                f"plan: pipeline {pipeline.name} has role {pipeline.role!r}", hint=f"use one of: {', '.join(ROLES)}"
            )
        names[pipeline.role].append(pipeline.name)
    if names["prefill"] and not (names["decode"] or names["both"]):
        raise HetschedError(
            f"plan: pipeline {names['prefill'][0]} only prefills, and none decodes",
            hint='give at least one pipeline the role "decode"',
        )
    if names["decode"] and not names["prefill"]:
        raise HetschedError(
            f"plan: pipeline {names['decode'][0]} only decodes, and none prefills for it",
            hint='give at least one pipeline the role "prefill", or all of them "both"',
        )


def _check_routes(pipelines: Sequence[ServingPipeline], routes: Sequence[Route]) -> None:
    roles = {pipeline.name: pipeline.role for pipeline in pipelines}
    total: dict[str | None, float] = {None: 0.0}
    total |= {pipeline.name: 0.0 for pipeline in pipelines if pipeline.role == "prefill"}
    seen: set[tuple[str | None, str]] = set()
    for number, route in enumerate(routes):
        where = f"plan: routes[{number}]"
        for end, name in (("source", route.source), ("target", route.target)):
            if name is not None and name not in roles:
                known = ", ".join(list(roles)[:8])
                raise HetschedError(f"{where}: no pipeline is named {name!r}, its {end}", hint=f"there are: {known}")
        if route.source not in total:
            raise HetschedError(
                f"{where}: source {route.source} is a {roles[str(route.source)]} pipeline, which hands nothing on",
                hint='only a "prefill" pipeline is a source; null stands for the arriving requests',
            )
        wrong = "decode" if route.source is None else "prefill"
        if roles[route.target] == wrong:
            what = "arriving requests need a prefill first" if route.source is None else "its requests need a decode"
            raise HetschedError(f"{where}: target {route.target} is a {wrong} pipeline, and {what}")
        if (route.source, route.target) in seen:
            raise HetschedError(f"{where}: there is a route like it above", hint="add up their shares in one")
        seen.add((route.source, route.target))
        if not 0.0 <= route.share <= 1.0:
            raise HetschedError(f"{where}: share is {route.share}, expected 0 to 1")
        total[route.source] += route.share
    for source, share in total.items():
        if abs(share - 1.0) > SHARE_TOLERANCE:
            whose = "arriving requests" if source is None else f"pipeline {source}"
            raise HetschedError(
                f"plan: the shares of {whose} add up to {share:.6g}, expected 1",
                hint=f"change the shares of the routes whose source is {'null' if source is None else source}",
            )
    reached = {route.target for route in routes}
    for pipeline in pipelines:
        if pipeline.name not in reached:
            raise HetschedError(
                f"plan: no route leads to pipeline {pipeline.name}",
                hint="add one, with share 0 if it is to be idle, or leave the pipeline out",
            )


def _pipeline(source: Fields, number: int) -> ServingPipeline:
    pipeline = ServingPipeline(
        name=source.text("name", f"r{number}"),
        role=source.choice("role", ROLES, "both"),
        max_batch=source.integer("max_batch", maximum=LARGEST_BATCH),
        stages=tuple(read_stage(item) for item in source.children("stages")),
    )
    source.finish()
    return pipeline


def _route(source: Fields) -> Route:
    route = Route(
        source=source.text("source") if "source" in source else None,
        target=source.text("target"),
        share=source.number("share", maximum=1.0),
    )
    source.finish()
    return route


def _options(source: Fields) -> ServingOptions:
    bits = {key: source.integer(key, 16) for key in ("weight_bits", "kv_bits")}
    for key, value in bits.items():
        if value not in QUANTISED_BITS:
            raise HetschedError(f"{source.at(key)} is {value}", hint="use 16, 8 or 4")
    options = ServingOptions(
        **bits,
        chunked_prefill_tokens=source.integer("chunked_prefill_tokens", 0, minimum=0, maximum=MOST_TOKENS),
        max_prefill_tokens=source.integer("max_prefill_tokens", 8192, maximum=MOST_TOKENS),
        kv_overlap=source.flag("kv_overlap", False),
    )
    source.finish()
    return options
