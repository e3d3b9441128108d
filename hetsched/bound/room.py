"""What memory forbids: how many pipelines fit, and how many micro-batches one of so many stages can take."""

import numpy as np

from hetsched.bound.speeds import SpeedLevel
from hetsched.cluster import Cluster, Floats, Gpu
from hetsched.cost.memory import (
    FP32_BYTES,
    RESERVE_BYTES,
    STATE_BYTES,
    block_activation_bytes,
    hidden_bytes,
    logits_bytes,
    reserve_bytes,
)
from hetsched.model import ModelSpec
from hetsched.plan import Options
from hetsched.workload import TrainingJob

ROUNDING = 1e-9


def device_bytes(gpu: Gpu, memory_fraction: float) -> float:
    """What `stage_bytes`, but for its reserve, may fill of a GPU."""
    size = float(gpu.memory_bytes)
    return max(size * memory_fraction - (reserve_bytes(size) + RESERVE_BYTES) + 1, 0.0)


class Room:
    """Memory for plans of one setting and one class of speeds, by number of pipelines (`replicas`, (n,)).

    What `stage_bytes` counts is split over a team's devices at best: a team of t devices holds t shares of parameters
    and logits, and at least the activations that one device would. So bytes of teams add up, and those of a pipeline
    are at least one model's states and one micro-batch's activations and logits (all its micro-batches' in GPipe).
    """

    def __init__(
        self,
        cluster: Cluster,
        model: ModelSpec,
        job: TrainingJob,
        options: Options,
        level: SpeedLevel,
        memory_fraction: float,
        micro_batches: int,
        replicas: Floats,
    ) -> None:
        self.model, self.replicas, self.gpipe = model, replicas, options.schedule == "gpipe"
        free = np.array([device_bytes(gpu.gpu, memory_fraction) for gpu in cluster.devices])
        usable = np.where(level.device > 0, free, 0.0)
        self.usable = np.sort(usable[usable > 0])[::-1]
        self.team = float((usable * level.degree).max())
        states = STATE_BYTES if job.dtype_bytes < FP32_BYTES else STATE_BYTES - FP32_BYTES
        peers = [np.where(options.zero < stage, 1.0, replicas) for stage in (3, 2, 1)]
        self.parameter = job.dtype_bytes / peers[0] + FP32_BYTES / peers[1] + states / peers[2]
        self.activation = hidden_bytes(model, job) if options.recompute else block_activation_bytes(model, job)
        self.logits = logits_bytes(model, job)
        self.kept_logits = float(FP32_BYTES * job.micro_batch * job.seq_len * model.vocab_size) if self.gpipe else 0.0
        self.micro_batches = micro_batches

    def fewest_devices(self) -> Floats:
        """(n,): the devices that a pipeline needs at least; inf where so many pipelines do not fit."""
        blocks = self.model.num_layers
        one = self.model.parameters * self.parameter + self.logits + blocks * self.activation
        total, most = self.replicas * one, np.ones_like(self.replicas)
        if self.gpipe:  # all micro-batches are kept, and some pipeline has the average of them or more
            total = total + np.maximum(self.micro_batches - self.replicas, 0.0) * (
                blocks * self.activation + self.kept_logits
            )
            most = np.ceil(self.micro_batches / self.replicas)
        last = self.model.block_parameters * self.parameter + self.logits + (most - 1) * self.kept_logits
        fewest = np.searchsorted(np.cumsum(self.usable), one * (1 - ROUNDING)) + 1.0
        fits = (self.replicas * fewest <= len(self.usable)) & (total <= self.usable.sum()) & (last <= self.team)
        return np.where(fits, fewest, np.inf)

    def most_micro_batches(self, stages: Floats) -> Floats:
        """(n, len(stages)): what a pipeline of so many stages can take; inf where memory sets no limit.

        1F1B: stage s of S keeps min(S - s, m) micro-batches of each of its blocks, so the blocks that fit it are
        limited, and with them the model's.
        """
        found = np.full((len(self.replicas), len(stages)), np.inf)
        states = self.model.block_parameters * self.parameter[:, None]
        if self.gpipe:
            free = self.team * stages - self.logits - self.model.parameters * self.parameter[:, None]
            each = self.model.num_layers * self.activation + self.kept_logits
            last = (self.team - self.logits - states) / self.kept_logits + 1
            return np.minimum(free / each, last)
        for column, depth in enumerate(stages):
            behind = np.arange(1, depth + 1)
            memory = np.where(behind == 1, max(0.0, self.team - self.logits), self.team)
            for count in range(int(depth), 0, -1):
                kept = np.minimum(behind, count) * self.activation + states
                blocks = np.floor(memory / kept * (1 + ROUNDING)).sum(axis=1)
                lacks = blocks < self.model.num_layers
                if not lacks.any():
                    break
                found[lacks, column] = count - 1
        return found
