"""KV caches on their way from prefill to decode replicas, over networks that they share."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from hetsched.cluster import Cluster
from hetsched.cost.network import Lanes
from hetsched.cost.serving.kv_transfer import KvPart, last_block_s, part_s
from hetsched.simulate.network import Channel, Clock, SharedNetwork
from hetsched.simulate.serving.job import Job

Arrived = Callable[[Job], None]


class KvRoute:
    """From one replica to another: one request's KV at a time, its parts all at once, in the order of asking.

    The last block's part of it can't leave before the request's first token is made.
    sent_tokens: of all requests so far; busy_s: how long something was under way.
    """

    def __init__(self, cluster: Cluster, parts: Sequence[KvPart], clock: Clock, network: SharedNetwork) -> None:
        self._clock, self._network = clock, network
        self.channels = [
            Channel(
                partial(_seconds_per_token, cluster, part),
                [(part.source.node, part.target.node, part.flows)] if part.between_nodes else [],
            )
            for part in parts
        ]
        self._last_block_s = last_block_s(cluster, parts)
        self._latency_s = [part_s(cluster, part, Lanes())[1] for part in parts]
        self._queue: deque[tuple[Job, Arrived]] = deque()
        self._under_way = 0
        self._since = self._there_s = 0.0
        self.sent_tokens, self.busy_s = 0, 0.0

    def send(self, job: Job, arrived: Arrived) -> None:
        """Send a request's KV when those before it have left; `arrived(job)` is called when all of it is there."""
        self._queue.append((job, arrived))
        if not self._under_way:
            self._start()

    def _start(self) -> None:
        job, _ = self._queue[0]
        self._since = self._there_s = self._clock.now
        self._under_way = len(self.channels)
        self.sent_tokens += job.prompt
        for channel, latency_s in zip(self.channels, self._latency_s, strict=True):
            self._network.send(channel, self._left, latency_s, job.prompt)

    def _left(self, latency_s: float) -> None:
        now = self._clock.now
        self._there_s = max(self._there_s, now + latency_s)
        self._under_way -= 1
        if self._under_way:
            return
        self.busy_s += now - self._since
        job, arrived = self._queue.popleft()
        per_token_s, last_s = self._last_block_s
        self._clock.at(max(self._there_s, job.first_s + job.prompt * per_token_s + last_s), arrived, job)
        if self._queue:
            self._start()


def _seconds_per_token(cluster: Cluster, part: KvPart, lanes: Lanes) -> float:
    return part_s(cluster, part, lanes)[0]
