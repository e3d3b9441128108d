"""A lower bound under DT-FM's formula (`hetsched.cost.published.dtfm`): communication alone.

Fix a grid of D pipelines of S stages. Each of its D · S devices d has DATAP(d) = the sum, over the D - 1 others of its
group, of within_cost(d, d'), which is at least the sum a(d) of its D - 1 cheapest. DATAP is the largest, and D · S
devices are used: at least the (D · S)-th smallest a(d). PIPELINE adds up, over S - 1 hops, the dearest of D transfers.
All (S - 1) · D of them leave from devices of their own; a transfer from d costs at least o(d), its cheapest. The sum of
the maxima of S - 1 disjoint sets of D numbers is at least what the smallest numbers give in ascending sets: the sum of
the D-th, 2 D-th, ... smallest o(d). The bound is the least over all grids.
"""

import numpy as np

from hetsched.cost.published.dtfm import (
    HOP_WEIGHT,
    between_cost_s,
    messages_gigabytes,
    paper_messages_gigabytes,
    within_cost_s,
)
from hetsched.problem import Problem

MOST_DEVICES = 512  # beyond, the square matrices of every grid take too long


def dtfm_bound_s(problem: Problem) -> tuple[float, str]:
    """Seconds, and what makes them; 0 where there are too many devices."""
    cluster, model, job, choices = problem.cluster, problem.model, problem.job, problem.choices
    devices = len(cluster.devices)
    if devices > MOST_DEVICES:
        return 0.0, f"no bound is known for more than {MOST_DEVICES} GPUs under dtfm"
    everywhere = np.arange(devices)
    latency, bandwidth = cluster.links(everywhere, everywhere)
    apart = ~np.eye(devices, dtype=bool)
    best, where = np.inf, (1, 1)
    for replicas in range(1, min(devices, job.global_batch) + 1):
        if choices.replicas not in (None, replicas):
            continue
        for stages in range(1, min(devices // replicas, model.num_layers) + 1):
            if choices.stages not in (None, stages):
                continue
            paper = paper_messages_gigabytes(model, choices.published_batch, replicas, stages)
            c_dp, c_pp = paper or messages_gigabytes(model, job, replicas, stages)
            total = 0.0
            if replicas > 1:
                costs = np.sort(np.where(apart, within_cost_s(latency, bandwidth, c_dp, replicas), np.inf), axis=1)
                total += float(np.sort(costs[:, : replicas - 1].sum(axis=1))[replicas * stages - 1])
            if stages > 1:
                out = np.sort(np.where(apart, between_cost_s(latency, bandwidth, c_pp), np.inf).min(axis=1))
                total += HOP_WEIGHT * float(out[replicas - 1 : replicas * (stages - 1) : replicas].sum())
            if total < best:
                best, where = total, (replicas, stages)
    return float(
        best
    ), f"what {where[0]} × {where[1]} GPUs must send at least over the nearest links; nothing else counts"
