"""A training problem on one grid as a stage layout, and a layout as a candidate plan."""

from dataclasses import dataclass

import numpy as np

from hetsched.algorithms.stage_layout import Groups, StageLayout, Weights
from hetsched.cost.base import CostModel
from hetsched.cost.compute import Worker, stage_work
from hetsched.cost.memory import hidden_bytes
from hetsched.cost.published.dtfm import (
    HOP_WEIGHT,
    between_cost_s,
    messages_gigabytes,
    paper_messages_gigabytes,
    within_cost_s,
)
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import Grid, Variant, even_split, on_grid, settle
from hetsched.units import BYTES_PER_GB
from hetsched.workload import TrainingJob


@dataclass(frozen=True, eq=False)
class GridSearch:
    """One grid, replicas × stages, its layout, and the options settled for it."""

    problem: Problem
    model: CostModel
    layout: StageLayout
    variant: Variant

    @property
    def priced_by_layout(self) -> bool:
        """Whether the cost model sees no more than the layout does."""
        return self.model.assumes.communication_only

    def classes_of(self, grid: Grid) -> Groups:
        """The groups of classes, the idle last, of devices on a grid."""
        classes = self.layout.class_of
        idle = np.setdiff1d(np.arange(len(classes)), np.asarray(grid)).tolist()
        return [classes[row].tolist() for row in [*map(list, grid), idle] if row]

    def candidate(self, groups: Groups) -> Candidate:
        """The plan of ordered groups of classes (the idle last): matched along the path, and priced."""
        devices = self.layout.expand(groups)[: self.layout.num_groups]
        return on_grid(self.problem, self.model, self.layout.match(devices), self.variant)

    def candidate_of_devices(self, groups: Groups) -> Candidate:
        """The plan of ordered groups of devices, likewise."""
        return on_grid(self.problem, self.model, self.layout.match(groups[: self.layout.num_groups]), self.variant)


def grid_search(problem: Problem, model: CostModel, replicas: int, stages: int) -> GridSearch:
    """The layout of a grid, with the open options as they suit devices in inventory order.

    For `dtfm` its cost is the price; for other models it stands in for it (all-reduces as DT-FM counts them, hops as
    they delay a pipeline), and candidates are priced by the model.
    """
    order = np.arange(replicas * stages).reshape(stages, replicas).tolist()
    variant = settle(problem, model, order)[1]
    job = TrainingJob(problem.job.global_batch, problem.job.seq_len, variant.micro_batch, problem.job.dtype)
    everywhere = np.arange(len(problem.cluster.devices))
    latency, bandwidth = problem.cluster.links(everywhere, everywhere)
    c_dp, c_pp = messages_gigabytes(problem.model, job, replicas, stages)
    weights = Weights(hop=HOP_WEIGHT)
    if model.assumes.communication_only:
        paper = paper_messages_gigabytes(problem.model, problem.choices.published_batch, replicas, stages)
        c_dp, c_pp = paper or (c_dp, c_pp)
    else:
        c_pp = hidden_bytes(problem.model, job) / BYTES_PER_GB
        weights = _pipelined(problem, job, variant, stages, replicas)
    within = within_cost_s(latency, bandwidth, c_dp, replicas)
    gpus = [device.gpu for device in problem.cluster.devices]
    numbers = {gpu: number for number, gpu in enumerate(dict.fromkeys(gpus))}
    kinds = None if model.assumes.communication_only else [numbers[gpu] for gpu in gpus]
    layout = StageLayout(within, between_cost_s(latency, bandwidth, c_pp), stages, replicas, weights, kinds)
    return GridSearch(problem, model, layout, variant)


def _pipelined(problem: Problem, job: TrainingJob, variant: Variant, stages: int, replicas: int) -> Weights:
    """What hops cost where they overlap with computing: a micro-batch passes all of them twice, and the slowest link,
    where it is slower than a stage's work, sets the pace for all others."""
    micro_batches = -(-job.global_batch // (job.micro_batch * replicas))
    layers = even_split(problem.model.num_layers, stages)[0]
    works = [
        stage_work(Worker(gpu), problem.model, job, layers, variant.recompute)
        for gpu in {device.gpu for device in problem.cluster.devices}
    ]
    pace = float(np.median([work.forward_s + work.backward_s for work in works]))
    return Weights(hop=HOP_WEIGHT, peak=micro_batches - 1.0, peak_floor=pace)
