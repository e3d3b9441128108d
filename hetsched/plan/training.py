"""The training plan: which blocks run on which devices, how they are scheduled, and its JSON."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hetsched.errors import HetschedError, HetschedWarning
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
from hetsched.workload import TrainingJob

SCHEDULES = ("1f1b", "gpipe")
LARGEST_BATCH = 1_000_000  # sequences in an iteration
FULL_BITS = 16  # not compressed
WIRE_BITS = frozenset({*range(2, 9), FULL_BITS})  # what the bundled executor sends


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
        return devices_of(self.stages)


@dataclass(frozen=True, slots=True)
class Compression:
    """Bits on the wire for an activation, its gradient, and a weight's gradient; `FULL_BITS` means none."""

    activation_bits: int = FULL_BITS
    activation_grad_bits: int = FULL_BITS
    grad_bits: int = FULL_BITS


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


@dataclass(frozen=True)
class Plan:
    """A whole training plan; it stands alone, so that exporters and the executor need nothing else.

    devices: {device: {"node", "region", "index", "kind"}}; predicted: what `Cost.predicted` gave; both may be empty in
    a plan under construction. Raises HetschedError where stages leave a block out, a device is used twice, or the
    pipelines' batches do not add up.
    """

    model: ModelSpec
    workload: TrainingJob
    pipelines: tuple[Pipeline, ...]
    options: Options = Options()
    kind: Literal["train"] = "train"
    cluster: ClusterReference = ClusterReference()
    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_pipelines(self.pipelines, self.model)
        self._check_batch()

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

        Ranks are numbered in this order, by the executor and by what starts it, so that neither needs a table. Raises
        HetschedError for a device that the plan's own table of devices, where it has one, does not know.
        """
        for pipeline, number, stage in self.stages:
            for name in stage.devices:
                if self.devices and name not in self.devices:
                    raise HetschedError(
                        f"plan: device {name} of pipeline {pipeline.name}, stage {number}, is not among the plan's "
                        "`devices`",
                        hint="name one of them, or add it there with its node, region, index and kind",
                    )
        return devices_by_node(self.pipelines)

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
            "cluster": self.cluster.to_json(),
            "model": self.model.to_json(),
            "workload": asdict(self.workload),
            "options": options,
            "pipelines": [
                {
                    "name": pipeline.name,
                    "role": pipeline.role,
                    "micro_batches": pipeline.micro_batches,
                    "stages": [stage_json(stage) for stage in pipeline.stages],
                }
                for pipeline in self.pipelines
            ],
            "routes": [],
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
            raise HetschedError(
                f"{where} is a serving plan, a training plan is needed here",
                hint="serving plans: hetsched evaluate, hetsched simulate",
            )
        model = ModelSpec.from_json(source.child("model").data, source.at("model"))
        plan = cls(
            model=model,
            workload=_workload(source.child("workload"), model),
            pipelines=tuple(_pipeline(item, n) for n, item in enumerate(source.children("pipelines"))),
            options=_options(source.child("options")) if "options" in source else Options(overlap=False),
            cluster=read_cluster_reference(source),
            devices=dict(source.child("devices").data) if "devices" in source else {},
            predicted=dict(source.child("predicted").data) if "predicted" in source else {},
            provenance=dict(source.child("provenance").data) if "provenance" in source else {},
        )
        if source.sequence("routes", ()):
            warnings.warn(f"{where}: routes mean nothing in a training plan", HetschedWarning, stacklevel=2)
        source.finish()
        return plan


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
        stages=tuple(read_stage(item) for item in source.children("stages")),
    )
    source.finish()
    return pipeline


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
