"""Hops of a pipeline: how long a message keeps its link, and when it is there, where messages of both ways meet."""

from collections.abc import Sequence
from dataclasses import dataclass

from hetsched.cluster import Cluster
from hetsched.cost.compute import StageWork
from hetsched.cost.network import Lanes, Team, transfer_s
from hetsched.cost.schedule import Hop, pace_of, round_trip_s
from hetsched.plan import Options


@dataclass(frozen=True, slots=True)
class Way:
    """A message from a stage to a neighbour.

    own_s: how long it takes with all of its own kind; crossed_s: were it crossed all the way by those of the other
    kind; latency_s: from then until it is there. others: how many times as large those are; meets: at how many of the
    two ends of its way they pass.
    """

    own_s: float
    latency_s: float
    crossed_s: float
    others: float
    meets: int

    @property
    def long_run_s(self) -> float:
        """The least from one message to the next in the long run, as many of the other kind going by."""
        return self.own_s + (self.crossed_s - self.own_s) * self.others

    def crossed(self, share: float, pace_s: float) -> float:
        """Seconds until the message has come, on average; share: of the messages that are sent while others are.

        In each micro-batch's time the others are under way for as long as they are large, at each end of the way (mean
        field): for so much of it the message is as slow as it is where it is crossed.
        """
        if not self.meets:
            return self.own_s
        met = min(1.0, self.meets * self.own_s * self.others / pace_s)
        return self.own_s + share * (self.own_s / (1 - met * (1 - self.own_s / self.crossed_s)) - self.own_s)


@dataclass(frozen=True, slots=True)
class Link:
    """The ways from a stage to the next and back, for one micro-batch's activations and their gradients.

    apart: as a hop whose messages never meet.
    """

    there: Way
    back: Way
    apart: Hop

    def hop(self, share: float, pace_s: float, full: bool) -> Hop:
        """As a hop whose messages meet.

        full: whether so many go each way that no more get through than in the long run. A message that is there before
        another can follow it has a latency below 0.
        """
        there, back = self.there, self.back
        if not there.meets and not back.meets:
            return self.apart
        kept = (there.long_run_s, back.long_run_s) if full else (there.own_s, back.own_s)
        there_s, back_s = there.crossed(share, pace_s), back.crossed(share, pace_s)
        return Hop(kept[0], there_s + there.latency_s - kept[0], kept[1], back_s + back.latency_s - kept[1])


def link_between(
    cluster: Cluster,
    here: Team,
    there: Team,
    sizes: tuple[float, float],
    forward: Lanes,
    backward: Lanes,
    crossing: Lanes | None,
    parts: bool = True,
) -> Link:
    """The link from a stage to the next, for one micro-batch's activations and their gradients, of `sizes` in bytes.

    forward, backward: all flows of either kind; crossing: of both, None to keep them apart. parts: see `transfer_s`.
    """
    sent_bytes, back_bytes = sizes
    sent = _way(cluster, here, there, sent_bytes, back_bytes, forward, crossing, parts)
    back = _way(cluster, there, here, back_bytes, sent_bytes, backward, crossing, parts)
    return Link(sent, back, Hop(sent.own_s, sent.latency_s, back.own_s, back.latency_s))


def _way(
    cluster: Cluster,
    source: Team,
    target: Team,
    size_bytes: float,
    others_bytes: float,
    lanes: Lanes,
    crossing: Lanes | None,
    parts: bool,
) -> Way:
    own_s, latency_s = transfer_s(cluster, source, target, size_bytes, lanes, parts)
    if crossing is None or source.node == target.node:
        return Way(own_s, latency_s, own_s, 1.0, 0)
    crossed_s, _ = transfer_s(cluster, source, target, size_bytes, crossing, parts)
    i, j = source.node, target.node
    meets = (crossing.out[i] > lanes.out[i]) + (crossing.into[j] > lanes.into[j])
    return Way(own_s, latency_s, max(own_s, crossed_s), others_bytes / size_bytes, meets)


def may_cross(options: Options) -> bool:
    """Whether activations and their gradients can be on their way at the same time.

    In 1F1B they are; in GPipe the ones mostly follow the others. Without overlap a stage sends or receives one message
    at a time.
    """
    return options.schedule == "1f1b" and options.overlap


def hops_of(links: Sequence[Link], work: Sequence[StageWork], micro_batches: int, options: Options) -> list[Hop]:
    """The hops of a pipeline that does so many micro-batches.

    In 1F1B a stage's activations go out alone for as many micro-batches as there are stages after it, before the first
    gradient is back; and as many gradients come when it has no more activations to send. Only the others meet. With
    fewer micro-batches than stages there is no long run.
    """
    apart = [link.apart for link in links]
    if not may_cross(options):
        return apart
    pace_s = max(pace_of(work, apart), round_trip_s(work, apart))
    depth, full = len(work), micro_batches >= len(work)
    return [link.hop(max(0.0, 1 - (depth - 1 - s) / micro_batches), pace_s, full) for s, link in enumerate(links)]
