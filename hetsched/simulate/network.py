"""A clock of events, and networks whose transfers share nodes' uplinks and downlinks while they are under way.

Capacities are those of `hetsched.cost.network`, and so is how they are shared: evenly. But who shares is not what a
plan's layout says could be sent at once, it is what is being sent at the time: whenever a transfer starts or ends, all
that use its nodes' networks go on at another pace.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from hetsched.cost.network import Lanes

Flow = tuple[int, int, int]  # from node, to node, and how many GPUs send
Takes = Callable[[Lanes], float]
Watch = Callable[[], None]

EVENTS_BETWEEN_WATCHES = 4096


class Clock:
    """Events in the order of their times; those of one time in the order in which they were called for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, int, Callable[[Any], None], Any]] = []
        self._called = 0
        self._networks: list[SharedNetwork] = []

    def at(self, time: float, action: Callable[[Any], None], argument: Any = None, last: bool = False) -> None:
        """Call `action(argument)` at that time; last: after all others of that time."""
        self._called += 1
        heappush(self._queue, (time, last, self._called, action, argument))

    def settle_after_events(self, network: "SharedNetwork") -> None:
        """Let a network settle when all events of a time have been."""
        self._networks.append(network)

    def run(self, watch: Watch | None = None) -> None:
        """Go on until nothing is left to happen. `watch` is called now and then."""
        queue, networks = self._queue, self._networks
        while queue:
            self.now, _, _, action, argument = heappop(queue)
            action(argument)
            self.events += 1
            if not queue or queue[0][0] > self.now:
                for network in networks:
                    network.settle()
            if watch is not None and self.events % EVENTS_BETWEEN_WATCHES == 0:
                watch()


class Channel:
    """A way that messages of one size take: between two stages, or around a ring.

    takes: seconds of one whole message where so many flows are under way; it may depend on the links of the channel's
    own `flows` alone, which it adds to them while it is in use. Two messages may be on it at once
    where stages wait for their messages: one is still being received while the next is sent. They do not slow each
    other down, as it is the same GPUs that move both.
    """

    def __init__(self, takes: Takes, flows: Sequence[Flow]) -> None:
        self.takes, self.flows = takes, flows
        self.under_way: list[_Message] = []
        self.shared = False  # with another channel at some time
        self._links = [(i, j) for i, j, _ in flows]
        self._known: dict[tuple[int, ...], float] = {}

    def alone_s(self) -> float:
        """Seconds of one message while nothing else is under way."""
        lanes = Lanes()
        for flow in self.flows:
            lanes.add(*flow)
        return self.takes(lanes)

    def seconds(self, lanes: Lanes) -> float:
        """Seconds of one whole message at the pace that these lanes allow."""
        pairs, out, into = lanes.pairs, lanes.out, lanes.into
        key = tuple([count for i, j in self._links for count in (pairs[i, j], out[i], into[j])])
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self.takes(lanes)
        return found


class _Message:
    """What is left of a message on a channel (1: one of the channel's size), at what pace it moves and since when."""

    __slots__ = ("argument", "channel", "done", "left", "pace_s", "since", "version")

    def __init__(self, channel: Channel, now: float, done: Callable[[Any], None], argument: Any, size: float) -> None:
        self.channel, self.done, self.argument = channel, done, argument
        self.left, self.since, self.pace_s, self.version = size, now, 0.0, 0


class SharedNetwork:
    """Transfers that share nodes' networks with one another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lanes = Lanes()
        self._leaving: dict[int, list[Channel]] = {}
        self._entering: dict[int, list[Channel]] = {}
        self._changed: dict[Channel, None] = {}
        self._alone_s: dict[Channel, float] = {}
        clock.settle_after_events(self)

    def know(self, channels: Sequence[Channel]) -> None:
        """Be told of all channels before the first message; those that meet no other need not be watched."""
        for channel in channels:
            for i, j, _ in channel.flows:
                self._leaving.setdefault(i, []).append(channel)
                self._entering.setdefault(j, []).append(channel)
        for channel in channels:
            if all(len(self._leaving[i]) == len(self._entering[j]) == 1 for i, j, _ in channel.flows):
                self._alone_s[channel] = channel.alone_s()

    def send(self, channel: Channel, done: Callable[[Any], None], argument: Any = None, size: float = 1.0) -> None:
        """Start a message on a channel; `done(argument)` is called when the last of it has left.

        size: times that of the channel's messages.
        """
        seconds = self._alone_s.get(channel)
        if seconds is not None:
            self._clock.at(self._clock.now + size * seconds, done, argument)
            return
        if not channel.under_way:
            self._count(channel, 1)
        channel.under_way.append(_Message(channel, self._clock.now, done, argument, size))
        self._changed[channel] = None

    def settle(self) -> None:
        """Set the pace of all messages that something has changed for."""
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        lanes, clock, now = self._lanes, self._clock, self._clock.now
        for channel in changed:
            if not channel.under_way:
                continue
            if not channel.shared:
                channel.shared = any(
                    lanes.out[i] > own or lanes.into[j] > own for i, j, own in channel.flows
                )  # others are in its way
            pace_s = channel.seconds(lanes)
            for message in channel.under_way:
                if message.version and message.pace_s == pace_s:
                    continue
                if message.version:
                    message.left = max(0.0, message.left - (now - message.since) / message.pace_s)
                message.since, message.pace_s = now, pace_s
                message.version += 1
                clock.at(now + message.left * pace_s, self._ended, (message, message.version))

    def _ended(self, ending: tuple[_Message, int]) -> None:
        message, version = ending
        if version != message.version:
            return  # its pace has changed since
        channel = message.channel
        channel.under_way.remove(message)
        if not channel.under_way:
            self._count(channel, -1)
        message.done(message.argument)

    def _count(self, channel: Channel, sign: int) -> None:
        for i, j, own in channel.flows:
            self._lanes.add(i, j, sign * own)
            for other in (*self._leaving[i], *self._entering[j]):
                if other.under_way:
                    self._changed[other] = None
