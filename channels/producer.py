"""The producer of a run: a bounded buffer before the transport, partitioning, batches, receipts.

Callers only ever touch the buffer; one task (`run`) writes. So a cancelled sender leaves nothing half done, and the
broker sees batches. Order within a partition is the order of the sends. A batch that fails for a passing reason
stays at the head of its queue, which waits a little; the other queues do not.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from math import inf

import trio

from ..supervision import trap_stop
from .callbacks import DeliveryCallbacks
from .counters import Counters
from .errors import AppNotRunning, BufferFull, MessageTooLarge, ProduceError, TransportError
from .future import FutureMessage
from .message import TP
from .options import MessagingOptions
from .routes import NOWHERE, Queue, Route, size_of
from .transport import ProduceResult, Transport

__all__ = ["Producer"]

log = logging.getLogger("famulus.producer")

_MANY = 100  # messages of one write, from which on there will be more
_TURNS = 20  # of the other tasks


class Producer:
    """Buffers messages and delivers them in batches. One per run.

    Attributes:
        callbacks: of what was settled.
        declare: by topic, what to do before the first message is written to it (create it, where that is ours to do).
    """

    def __init__(self, transport: Transport, options: MessagingOptions, counters: Counters) -> None:
        self._transport = transport
        self._options = options
        self._counters = counters
        self._queues: dict[TP, Queue] = {}
        self._unrouted: dict[str, Queue] = {}
        self._routes: dict[str, Route] = {}
        self._most = options.producer_buffer_maxsize
        self._most_bytes = options.producer_buffer_bytes
        self._buffered = 0
        self._buffered_bytes = 0
        self._waiting_for_room = trio.lowlevel.ParkingLot()
        self._work = trio.Event()
        self._idle = True  # whether `_work` is still to be set
        self._hurry = trio.Event()
        self.declare: dict[str, Callable[[], Awaitable[None]]] = {}
        self._stopping = False
        self._closed = False
        self.callbacks = DeliveryCallbacks(on_room=self._unpark)
        self._trouble = False
        self._awaited = False  # whether somebody waits for an answer to what was written last
        self._last_error: Exception | None = None

    # -- the buffer ----------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Messages that have no receipt yet."""
        return self._buffered

    @property
    def has_room(self) -> bool:
        """Whether the buffer takes another message now; after the end it never does.

        A message may exceed the bytes that are left. Messages whose callback is still to be called count, so that slow
        callbacks slow their senders.
        """
        return self._buffered + len(self.callbacks.waiting) < self._most and self._buffered_bytes < self._most_bytes

    @property
    def room(self) -> tuple[int, int]:
        """Messages and bytes that the buffer takes now; a message may exceed the bytes."""
        if self._closed:
            return 0, 0
        return self._most - self._buffered - len(self.callbacks.waiting), self._most_bytes - self._buffered_bytes

    async def wait_room(self) -> None:
        """Wait until the buffer takes another message. A checkpoint only when it has to wait."""
        while not (self.has_room or self._closed or self.callbacks.calling()):
            self._hurry.set()
            self._wake()
            await self._waiting_for_room.park()
        if self._waiting_for_room and self.room[0] > 1:  # more than this one will take
            self._waiting_for_room.unpark()

    async def wait_caught_up(self) -> None:
        """The same for who has sent beyond the bounds, and shall not run ahead. It takes no room: the next one gets it."""
        await self.wait_room()
        if self._waiting_for_room and self.has_room:
            self._waiting_for_room.unpark()

    def enqueue(self, future: FutureMessage, *, partition: int | None, beyond_bounds: bool = False) -> None:
        """Take a message into the buffer.

        Args:
            partition: where the caller wants it; None leaves it to the key.
            beyond_bounds: take it although the buffer is full; for what is bounded elsewhere (dead letters).

        Raises:
            BufferFull: no room.
            AppNotRunning: the run has ended.
            ValueError: a negative partition.
        """
        if self._closed:
            raise AppNotRunning(f"the app has stopped: a message to {future.topic} cannot be sent any more")
        if not (self.has_room or beyond_bounds or self.callbacks.calling()):
            raise BufferFull(
                f"the producer's buffer holds {self._buffered} messages of {self._buffered_bytes} bytes: wait with "
                "`await send(...)`, or raise producer_buffer_maxsize / producer_buffer_bytes"
            )
        self.add(future, partition)

    def add(self, future: FutureMessage, partition: int | None) -> None:
        """Like `enqueue`, for who has seen in the same step that the run lives and there is room."""
        if partition is not None:
            if partition < 0:
                raise ValueError(f"partition={partition!r}: expected a whole number of at least 0")
            future.partition = partition
        if self._trouble:
            future.deadline = trio.current_time() + self._options.producer_delivery_timeout
        route = self._routes.get(future.topic)
        if route is None:
            self._await_route(future)
        else:
            route.add(future)
        size = future.size = size_of(future)
        self._buffered += 1
        self._buffered_bytes += size
        self._counters.messages_sent += 1
        if self._idle:
            self._wake()

    def add_all(self, topic: str, futures: Sequence[FutureMessage]) -> None:
        """`add` for several messages to one topic, each to the partition of its key; their `size` is set."""
        route = self._routes.get(topic)
        if route is None or self._trouble:
            for future in futures:
                self.add(future, None)
            return
        route.add_all(futures)
        self._buffered += len(futures)
        self._buffered_bytes += sum([future.size for future in futures])
        self._counters.messages_sent += len(futures)
        if self._idle:
            self._wake()

    def knows(self, topic: str) -> bool:
        """Whether the number of the topic's partitions is known, so that a message gets its partition at once."""
        return topic in self._routes

    def hurry(self) -> None:
        """Write what is buffered without waiting for more."""
        self._hurry.set()

    def _await_route(self, future: FutureMessage) -> None:
        """Keep it until the number of its topic's partitions is known."""
        queue = self._unrouted.get(future.topic)
        if queue is None:
            queue = self._unrouted[future.topic] = Queue(TP(future.topic, NOWHERE))
        queue.messages.append(future)

    def forget(self, topic: str) -> None:
        """Keep nothing about a topic that is not written to any more; where messages wait for it, it is kept."""
        tps = [tp for tp in self._queues if tp.topic == topic]
        if not any(self._queues[tp].messages for tp in tps):
            self._routes.pop(topic, None)
            for tp in tps:
                del self._queues[tp]

    def _wake(self) -> None:
        """Have the writing task look for work."""
        self._idle = False
        self._work.set()

    def _all_queues(self) -> Iterable[Queue]:
        return [*self._queues.values(), *self._unrouted.values()]

    async def flush(self) -> None:
        """Wait until all that is buffered now is delivered or has failed. Later sends are not waited for."""
        lasts = [queue.messages[-1] for queue in self._all_queues() if queue.messages]
        self._hurry.set()
        for future in lasts:
            await future.wait_settled()

    # -- writing -------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver what is buffered; asked to stop, deliver the rest and end. The run's one writing task."""
        trap_stop(self._ask_stop)
        task_status.started()
        try:
            while not self._stopping or self._buffered:
                await self._wait_for_work()
                self._work = trio.Event()
                self._idle = True
                self._hurry = trio.Event()
                await self._learn_partitions()
                before = self._counters.messages_delivered
                await self._write()
                self._expire()
                if self._counters.messages_delivered - before >= _MANY and not self._awaited:
                    await self._gather()
        finally:
            if self._stopping:
                self._give_up()

    async def _wait_for_work(self) -> None:
        """Until something can be written: something new, or something put off whose time has come."""
        times = [queue.not_before for queue in self._all_queues() if queue.messages]
        wake_at = min(times, default=inf)
        if wake_at == inf:  # as always while there is no trouble: a scope would cost more than the wait
            await self._work.wait()
        elif wake_at <= trio.current_time():
            await trio.lowlevel.checkpoint()
        else:
            with trio.CancelScope(deadline=wake_at):
                await self._work.wait()
        if self._options.producer_linger and not self._stopping:
            with trio.move_on_after(self._options.producer_linger):
                await self._hurry.wait()

    async def _gather(self) -> None:
        """Where much is being sent, let the others send some more before the next write: larger batches cost less a message.

        It takes turns and no time, so it is over at once where nobody else has anything to do.
        """
        for _ in range(_TURNS):
            if self._stopping or self._hurry.is_set() or not self.has_room:
                break
            await trio.lowlevel.checkpoint()

    def _ask_stop(self) -> None:
        self._stopping = True
        self._hurry.set()
        self._wake()

    async def _learn_partitions(self) -> None:
        """Route what was sent before the number of its topic's partitions was known."""
        for topic, queue in list(self._unrouted.items()):
            if queue.not_before > trio.current_time():
                continue
            try:
                if topic in self.declare:
                    await self.declare[topic]()
                count = await self._transport.partition_count(topic)
            except TransportError as error:
                if error.retriable:
                    self._put_off(queue, error)
                    continue
                self._refuse_unrouted(topic, queue, error)
            else:
                route = self._routes[topic] = Route(topic, count, self._queues)
                del self._unrouted[topic]
                for future in queue.messages:
                    route.add(future)
                self._recovered()

    def _refuse_unrouted(self, topic: str, queue: Queue, error: TransportError) -> None:
        """There is no such topic, or not for us. What must not be given up waits until somebody has mended that."""
        kept = [future for future in queue.messages if future.persistent]
        log.log(
            _level(queue.messages),
            "%d messages to %s cannot be delivered, %d are tried again: %s",
            len(queue.messages),
            topic,
            len(kept),
            error,
        )
        for future in queue.messages:
            if not future.persistent:
                self._settle_failed(future, error)
        queue.messages = deque(kept)
        if kept:
            self._last_error = error
            queue.put_off(self._options)
        else:
            del self._unrouted[topic]

    def _next_batches(self) -> dict[TP, list[FutureMessage]]:
        limit = self._options.producer_max_batch_bytes
        now = trio.current_time()
        batches: dict[TP, list[FutureMessage]] = {}
        for tp, queue in self._queues.items():
            if not queue.messages or queue.not_before > now:
                continue
            batch: list[FutureMessage] = []
            size = 0
            most = 1 if queue.apart else queue.attempted
            for future in queue.messages:
                size += future.size
                if (size > limit and batch) or len(batch) == most > 0:
                    break
                batch.append(future)
            queue.attempted = len(batch)
            batches[tp] = batch
        return batches

    async def _write(self) -> None:
        """Write the head of each queue whose time it is.

        What is being written stays in its queue until its outcome is known: a cancelled or crashed write is repeated.
        """
        batches = self._next_batches()
        if not batches:
            return
        self._awaited = any(batch[0].awaited for batch in batches.values())
        topics = {tp.topic for tp in batches}
        for topic in topics:
            if topic in self._routes:
                self._routes[topic].partitioner.new_batch()
        try:
            outcome = await self._transport.produce(batches)
        except BaseException:
            for tp in batches:
                self._queues[tp].in_doubt = True
            raise
        for tp, batch in batches.items():
            result = outcome[tp]
            if isinstance(result, ProduceResult):
                self._settle_batch(tp, batch, result)
            elif isinstance(result, TransportError) and result.retriable:
                self._queues[tp].in_doubt |= result.in_doubt
                self._put_off(self._queues[tp], result)
            else:
                self._fail_batch(tp, batch, result)
                self._routes.pop(tp.topic, None)  # it may be another topic of that name by now
        if not self._trouble:
            await self._look_again(topics)

    async def _look_again(self, topics: Iterable[str]) -> None:
        """Partitions that were added since are for the messages that come now."""
        now, age = trio.current_time(), self._options.topic_metadata_age
        for topic in topics:
            route = self._routes.get(topic)
            if route is None or now - route.learned < age:
                continue
            route.learned = now
            try:
                count = await self._transport.partition_count(topic)
            except TransportError as error:
                log.debug("looking at topic %s: %s", topic, error)
            else:
                if count != route.count:
                    log.info("topic %s has %d partitions now, it had %d", topic, count, route.count)
                    self._routes[topic] = Route(topic, count, self._queues)

    def _settle_batch(self, tp: TP, batch: list[FutureMessage], result: ProduceResult) -> None:
        queue = self._queues[tp]
        for _ in batch:
            queue.messages.popleft()
        queue.attempted = 0
        queue.apart = max(0, queue.apart - len(batch))
        queue.fine()
        self._counters.messages_delivered += len(batch)
        size = 0
        for index, future in enumerate(batch):
            size += future.size
            future.settle(result, index)
            if future.callback is not None:
                self.callbacks.add(future)
        self._buffered_bytes -= size
        self._release_room(len(batch))
        self._recovered()

    def _fail_batch(self, tp: TP, batch: list[FutureMessage], error: Exception) -> None:
        """The broker will not have it. One of several may be the cause: then they are written one by one.

        What must not be given up goes to the end of its queue, so that nothing waits behind it for ever.
        """
        queue = self._queues[tp]
        queue.attempted = 0
        queue.in_doubt = False
        if len(batch) > 1 and isinstance(error, ProduceError):
            queue.apart = len(batch)
            return
        for _ in batch:
            queue.messages.popleft()
        queue.apart = max(0, queue.apart - len(batch))
        kept = [future for future in batch if future.persistent]
        queue.messages.extend(kept)
        text = "%d messages to %s were not delivered, %d are tried again: %s"
        log.log(_level(batch), text, len(batch), tp, len(kept), error)
        for future in batch:
            if not future.persistent:
                self._settle_failed(future, error)
        if kept:
            self._last_error = error
            if not (isinstance(error, MessageTooLarge) and self._shrink(kept)):
                queue.put_off(self._options)

    def _shrink(self, futures: Sequence[FutureMessage]) -> bool:
        """Make these smaller; whether each could be."""
        shrunk = True
        for future in futures:
            if future.shrink():
                size = size_of(future)
                self._buffered_bytes += size - future.size
                future.size = size
            else:
                shrunk = False
        return shrunk

    def _settle_failed(self, future: FutureMessage, error: Exception, *, run_ends: bool = False) -> None:
        self._counters.deliveries_failed += 1
        self._buffered_bytes -= future.size
        future.fail(error, run_ends=run_ends)
        if future.callback is not None:
            self.callbacks.add(future)
        self._release_room(1)

    def _release_room(self, count: int) -> None:
        self._buffered -= count
        self._unpark(count)

    def _unpark(self, count: int) -> None:
        if self._waiting_for_room and self.has_room:
            self._waiting_for_room.unpark(count=count)

    def _put_off(self, queue: Queue, error: TransportError) -> None:
        """Try this queue again later, and say once what the messages wait for."""
        queue.put_off(self._options)
        if not self._trouble:
            self._trouble = True
            reason = f"{type(error).__name__}: {error}"
            log.warning("sending waits for the broker, %d messages so far: %s", self._buffered, reason)
        self._last_error = error

    def _recovered(self) -> None:
        if self._trouble and not any(queue.delay for queue in self._all_queues()):
            self._trouble = False
            log.info("sending goes on")

    def _expire(self) -> None:
        """Fail what has waited longer than its delivery timeout; only heads, so order is kept. Dead letters wait on."""
        delayed = [queue for queue in self._all_queues() if queue.delay]
        if not delayed:
            return
        now = trio.current_time()
        if expired := sum([self._expire_in(queue, now) for queue in delayed]):
            log.error("%d messages were not delivered in time and given up: %s", expired, self._last_error)

    def _expire_in(self, queue: Queue, now: float) -> int:
        waited = self._options.producer_delivery_timeout
        kept: list[FutureMessage] = []
        expired = attempted = 0
        while queue.messages:
            future = queue.messages[0]
            if not (future.persistent or 0 < future.deadline <= now):
                break
            queue.messages.popleft()
            tried = queue.attempted > 0
            queue.attempted -= tried
            if future.persistent:
                kept.append(future)
                attempted += tried
                continue
            doubt = queue.in_doubt and tried
            outcome = "confirmed within {:g} s, but may be written" if doubt else "delivered within {:g} s"
            error = ProduceError(f"{future.topic}: not {outcome.format(waited)}; last: {self._last_error}")
            error.in_doubt = doubt
            self._settle_failed(future, error)
            expired += 1
        queue.messages.extendleft(reversed(kept))
        queue.attempted += attempted
        queue.apart = 0 if not queue.messages else min(queue.apart, len(queue.messages))
        if not queue.attempted:
            queue.in_doubt = False
        return expired

    # -- the end -------------------------------------------------------------------------------------------

    def _give_up(self) -> None:
        """Whoever still waits for a delivery is told that it was not confirmed."""
        if self._buffered:
            log.error("%d messages were not delivered before the app stopped", self._buffered)
        error = ProduceError("the app stopped before the delivery was confirmed")
        doubtful = ProduceError("the app stopped before the delivery was confirmed; it may be written all the same")
        doubtful.in_doubt = True
        for queue in self._all_queues():
            while queue.messages:
                tried = queue.attempted > 0
                queue.attempted -= tried
                self._settle_failed(queue.messages.popleft(), doubtful if tried else error, run_ends=True)

    def close(self) -> None:
        """The run has ended. Senders that wait for room are refused; callbacks that are plain functions are called."""
        self._closed = True
        self._most = 0
        self._give_up()
        self._waiting_for_room.unpark_all()
        self.callbacks.close()

    def __repr__(self) -> str:
        return f"<Producer buffered={self._buffered} of {self._options.producer_buffer_maxsize}>"


def _level(messages: Iterable[FutureMessage]) -> int:
    """How loudly to say that these were not delivered."""
    return logging.DEBUG if all(message.expendable for message in messages) else logging.ERROR
