"""What an MQTT link receives: handed to its subscriptions, acknowledged in the order of receipt. Without I/O."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable

from adapters._mqtt_packets import PUBACK, PUBCOMP, PUBREC, Publish, Writer

_CACHED_TOPICS = 10_000
PATIENCE_S = 45.0
"""How long what no route takes is held for one that left: longer than a source that failed stays away, at most 30 s."""
MOST_BYTES = 128 * 1024**2
"""What one link holds, received and not settled: then nothing more is read; of QoS 0, then it is dropped."""


class _Received:
    """A PUBLISH with QoS 1 or 2 and who has not settled it yet. `None` among them stands for a taker to come."""

    __slots__ = ("publish", "takers")

    def __init__(self, publish: Publish) -> None:
        self.publish = publish
        self.takers: list[Subscription | None] = []


class Arrival:
    """A received message, as one subscription gets it."""

    __slots__ = ("_arrivals", "_received", "_subscription", "publish")

    def __init__(
        self, arrivals: Arrivals, subscription: Subscription, publish: Publish, received: _Received | None
    ) -> None:
        self._arrivals = arrivals
        self._subscription = subscription
        self._received = received
        self.publish = publish

    def settle(self) -> None:
        """The subscription is done with it; once all are, it is acknowledged in its turn. Call it once.

        After the link was lost this does nothing: the broker sends the message again.
        """
        if self._received is None:
            self._subscription.unconfirmed -= 1
            self._arrivals.unconfirmed_bytes -= self.publish.size
        elif self._subscription in self._received.takers:
            self._received.takers.remove(self._subscription)
            self._arrivals.acknowledge()


class Subscription:
    """A topic filter and who takes what matches. `identifier` is the same for the same filter in every process."""

    def __init__(self, topic_filter: str, take: Callable[[Arrival], None]) -> None:
        self.topic_filter = topic_filter
        self.take = take
        self.unconfirmed = 0
        """Messages with QoS 0 that were handed over and are not settled."""
        self.identifier = zlib.crc32(topic_filter.encode()) % 268_435_455 + 1
        self.shared = topic_filter.startswith("$share/")
        self.levels = (topic_filter.split("/", 2)[2] if self.shared else topic_filter).split("/")

    def matches(self, topic: str) -> bool:
        """Whether a message to this topic is for this subscription. MQTT 5 section 4.7."""
        return matches(self.levels, topic)


def matches(filter_levels: list[str], topic: str) -> bool:
    """Whether a topic is matched by a filter, given as its levels. MQTT 5 section 4.7."""
    if topic.startswith("$") and filter_levels[0] in {"+", "#"}:
        return False
    levels = topic.split("/")
    for index, wanted in enumerate(filter_levels):
        if wanted == "#":
            return True
        if index >= len(levels) or wanted not in ("+", levels[index]):
            return False
    return len(levels) == len(filter_levels)


class Arrivals:
    """The messages of one link that are not acknowledged yet.

    A message that no subscription takes is held while `waits_for_takers`, because its source may still be starting:
    a broker that kept a session sends what it queued before anybody can subscribe. Likewise what a subscription left
    behind unsettled.

    window: how many messages may be unacknowledged, and of QoS 0 in the hands of one subscription.
    dropped: called with a constant word and the topic for each message that is let go.
    """

    def __init__(
        self, writer: Writer, write: Callable[[bytes], None], window: int, dropped: Callable[[str, str], None]
    ) -> None:
        self._writer = writer
        self._write = write
        self._window = window
        self._dropped = dropped
        self._subscriptions: list[Subscription] = []
        self._takers: dict[str, tuple[Subscription, ...]] = {}
        self._unacknowledged: deque[_Received] = deque()
        self._ids: set[int] = set()
        self._awaiting_release: set[int] = set()
        self.waits_for_takers = True
        self.closed = False
        self.unconfirmed_bytes = 0
        """Of messages with QoS 0 that were handed over and are not settled."""
        self._turn = 0
        self.held_bytes = 0
        """Of messages with QoS 1 and 2 that are not acknowledged."""

    @property
    def full(self) -> bool:
        """Whether more is unacknowledged than was agreed, or than is good: then nothing more should be read."""
        return len(self._unacknowledged) > self._window or self.heavy

    @property
    def heavy(self) -> bool:
        """Whether more is held than is good, whatever was agreed: then nothing more may be read."""
        return self.held_bytes > MOST_BYTES

    @property
    def topic_filters(self) -> set[str]:
        """What is subscribed to now."""
        return {subscription.topic_filter for subscription in self._subscriptions}

    def join(self, subscription: Subscription) -> None:
        """Hands what matches to this subscription from now on, and what was held for one like it."""
        self._subscriptions.append(subscription)
        self._takers.clear()
        for received in self._unacknowledged:
            if None in received.takers and subscription.matches(received.publish.topic):
                received.takers.remove(None)
                received.takers.append(subscription)
                subscription.take(Arrival(self, subscription, received.publish, received))

    def leave(self, subscription: Subscription) -> None:
        """The opposite of `join`. What the subscription has not settled is held for one that follows it."""
        self._subscriptions.remove(subscription)
        self._takers.clear()
        for received in self._unacknowledged:
            if subscription in received.takers:
                received.takers.remove(subscription)
                received.takers.append(None)

    def take(self, publish: Publish) -> None:
        """A PUBLISH came in."""
        takers = self._takers_of(publish)
        if len(takers) > 1:
            takers = self._one_of_each_group(takers)
        if publish.qos == 0:
            self._take_unconfirmed(publish, takers)
            return
        if publish.packet_id in self._awaiting_release:
            self._write(self._writer.ack(PUBREC, publish.packet_id))
            return
        if publish.packet_id in self._ids:
            return  # a broker that repeats without a new connection: its first copy is being worked on
        received = _Received(publish)
        self._ids.add(publish.packet_id)
        self._unacknowledged.append(received)
        self.held_bytes += publish.size
        if takers:
            received.takers += takers
            for subscription in takers:
                subscription.take(Arrival(self, subscription, publish, received))
        elif self.waits_for_takers:
            received.takers.append(None)
        else:
            self._dropped("unclaimed", publish.topic)
            self.acknowledge()

    def release(self, packet_id: int) -> None:
        """A PUBREL came in. An id of an earlier link is answered as well, or the broker would ask for ever."""
        self._awaiting_release.discard(packet_id)
        self._write(self._writer.ack(PUBCOMP, packet_id))

    def acknowledge(self) -> None:
        """Acknowledges what nobody has to settle any more, oldest first, up to the first that somebody has.

        Source: [MQTT-4.6.0-2], [MQTT-4.6.0-3].
        """
        waiting = self._unacknowledged
        while waiting and not waiting[0].takers and not self.closed:
            publish = waiting.popleft().publish
            self.held_bytes -= publish.size
            self._ids.discard(publish.packet_id)
            if publish.qos == 2:
                self._awaiting_release.add(publish.packet_id)
            self._write(self._writer.ack(PUBACK if publish.qos == 1 else PUBREC, publish.packet_id))

    def stop_waiting(self) -> None:
        """Nobody will take what is held: lets it go, and from now on what nobody takes at once."""
        self.waits_for_takers = False
        for received in self._unacknowledged:
            if None in received.takers:
                received.takers = [taker for taker in received.takers if taker is not None]
                self._dropped("unclaimed", received.publish.topic)
        self.acknowledge()

    def _take_unconfirmed(self, publish: Publish, takers: tuple[Subscription, ...]) -> None:
        for subscription in takers:
            if subscription.unconfirmed >= self._window or self.unconfirmed_bytes > MOST_BYTES:
                self._dropped("full", publish.topic)
            else:
                subscription.unconfirmed += 1
                self.unconfirmed_bytes += publish.size
                subscription.take(Arrival(self, subscription, publish, None))

    def _one_of_each_group(self, takers: tuple[Subscription, ...]) -> tuple[Subscription, ...]:
        """These, but in turn one of those that share a subscription: to the broker they are one member of the group."""
        groups: dict[object, list[Subscription]] = {}
        for taker in takers:
            groups.setdefault(taker.topic_filter if taker.shared else taker, []).append(taker)
        self._turn += 1
        return tuple(group[self._turn % len(group)] for group in groups.values())

    def _takers_of(self, publish: Publish) -> tuple[Subscription, ...]:
        identifiers = publish.properties.get("subscription_identifier")
        if identifiers:
            named = tuple(one for one in self._subscriptions if one.identifier in identifiers)
            if named:
                return named
        takers = self._takers.get(publish.topic)
        if takers is None:
            takers = tuple(one for one in self._subscriptions if one.matches(publish.topic))
            if len(self._takers) >= _CACHED_TOPICS:
                self._takers.clear()
            self._takers[publish.topic] = takers
        return takers
