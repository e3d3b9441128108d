"""What was measured: times of model parts on a GPU kind, and bandwidths by message size."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from hetsched.model import ModelSpec
from hetsched.workload import TrainingJob

SMALLEST_MESSAGE_BYTES = 1e6  # below, a fitted curve leaves the physical range: its value there is kept


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model and a job decides how long a block takes; a profile holds for any model of its shape."""

    hidden_size: int
    num_heads: int
    ffn_size: int
    vocab_size: int
    seq_len: int
    dtype: str

    @classmethod
    def of(cls, model: ModelSpec, job: TrainingJob) -> "ModelShape":
        """The shape of a model in a job."""
        return cls(model.hidden_size, model.num_heads, model.ffn_size, model.vocab_size, job.seq_len, job.dtype)


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Seconds of one part of a model for one micro-batch: forward, backward, and its optimiser update."""

    forward_s: float
    backward_s: float
    update_s: float

    def longer(self, times: float) -> "PassTimes":
        """Passes so many times as long, the update as it is."""
        return PassTimes(self.forward_s * times, self.backward_s * times, self.update_s)


@dataclass(frozen=True, slots=True)
class PartTimes:
    """The times of the parts of a model: the embedding, one block, and the final norm with the LM head."""

    embedding: PassTimes
    block: PassTimes
    head: PassTimes

    def longer(self, times: float) -> "PartTimes":
        """Passes of all parts so many times as long."""
        return PartTimes(self.embedding.longer(times), self.block.longer(times), self.head.longer(times))


@dataclass(frozen=True)
class TrainingProfile:
    """Measured times on one GPU kind at one tensor-parallel degree, communication of that degree included.

    points: {micro-batch size: times}, one at least.
    """

    points: Mapping[int, PartTimes]

    def covers(self, micro_batch: int) -> bool:
        """Whether the size lies among the measured ones."""
        return min(self.points) <= micro_batch <= max(self.points)

    def at(self, micro_batch: int) -> PartTimes:
        """The times at a micro-batch size, between two measured ones by a straight line.

        Above the largest, passes take as long for each sequence as there; below the smallest, as long as that.
        """
        sizes = sorted(self.points)
        if micro_batch in self.points:
            return self.points[micro_batch]
        if micro_batch < sizes[0]:
            return self.points[sizes[0]]
        if micro_batch > sizes[-1]:
            return self.points[sizes[-1]].longer(micro_batch / sizes[-1])
        above = next(size for size in sizes if size > micro_batch)
        below = max(size for size in sizes if size < micro_batch)
        share = (micro_batch - below) / (above - below)
        low, high = self.points[below], self.points[above]
        return PartTimes(
            _between(low.embedding, high.embedding, share),
            _between(low.block, high.block, share),
            _between(low.head, high.head, share),
        )


def _between(low: PassTimes, high: PassTimes, share: float) -> PassTimes:
    return PassTimes(
        low.forward_s + share * (high.forward_s - low.forward_s),
        low.backward_s + share * (high.backward_s - low.backward_s),
        low.update_s + share * (high.update_s - low.update_s),
    )


@dataclass(frozen=True, slots=True)
class ServingShape:
    """What of a model decides how long a block takes in inference; a profile holds for any model of its shape."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    gated_mlp: bool
    num_experts: int

    @classmethod
    def of(cls, model: ModelSpec) -> "ServingShape":
        """The shape of a model."""
        return cls(**{field.name: getattr(model, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class ServingProfile:
    """Measured seconds of one block on a GPU kind at a tensor-parallel degree, with that degree's communication.

    prefill_s: {tokens of the prompts in a step: seconds}; decode_s: {sequences in a step: seconds}, both at the usual
    length of prompts and contexts where they were measured. A step of nothing takes no time.
    """

    prefill_s: Mapping[int, float]
    decode_s: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class BandwidthCurve:
    """Measured bandwidth by message size: c0 L² + c1 L + c2 gigabytes/s, with L = log2 of the size in megabytes."""

    coefficients: tuple[float, float, float]
    max_bytes_per_s: float

    def bytes_per_s(self, size_bytes: float) -> float:
        """Bytes a second for messages of that size; never above the largest measured, nor past the curve's top."""
        c0, c1, c2 = self.coefficients
        size = math.log2(max(size_bytes, SMALLEST_MESSAGE_BYTES) / 1e6)
        if c0 < 0.0:
            size = min(size, -c1 / (2 * c0))  # larger messages are not slower: the fit bends down there
        return min((c0 * size * size + c1 * size + c2) * 1e9, self.max_bytes_per_s)


@dataclass(frozen=True)
class BandwidthCurves:
    """Curves by the kinds of GPU at both ends and by how many GPUs of a node take part at once.

    inside: {(kind, GPUs): curve}, what each GPU of such a group gets in a collective (bus bandwidth); between:
    {(kind, peer kind, GPUs): curve}, what so many pairs of GPUs of two nodes get together.
    """

    inside: Mapping[tuple[str, int], BandwidthCurve] = field(default_factory=dict)
    between: Mapping[tuple[str, str, int], BandwidthCurve] = field(default_factory=dict)

    def inside_node(self, kind: str, gpus: int) -> BandwidthCurve | None:
        """The curve for a group of `gpus`: the next larger measured group's, else the largest one's."""
        return _nearest({n: curve for (k, n), curve in self.inside.items() if k == kind}, gpus)

    def between_nodes(self, kind: str, peer: str, gpus: int) -> BandwidthCurve | None:
        """The curve for `gpus` pairs at once: the next larger measured number's, else the largest one's."""
        return _nearest({n: curve for (k, p, n), curve in self.between.items() if (k, p) == (kind, peer)}, gpus)


def _nearest(curves: Mapping[int, BandwidthCurve], gpus: int) -> BandwidthCurve | None:
    if not curves:
        return None
    return curves[min((n for n in curves if n >= gpus), default=max(curves))]


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured of a cluster's kinds of GPU. training, serving: {(shape, kind, TP degree): profile}.

    Serving profiles are of weights, activations and KV cache in two bytes.
    """

    training: Mapping[tuple[ModelShape, str, int], TrainingProfile] = field(default_factory=dict)
    curves: BandwidthCurves = field(default_factory=BandwidthCurves)
    serving: Mapping[tuple[ServingShape, str, int], ServingProfile] = field(default_factory=dict)

    def serving_profile(self, model: ModelSpec, kind: str, tensor_parallel: int) -> ServingProfile | None:
        """The measured times of a model's blocks in inference, or None where there are none for this shape and kind."""
        if not self.serving:
            return None
        return self.serving.get((ServingShape.of(model), kind, tensor_parallel))

    def profile(self, model: ModelSpec, job: TrainingJob, kind: str, tensor_parallel: int) -> TrainingProfile | None:
        """The measured profile of a model of this shape, or None where there is none for the kind and degree."""
        if not self.training:
            return None
        return self.training.get((ModelShape.of(model, job), kind, tensor_parallel))

    def profiles(self, model: ModelSpec, job: TrainingJob, kind: str) -> dict[int, TrainingProfile]:
        """The measured profiles of a model of this shape on a kind, by tensor-parallel degree."""
        if not self.training:
            return {}
        wanted = ModelShape.of(model, job), kind
        return {degree: profile for (*key, degree), profile in self.training.items() if tuple(key) == wanted}

    def part_times(self, model: ModelSpec, job: TrainingJob, kind: str, tensor_parallel: int) -> PartTimes | None:
        """The times of a model's parts by `profile`, or None where there is none."""
        profile = self.profile(model, job, kind, tensor_parallel)
        return None if profile is None else profile.at(job.micro_batch)

    @classmethod
    def merged(cls, several: Iterable["Measurements"]) -> "Measurements":
        """All of them as one; of two for the same thing the later one holds."""
        training: dict[tuple[ModelShape, str, int], TrainingProfile] = {}
        inside: dict[tuple[str, int], BandwidthCurve] = {}
        between: dict[tuple[str, str, int], BandwidthCurve] = {}
        serving: dict[tuple[ServingShape, str, int], ServingProfile] = {}
        for one in several:
            training.update(one.training)
            inside.update(one.curves.inside)
            between.update(one.curves.between)
            serving.update(one.serving)
        return cls(training, BandwidthCurves(inside, between), serving)
