"""What we use of the inside of aiokafka's reading, with a group and without one.

Written for aiokafka 0.14; `tests/kafka` fails where a release changes one of these. Why at all:

- Records: `getmany` makes a `ConsumerRecord` for each, takes one limit for all partitions, throws away what was read
  ahead of a paused one, and leaks a counter when it is cancelled. Taking what the client has fetched from where it
  keeps it is synchronous, so it cannot be cancelled in the middle; it makes our messages directly.
- Resets: where an offset is out of range the client goes on elsewhere, and tells nobody.
- Damaged partitions: what a broker answers for one whose log it cannot read is logged by the client, without the
  partition's name, and asked again at once, 300 times a second.
- Topics that are read without a group: the public method has the client ask for each by its name, and some brokers
  create a topic that is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from ..channels.message import TP, Message
from .bridge import Bridge
from .errors import CALL_FAILURES, DAMAGED, by_code
from .records import Unpacker

__all__ = ["ReadingInside"]

_METADATA_WAIT = 0.1  # seconds between two looks whether a partition has a leader


class ReadingInside:
    """The inside of one started consumer. Methods that are not async may be called from trio and asyncio alike."""

    def __init__(self, bridge: Bridge, consumer: AIOKafkaConsumer) -> None:
        # aiokafka has no types for its inside.
        anything: Any = consumer
        self._bridge = bridge
        self._consumer = consumer
        self._client: Any = anything._client
        self._fetcher: Any = anything._fetcher
        self._subscription: Any = anything._subscription
        self.resets: dict[TP, int] = {}
        """Partitions whose next offset, this one, is out of the log's range; the client finds another."""
        self._client.send = self._watched(self._client.send)

    def check_errors(self) -> None:
        """Raise what the client's background tasks have to report; they go on when it is taken."""
        if self._fetcher.error_future.done():
            self._fetcher.error_future.result()

    def has(self, topic: str) -> bool:
        """Whether the client's metadata have this topic."""
        return self._client.cluster.partitions_for_topic(topic) is not None

    @property
    def connected(self) -> bool:
        """Whether there is a connection to any broker."""
        return any(connection.connected() for connection in self._client._conns.values())

    def refresh_metadata(self) -> None:
        """Look for new topics and partitions soon."""
        self._client.force_metadata_update()

    # -- without a group -----------------------------------------------------------------------------------

    async def look_up(self, partitions: Collection[TP]) -> dict[TP, tuple[int, int]]:
        """Where these logs begin and end. Waits for partitions that have no leader."""
        while any(self._client.cluster.leader_for_partition(tp) in (None, -1) for tp in partitions):
            await self._client.force_metadata_update()
            await asyncio.sleep(_METADATA_WAIT)
        wanted = [TopicPartition(*tp) for tp in partitions]
        beginnings, ends = await asyncio.gather(
            self._consumer.beginning_offsets(wanted), self._consumer.end_offsets(wanted)
        )
        return {TP(*tp): (beginnings[tp], ends[tp]) for tp in wanted}

    async def assign(self, positions: dict[TP, int]) -> None:
        """Begin to read these partitions there."""
        self._subscription.assign_from_user([TopicPartition(*tp) for tp in positions])
        for tp, offset in positions.items():
            self.seek(tp, offset)

    # -- positions -----------------------------------------------------------------------------------------

    def position(self, tp: TP) -> int | None:
        """Where the client goes on; None while it finds out."""
        state = self._state(tp)
        return None if state is None or not state.has_valid_position else state.position

    def highwater(self, tp: TP) -> int:
        """As the last fetch had it; -1 before the first."""
        state = self._state(tp)
        return -1 if state is None or state.highwater is None else state.highwater

    def seek(self, tp: TP, offset: int) -> None:
        self._fetcher.seek_to(tp, offset)

    def _state(self, tp: TP) -> Any:
        subscription = self._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        return None if assignment is None else assignment.state_value(tp)

    # -- records -------------------------------------------------------------------------------------------

    def news(self) -> asyncio.Future[None]:
        """A future that is done when records have arrived, or when `check_errors` has something."""
        future: asyncio.Future[None] = self._fetcher._create_fetch_waiter()
        return future

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Have asyncio call something."""
        timer: asyncio.TimerHandle = self._fetcher._loop.call_later(seconds, callback)
        return timer

    @property
    def has_some(self) -> bool:
        """Whether `take` may have something, of any partition."""
        return bool(self._fetcher._records)

    def take(self, tp: TP, most: int, generation: int) -> list[Message]:
        """Up to `most` messages of what has been fetched of a partition; moves its position, over markers too.

        Raises:
            KafkaError: what kept the partition from being read; its position is unmoved.
        """
        fetcher = self._fetcher
        result: Any = fetcher._records.get(tp)
        if result is None:
            return []
        if not issubclass(type(result), FetchResult):
            self._drop(tp)
            if isinstance(result._error, kafka_errors.RecordTooLargeError):
                self.seek(tp, self._state(tp).position - 1)  # the client has passed it over
            result.check_raise()
        if not result.check_assignment(tp):  # fetched before a rebalance or a seek
            self._drop(tp)
            return []
        records: Any = result._partition_records
        unpacker: Unpacker | None = vars(records).get("unpacker")
        if unpacker is None:
            unpacker = records.unpacker = Unpacker(records, tp, generation)
        try:
            messages = unpacker.take(most)
        except BaseException as error:
            self._drop(tp)  # else the next call would go on behind what was lost with the error
            if isinstance(error, Exception) and not isinstance(error, CALL_FAILURES):
                # Its checksum is right, and its contents are not.
                raise kafka_errors.CorruptRecordException(repr(error)) from error
            raise
        result._update_position()
        if unpacker.ended:
            records.unpacker = None  # they know each other, and the fetched bytes would wait for the garbage collector
            self._drop(tp)
        return messages

    def _watched(self, send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Requests of any kind, with what keeps a partition from being read put where `take` finds it."""

        async def send_watched(node: int, request: Any, **more: Any) -> Any:
            response = await send(node, request, **more)
            if isinstance(request, FetchRequest):
                for topic, partitions in response.topics:
                    for partition, code, *_ in partitions:
                        if code == kafka_errors.OffsetOutOfRangeError.errno:
                            self._note_reset(TP(topic, partition), request)
                        elif code != 0:
                            self._note_damage(TP(topic, partition), by_code(code))
            return response

        return send_watched

    def _note_reset(self, tp: TP, request: FetchRequest) -> None:
        asked = {(topic, partition): offset for topic, each in request.topics for partition, offset, *_ in each}
        if self.position(tp) == asked.get(tp):  # else it is an answer to what does not matter any more
            self.resets[tp] = asked[tp]

    def _note_damage(self, tp: TP, error: type[Exception] | None) -> None:
        state, fetcher = self._state(tp), self._fetcher
        if error is None or not issubclass(error, DAMAGED) or state is None or tp in fetcher._records:
            return
        fetcher._set_error(TopicPartition(*tp), error())
        for waiter in list(fetcher._fetch_waiters):
            fetcher._notify(waiter)

    def _drop(self, tp: TP) -> None:
        """Make room for the next chunk. What is done with this one is more urgent than the request for that."""
        self._fetcher._records.pop(tp, None)
        self._bridge.put_off(self._ask_for_more)

    def _ask_for_more(self) -> None:
        self._fetcher._notify(self._fetcher._wait_consume_future)
