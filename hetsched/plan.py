"""The plan: which blocks run on which devices, how they are scheduled, and its JSON (format `hetsched-plan/1`)."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from hetsched.errors import HetschedError, HetschedWarning
from hetsched.fields import Fields
from hetsched.model import ModelSpec
from hetsched.workload import TrainingJob

FORMAT = "hetsched-plan/1"
SCHEDULES = ("1f1b", "gpipe")
LARGEST_BATCH = 1_000_000  # sequences in an iteration

Layers = tuple[int, int]
Kind = Literal["train", "serve"]


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
class Pipeline:
    """One model replica. It does `micro_batches` × the workload's micro-batch sequences an iteration."""

    name: str
    stages: tuple[Stage, ...]
    micro_batches: int
    role: str = "train"

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices, stage by stage."""
        return tuple(device for stage in self.stages for device in stage.devices)


@dataclass(frozen=True, slots=True)
class Route:
    """What share of `source`'s requests goes on to `target`; serving only."""

    source: str | None
    target: str
    share: float


@dataclass(frozen=True, slots=True)
class Compression:
    """Bits on the wire for an activation, its gradient, and a weight's gradient; 16 means none."""

    activation_bits: int = 16
    activation_grad_bits: int = 16
    grad_bits: int = 16


@dataclass(frozen=True, slots=True)
class Options:
    """How the pipelines run.

    zero: 0 nothing sharded, 1 optimiser states, 2 gradients too, 3 weights too, each over the data-parallel peers.
    overlap: whether stages compute while their messages are under way, as the bundled executor does; in a plan file
    that does not say, they wait for them, and each GPU gets whole tensors, as in the pipeline engines of Megatron-LM
    and DeepSpeed.
    dtfm_message_gigabytes: the published messages (gradient, activation) where the plan is for the paper's own setting,
    so that the `dtfm` formula prices it alike wherever it is read.
    """

    schedule: str = "1f1b"
    recompute: bool = False
    zero: int = 0
    compression: Compression = Compression()
    dtfm_message_gigabytes: tuple[float, float] | None = None
    overlap: bool = True


@dataclass(frozen=True, slots=True)
class ClusterReference:
    """The cluster file a plan was made for."""

    name: str = ""
    path: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """A whole plan; it stands alone, so that exporters and the executor need nothing else.

    devices: {device: {"node", "region", "index", "kind"}}; predicted: what `Cost.predicted` gave; both may be empty in
    a plan under construction. Raises HetschedError where stages leave a block out, a device is used twice, or the
    pipelines' batches do not add up.
    """

    model: ModelSpec
    workload: TrainingJob
    pipelines: tuple[Pipeline, ...]
    options: Options = Options()
    kind: Kind = "train"
    routes: tuple[Route, ...] = ()
    cluster: ClusterReference = ClusterReference()
    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pipelines:
            raise HetschedError("plan: there are no pipelines", hint="a plan needs at least one under `pipelines`")
        self._check_pipelines()
        self._check_batch()

    def _check_pipelines(self) -> None:
        used: dict[str, str] = {}
        names: set[str] = set()
        for pipeline in self.pipelines:
            if pipeline.name in names:
                raise HetschedError(f"plan: two pipelines are named {pipeline.name!r}", hint="give each its own name")
            names.add(pipeline.name)
            if not pipeline.name.isprintable():
                raise HetschedError(
                    f"plan: the pipeline name {pipeline.name!r} has invisible characters", hint="use letters and digits"
                )
            self._check_layers(pipeline)
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

    def _check_layers(self, pipeline: Pipeline) -> None:
        blocks = self.model.num_layers
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
                f"{where} ends at block {bounds[-1][1]}, but {self.model.name} has {blocks} blocks",
                hint=f"let its last stage end at {blocks}",
            )

    def _check_batch(self) -> None:
        model = self.model
        if model.positions == "learned" and self.workload.seq_len > model.max_positions:
            raise HetschedError(
                f"plan: sequences of {self.workload.seq_len} tokens, but {model.name} has positions for "
                f"{model.max_positions}",
                hint="shorten workload.seq_len",
            )
        size, wanted = self.workload.micro_batch, self.workload.global_batch
        for pipeline in self.pipelines:
            if pipeline.micro_batches < 1:
                raise HetschedError(
                    f"plan: pipeline {pipeline.name} has {pipeline.micro_batches} micro-batches",
                    hint="each pipeline does at least one; leave out a pipeline that does none",
                )
        done = sum(pipeline.micro_batches for pipeline in self.pipelines) * size
        if not wanted <= done < wanted + size * len(self.pipelines):
            counts = " + ".join(str(pipeline.micro_batches) for pipeline in self.pipelines[:8])
            more = " + ..." if len(self.pipelines) > 8 else ""
            raise HetschedError(
                f"plan: the pipelines do ({counts}{more}) x {size} = {done} sequences, the global batch is {wanted}",
                hint="micro_batches x micro_batch must add up to the global batch, or less than one micro-batch "
                "per pipeline above it",
            )

    @property
    def stages(self) -> tuple[tuple[Pipeline, int, Stage], ...]:
        """Every stage with its pipeline and its position there."""
        return tuple((pipe, number, stage) for pipe in self.pipelines for number, stage in enumerate(pipe.stages))

    @property
    def devices_by_node(self) -> dict[str, tuple[str, ...]]:
        """The devices in use, by index inside each node; nodes stand in the order in which the pipelines name them.

        Ranks are numbered in this order, by the executor and by what starts it, so that neither needs a table.
        """
        nodes: dict[str, list[tuple[int, str]]] = {}
        for pipeline in self.pipelines:
            for device in pipeline.devices:
                node, _, index = device.rpartition("/")
                if not node or not index.isdecimal():
                    raise HetschedError(f"plan: device {device!r} has no index", hint="devices are named node/index")
                nodes.setdefault(node, []).append((int(index), device))
        return {node: tuple(device for _, device in sorted(devices)) for node, devices in nodes.items()}

    def to_json(self) -> dict[str, Any]:
        """The plan as plain ints, floats, strings, lists and dicts."""
        options = asdict(self.options)
        if self.options.dtfm_message_gigabytes is None:
            del options["dtfm_message_gigabytes"]
        else:
            options["dtfm_message_gigabytes"] = list(self.options.dtfm_message_gigabytes)
        return {
            "format": FORMAT,
            "kind": self.kind,
            "cluster": asdict(self.cluster),
            "model": self.model.to_json(),
            "workload": asdict(self.workload),
            "options": options,
            "pipelines": [
                {
                    "name": pipeline.name,
                    "role": pipeline.role,
                    "micro_batches": pipeline.micro_batches,
                    "stages": [{"layers": list(s.layers), "devices": list(s.devices)} for s in pipeline.stages],
                }
                for pipeline in self.pipelines
            ],
            "routes": [asdict(route) for route in self.routes],
            "devices": {name: dict(facts) for name, facts in self.devices.items()},
            "predicted": dict(self.predicted),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "plan") -> "Plan":
        """A plan from its JSON; what has a default may be left out. Raises HetschedError that names the place."""
        source = Fields(data, where)
        check_format(source)
        kind = source.choice("kind", ("train", "serve"))
        if kind == "serve":
            raise HetschedError(f"{where}: serving plans are not supported by this version", hint="use kind: train")
        model = ModelSpec.from_json(source.child("model").data, source.at("model"))
        plan = cls(
            model=model,
            workload=_workload(source.child("workload"), model),
            pipelines=tuple(_pipeline(item, n) for n, item in enumerate(source.children("pipelines"))),
            options=_options(source.child("options")) if "options" in source else Options(overlap=False),
            cluster=_cluster(source.child("cluster")) if "cluster" in source else ClusterReference(),
            devices=dict(source.child("devices").data) if "devices" in source else {},
            predicted=dict(source.child("predicted").data) if "predicted" in source else {},
            provenance=dict(source.child("provenance").data) if "provenance" in source else {},
        )
        if source.sequence("routes", ()):
            warnings.warn(f"{where}: routes mean nothing in a training plan", HetschedWarning, stacklevel=2)
        source.finish()
        return plan


def check_format(source: Fields) -> None:
    """Refuse what is not a plan of this format."""
    stated = source.text("format")
    if stated != FORMAT:
        newer = stated.startswith("hetsched-plan/")
        raise HetschedError(
            f"{source.where}: the format is {stated!r}, this version reads {FORMAT!r}",
            hint="update hetsched" if newer else f'a plan file starts with "format": "{FORMAT}"',
        )


def _workload(source: Fields, model: ModelSpec) -> TrainingJob:
    job = TrainingJob(
        global_batch=source.integer("global_batch", maximum=LARGEST_BATCH),
        seq_len=source.integer("seq_len", min(model.max_positions, 4096), maximum=10**7),
        micro_batch=source.integer("micro_batch", 1),
        dtype=source.text("dtype", "bf16"),
    )
    source.finish()
    return job


def _pipeline(source: Fields, number: int) -> Pipeline:
    pipeline = Pipeline(
        name=source.text("name", f"p{number}"),
        role=source.choice("role", ("train",), "train"),
        micro_batches=source.integer("micro_batches", maximum=LARGEST_BATCH),
        stages=tuple(_stage(item) for item in source.children("stages")),
    )
    source.finish()
    return pipeline


def _stage(source: Fields) -> Stage:
    layers, devices = source.sequence("layers"), source.sequence("devices")
    if len(layers) != 2 or not all(isinstance(x, int) and not isinstance(x, bool) for x in layers):
        raise HetschedError(
            f"{source.at('layers')} is {layers}, expected two whole numbers", hint="a half-open range, e.g. [0, 3]"
        )
    if not all(isinstance(device, str) for device in devices):
        raise HetschedError(f"{source.at('devices')} is {devices}, expected names", hint='e.g. ["tokyo-0/0"]')
    source.finish()
    return Stage((layers[0], layers[1]), tuple(devices))


def _options(source: Fields) -> Options:
    messages = source.sequence("dtfm_message_gigabytes", ())
    if messages and (len(messages) != 2 or not all(isinstance(x, int | float) and x >= 0 for x in messages)):
        raise HetschedError(
            f"{source.at('dtfm_message_gigabytes')} is {messages}, expected two sizes",
            hint="the gradient message and the activation message, in gigabytes",
        )
    options = Options(
        schedule=source.choice("schedule", SCHEDULES, "1f1b"),
        recompute=source.flag("recompute", False),
        zero=source.integer("zero", 0, minimum=0, maximum=3),
        compression=_compression(source.child("compression")) if "compression" in source else Compression(),
        dtfm_message_gigabytes=(float(messages[0]), float(messages[1])) if messages else None,
        overlap=source.flag("overlap", False),
    )
    source.finish()
    return options


def _compression(source: Fields) -> Compression:
    bits = {
        key: source.integer(key, 16, minimum=2, maximum=16)
        for key in ("activation_bits", "activation_grad_bits", "grad_bits")
    }
    source.finish()
    return Compression(**bits)


def _cluster(source: Fields) -> ClusterReference:
    reference = ClusterReference(*(source.text(key, "") for key in ("name", "path", "sha256")))
    source.finish()
    return reference
