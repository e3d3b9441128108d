"""Hops of a pipeline: how long a message keeps its link, and when it is there, where messages of both ways meet."""

from hetsched.cluster import Cluster
from hetsched.cost.network import Lanes, Team, transfer_s
from hetsched.cost.schedule import Hop
from hetsched.plan import Options


def hop_between(
    cluster: Cluster,
    here: Team,
    there: Team,
    sizes: tuple[float, float],
    forward: Lanes,
    backward: Lanes,
    crossing: Lanes | None,
    pace_s: float,
    parts: bool = True,
) -> Hop:
    """The link from a stage to the next, for one micro-batch's activations and their gradients, of `sizes` in bytes.

    forward, backward: all flows of either kind; crossing: of both, None where the two never cross (`both_cross`).
    pace_s: from a micro-batch to the next. parts: see `transfer_s`.
    """
    there_bytes, back_bytes = sizes
    return Hop(
        *_way(cluster, here, there, there_bytes, back_bytes, forward, crossing, pace_s, parts),
        *_way(cluster, there, here, back_bytes, there_bytes, backward, crossing, pace_s, parts),
    )


def both_cross(options: Options, micro_batches: int, depth: int) -> bool:
    """Whether a pipeline's activations and their gradients are on their way at the same time.

    In 1F1B they are; in GPipe, and where there are fewer micro-batches than stages, the ones mostly follow the others.
    Without overlap a stage sends or receives one message at a time.
    """
    return options.schedule == "1f1b" and options.overlap and micro_batches >= depth


def _way(
    cluster: Cluster,
    source: Team,
    target: Team,
    size_bytes: float,
    others_bytes: float,
    lanes: Lanes,
    crossing: Lanes | None,
    pace_s: float,
    parts: bool,
) -> tuple[float, float]:
    """(how long the link is kept, how long after that the message is there; that may be less than 0).

    A message takes t with all of its own kind, and t + d were it crossed by the other kind all the way. In each
    micro-batch's time T the others are under way for about r d, where r is how many times as large they are: so in the
    long run no more than one message gets through in t + r d, and one meets the others for r d / T of its way, and is
    there after t + r d² / T (fair shares, mean field).
    """
    own_s, latency_s = transfer_s(cluster, source, target, size_bytes, lanes, parts)
    if crossing is None:
        return own_s, latency_s
    crossed_s, _ = transfer_s(cluster, source, target, size_bytes, crossing, parts)
    more_s = crossed_s - own_s
    others_s = more_s * others_bytes / size_bytes
    kept_s = own_s + others_s
    return kept_s, latency_s - others_s + more_s * others_s / max(pace_s, kept_s)
