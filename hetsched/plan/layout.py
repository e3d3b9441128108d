"""What plans of every kind are made of: stages on devices, the cluster they are for, and the checks of both."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Protocol

from hetsched.errors import HetschedError
from hetsched.fields import Fields
from hetsched.model import ModelSpec

FORMAT = "hetsched-plan/1"

Layers = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stage:
    """A half-open range of transformer blocks on a tensor-parallel group of devices, named `node/index`.

    The embedding lives with block 0, the final norm and LM head with the last.
    """

    layers: Layers
    devices: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """Blocks in this stage."""
        return self.layers[1] - self.layers[0]

    @property
    def tensor_parallel(self) -> int:
        """The tensor-parallel degree."""
        return len(self.devices)


@dataclass(frozen=True, slots=True)
class ClusterReference:
    """The cluster file a plan was made for; offers: the file of what could be rented besides, where there was one."""

    name: str = ""
    path: str = ""
    sha256: str = ""
    offers: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain strings; no offers where there are none."""
        return {key: value for key, value in asdict(self).items() if value or key != "offers"}


class Staged(Protocol):
    """A pipeline of any kind: one replica of the model, in stages."""

    @property
    def name(self) -> str:
        """No two of a plan are alike."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """First to last."""
        ...


def devices_of(stages: Iterable[Stage]) -> tuple[str, ...]:
    """All devices, stage by stage."""
    return tuple(device for stage in stages for device in stage.devices)


def check_pipelines(pipelines: Sequence[Staged], model: ModelSpec) -> None:
    """Raise HetschedError where there is no pipeline, a block is left out, or a name or device stands twice."""
    if not pipelines:
        raise HetschedError("plan: there are no pipelines", hint="a plan needs at least one under `pipelines`")
    used: dict[str, str] = {}
    names: set[str] = set()
    for pipeline in pipelines:
        if pipeline.name in names:
            raise HetschedError(f"plan: two pipelines are named {pipeline.name!r}", hint="give each its own name")
        names.add(pipeline.name)
        if not pipeline.name.isprintable():
            raise HetschedError(
                f"plan: the pipeline name {pipeline.name!r} has invisible characters", hint="use letters and digits"
            )
        _check_layers(pipeline, model)
        for number, stage in enumerate(pipeline.stages):
            where = f"pipeline {pipeline.name} stage {number}"
            if not stage.devices:
                raise HetschedError(f"plan: {where} has no devices", hint="name at least one, as node/index")
            for device in stage.devices:
                if device in used:
                    raise HetschedError(
                        f"plan: device {device} is in {used[device]} and in {where}",
                        hint="a device is in at most one stage of the plan",
                    )
                used[device] = where


def _check_layers(pipeline: Staged, model: ModelSpec) -> None:
    blocks = model.num_layers
    where = f"plan: pipeline {pipeline.name}"
    if not pipeline.stages:
        raise HetschedError(f"{where} has no stages", hint="a pipeline needs at least one under `stages`")
    bounds = [(0, 0), *(stage.layers for stage in pipeline.stages)]
    for number, (before, layers) in enumerate(pairwise(bounds)):
        if layers[0] != before[1] or layers[1] <= layers[0]:
            raise HetschedError(
                f"{where} stage {number} has layers {list(layers)}, expected [{before[1]}, something greater]",
                hint="layers are half-open ranges that follow one another, e.g. [0, 3], [3, 6]",
            )
    if bounds[-1][1] != blocks:
        raise HetschedError(
            f"{where} ends at block {bounds[-1][1]}, but {model.name} has {blocks} blocks",
            hint=f"let its last stage end at {blocks}",
        )


def devices_by_node(pipelines: Iterable[Staged]) -> dict[str, tuple[str, ...]]:
    """The devices in use, by index inside each node; nodes stand in the order in which the pipelines name them."""
    nodes: dict[str, list[tuple[int, str]]] = {}
    for pipeline in pipelines:
        for device in devices_of(pipeline.stages):
            node, _, index = device.rpartition("/")
            if not node or not index.isdecimal():
                raise HetschedError(f"plan: device {device!r} has no index", hint="devices are named node/index")
            nodes.setdefault(node, []).append((int(index), device))
    return {node: tuple(device for _, device in sorted(devices)) for node, devices in nodes.items()}


def check_format(source: Fields) -> None:
    """Refuse what is not a plan of this format."""
    stated = source.text("format")
    if stated != FORMAT:
        newer = stated.startswith("hetsched-plan/")
        raise HetschedError(
            f"{source.where}: the format is {stated!r}, this version reads {FORMAT!r}",
            hint="update hetsched" if newer else f'a plan file starts with "format": "{FORMAT}"',
        )


def read_stage(source: Fields) -> Stage:
    """A stage from its JSON."""
    layers, devices = source.sequence("layers"), source.sequence("devices")
    if len(layers) != 2 or not all(isinstance(x, int) and not isinstance(x, bool) for x in layers):
        raise HetschedError(
            f"{source.at('layers')} is {layers}, expected two whole numbers", hint="a half-open range, e.g. [0, 3]"
        )
    if not all(isinstance(device, str) for device in devices):
        raise HetschedError(f"{source.at('devices')} is {devices}, expected names", hint='e.g. ["tokyo-0/0"]')
    source.finish()
    return Stage((layers[0], layers[1]), tuple(devices))


def stage_json(stage: Stage) -> dict[str, list[int] | list[str]]:
    """A stage as plain lists."""
    return {"layers": list(stage.layers), "devices": list(stage.devices)}


def read_cluster_reference(source: Fields) -> ClusterReference:
    """What a plan says of its cluster, from its JSON."""
    if "cluster" not in source:
        return ClusterReference()
    cluster = source.child("cluster")
    reference = ClusterReference(*(cluster.text(key, "") for key in ("name", "path", "sha256", "offers")))
    cluster.finish()
    return reference
