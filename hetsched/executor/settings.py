"""What a run is asked for, and what it tells."""

from dataclasses import dataclass
from pathlib import Path

from hetsched.errors import HetschedError
from hetsched.units import DTYPE_BYTES

DEVICES = ("auto", "cpu", "cuda")
QUANTISED = ("changes", "direct")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a plan is run.

    steps: training steps, at least 1. seed: of the initial weights. dtype: bf16, fp32 or fp64; None is fp32 on a CPU
    and the plan's elsewhere. text: a file to train on, as bytes; None is the bundled sample. device: `cpu`, `cuda`, or
    `auto`, which is cuda where each process of the machine has a GPU of its own. timeout_s: the longest the whole run
    may take, and a message may be waited for. threads: of torch, per process.

    epoch_steps: train on so many batches, in a new order every epoch; None is new samples in every step. For plans that
    compress: quantise activations' `changes` since the sample was last seen, where samples repeat, or the activations
    themselves, `direct`; cache_gib: the most a rank may keep for that; cache_folder: in files there, memory-mapped.

    checkpoint_to: write checkpoints to that folder, every `checkpoint_every` steps (None: none before the end) and at
    the end. resume_from: go on from the latest checkpoint there, for `steps` steps more. weights: the folder of a
    Hugging Face model, or a safetensors file, to start from; save_weights: write the trained weights there likewise.
    """

    steps: int = 5
    seed: int = 0
    dtype: str | None = None
    learning_rate: float = 3e-4
    text: Path | None = None
    device: str = "auto"
    timeout_s: float = 600.0
    threads: int = 1
    epoch_steps: int | None = None
    quantise: str = "changes"
    cache_gib: float = 4.0
    cache_folder: Path | None = None
    checkpoint_to: Path | None = None
    checkpoint_every: int | None = None
    resume_from: Path | None = None
    weights: Path | None = None
    save_weights: Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise HetschedError(f"run: {self.steps} steps", hint="run at least one")
        if self.epoch_steps is not None and self.epoch_steps < 1:
            raise HetschedError(f"run: epochs of {self.epoch_steps} steps", hint="give at least one")
        if self.checkpoint_every is not None and (self.checkpoint_every < 1 or self.checkpoint_to is None):
            raise HetschedError(
                f"run: a checkpoint every {self.checkpoint_every} steps"
                + ("" if self.checkpoint_to else ", and no folder for them"),
                hint="give checkpoint_to and checkpoint_every",
            )
        if self.resume_from is not None and self.weights is not None:
            raise HetschedError("run: both a checkpoint and weights to start from", hint="give one of them")
        if self.save_weights is not None and self.checkpoint_to is None:
            raise HetschedError("run: save_weights, and no folder for checkpoints", hint="give checkpoint_to")
        if self.quantise not in QUANTISED:
            raise HetschedError(f"run: quantise is {self.quantise!r}", hint=f"use one of: {', '.join(QUANTISED)}")
        if self.threads < 1:
            raise HetschedError(f"run: {self.threads} threads a process", hint="use at least one")
        if not self.timeout_s > 0:
            raise HetschedError(f"run: a timeout of {self.timeout_s} s", hint="give a positive number of seconds")
        if self.device not in DEVICES:
            raise HetschedError(f"run: device is {self.device!r}", hint=f"use one of: {', '.join(DEVICES)}")
        if self.dtype is not None and self.dtype not in {*DTYPE_BYTES, "fp64"}:
            raise HetschedError(f"run: dtype is {self.dtype!r}", hint="use bf16, fp32 or fp64")


@dataclass(frozen=True, slots=True)
class StepReport:
    """One training step of one rank.

    loss: mean over the tokens of the global batch, the same on every rank. iteration_s: from the end of the last step
    to the end of this one on this rank. Of that, schedule_s is forward and backward passes with their waits,
    of which wait_s went by waiting for messages (host time; on CUDA the waits happen on the device and are not seen),
    all_reduce_s the gradient all-reduces that the passes did not hide, optimizer_s the weight update.

    Bytes as they left this rank: activation_bytes forwards and activation_grad_bytes backwards, and grad_bytes, the
    messages that its all-reduces began with.
    """

    step: int
    loss: float
    iteration_s: float
    schedule_s: float
    wait_s: float
    all_reduce_s: float
    optimizer_s: float
    activation_bytes: int = 0
    activation_grad_bytes: int = 0
    grad_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run measured: one loss a step; times in s; `ranks` holds every rank's steps, `devices` whose they are.

    iteration_s: the longest of any rank; ranks do not wait for one another between steps. mean_iteration_s: the slowest
    rank's mean, without the first iteration (connections and caches warm up in it) where there is a second.
    """

    losses: tuple[float, ...]
    iteration_s: tuple[float, ...]
    mean_iteration_s: float
    tokens_per_s: float
    dtype: str
    device: str
    devices: tuple[str, ...]
    ranks: tuple[tuple[StepReport, ...], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """How far a run in fp32 or fp64 is from one process that does the whole model on the whole batch.

    loss_difference: the largest, relative to the loss. gradient_difference: the largest absolute difference, over the
    model's largest gradient. tensor_difference: the largest norm of a difference over the tensor's norm, among tensors
    with more than 1e-4 of the total norm, and which one (`worst_tensor`). copies: gradient tensors compared, every
    rank's copy of every slice counted. failures: what was out of tolerance, in words; empty where the check passed.
    """

    run: RunReport
    reference_losses: tuple[float, ...]
    loss_difference: float
    gradient_difference: float
    tensor_difference: float
    worst_tensor: str
    copies: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether losses and all gradients agree."""
        return not self.failures
