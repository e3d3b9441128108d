"""What a request takes on a replica that has nothing else to do, and the replica that `Slo.scale` refers to."""

import numpy as np
from numpy.typing import ArrayLike

from hetsched.cluster import Cluster, Gpu, Link, Network, Node
from hetsched.cost.serving.operators import Floats
from hetsched.cost.serving.replica import UNQUANTISED, ReplicaTimes, replica_times
from hetsched.cost.serving.stage import causal_pairs
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import Stage
from hetsched.precision import Precision

REFERENCE_GPU = "A100-SXM-40GB"  # whose latency HexGen's SLO scale multiplies (arXiv 2311.11514, section 5)
WIDEST = 64
USUAL_LINK = Link(16e9, 2e-5)


def alone(replica: ReplicaTimes, input_tokens: ArrayLike, output_tokens: ArrayLike) -> tuple[Floats, Floats]:
    """(time to the first token, time to the last) of requests that have a replica for themselves, in seconds.

    The prompt goes through the stages, then each token but the last does; the k-th step of these reads a context of the
    prompt and k tokens. Arrays broadcast.
    """
    prompt, output = np.asarray(input_tokens, dtype=float), np.asarray(output_tokens, dtype=float)
    last = replica.depth - 1
    first = np.zeros_like(prompt) + replica.overhead_s
    for stage in range(replica.depth):
        first = first + replica.prefill_s(stage, prompt, causal_pairs(prompt))
        if stage < last:
            first = first + replica.hop_s(stage, prompt)
    table = replica.decode_table(1)
    return_s = float(replica.return_s(1)) if last else 0.0
    step_s = float(table.base_s[:, 1].sum() + table.hop_s[:last, 1].sum()) + return_s + replica.overhead_s
    steps = output - 1.0
    contexts = steps * prompt + steps * (steps + 1.0) / 2.0
    return first, first + steps * step_s + float(table.per_context_token_s[:, 1].sum()) * contexts


def reference_replica(gpu: Gpu, model: ModelSpec, precision: Precision = UNQUANTISED) -> ReplicaTimes:
    """One node of `gpu`, as few in tensor parallel (a power of two) as hold the model and a request of full length.

    Raises HetschedError where WIDEST of them do not.
    """
    link = gpu.link or USUAL_LINK
    network = Network(np.array([[link.bandwidth_bytes_per_s]]), np.array([[link.latency_s]]))
    degree = 1
    while degree <= WIDEST:
        cluster = Cluster("reference", (Node("reference", "reference", (gpu,) * degree),), network)
        stage = Stage((0, model.num_layers), tuple(device.name for device in cluster.devices))
        replica = replica_times(cluster, model, (stage,), precision)
        if replica.kv_capacity_tokens >= model.max_positions:
            return replica
        degree *= 2
    raise HetschedError(
        f"{WIDEST} × {gpu.kind}, which an SLO scale refers to, do not hold {model.name}",
        hint="give limits in milliseconds instead",
    )
