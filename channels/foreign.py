"""Channels that read from another means of communication: `Channel.listen` as a child of the run, and its readers.

While a channel has readers in a run, its `listen` is a child of the run's services: up before the agents that read, restarted
when it fails, ended after them. What it delivers goes to the readers as what is sent to a local channel does.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

import trio

from ..models import NotReady
from ..supervision import child, current_child, trap_stop
from .cursor import Cursor
from .dead_letters import settle_undecodable
from .event import Event
from .hand import current_hand
from .intake import Arrival, Intake, bare, open_intake
from .message import Message
from .runs import Run
from .sending import bound_schema
from .subscription import ChannelSubscription, check_readable

if TYPE_CHECKING:
    from .channel import Channel

__all__ = ["ForeignSubscription"]

log = logging.getLogger("famulus.channel")


class _Listening:
    """A channel's `listen` in one run, and who reads what it delivers."""

    def __init__(self, run: Run, channel: Channel[Any]) -> None:
        options = run.options
        self.name = channel.name
        self.max_pending = options.stream_max_span
        self.intakes: set[Intake] = set()
        self._run = run
        self._channel = channel
        self.schema = bound_schema(channel.schema, run)
        self._readers: set[ForeignSubscription] = set()
        self._joining = trio.Lock()
        self._numbers = itertools.count()
        self._ending = False
        self._scope = trio.CancelScope()
        self._child_name = _free_name(run, f"channel {channel.name}")

    # -- readers ---------------------------------------------------------------------------------------------

    async def join(self, reader: ForeignSubscription) -> None:
        """Listen, if this is the first reader; return once `listen` is ready."""
        async with self._joining:
            if self._readers:
                self._readers.add(reader)
                return
            services = self._run.services
            if services is None:
                raise RuntimeError("the run has no supervisor for what channels listen to")
            if self._child_name in services.children:  # for earlier readers, which have left
                await services.children[self._child_name].terminate()
                await services.delete(self._child_name)
            self._readers.add(reader)
            shutdown = self._run.options.stream_drain_timeout
            try:
                await services.start(child(self.run, name=self._child_name, restart="transient", shutdown=shutdown))
            except BaseException:
                self._readers.discard(reader)
                raise

    def leave(self, reader: ForeignSubscription) -> None:
        """The last one to leave ends the listening."""
        if reader in self._readers:
            self._readers.discard(reader)
            if not self._readers:
                self._end()

    # -- the child -------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
        """One incarnation: `listen` until asked to stop; then give back the last acknowledgements."""
        current_hand.set(None)
        self._child = current_child()
        self._scope = trio.CancelScope()
        self._ending = False
        trap_stop(self._end)
        if not self._readers:  # the last one left during the backoff
            task_status.started()
            return
        with self._scope, bare():
            async with open_intake(self) as intake:
                await self._channel.listen(intake, task_status=task_status)
                raise RuntimeError(
                    f"{type(self._channel).__name__}.listen of channel {self.name} returned: a source that has come to its end "
                    "waits with `await trio.sleep_forever()`; one that broke raises"
                )

    def _end(self) -> None:
        self._ending = True
        self.flushed()

    def flushed(self) -> None:
        """An intake has given back what it had to."""
        if self._ending and all(intake.flushed for intake in self.intakes):
            self._scope.cancel()

    # -- what intakes need -----------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Wait, for ever, once nothing more is to be delivered: the readers have left, or finish with what they have."""
        root = self._run.root
        if self._ending or not self._readers or root is None or root.state != "running":
            await trio.sleep_forever()

    def number(self) -> int:
        """The place of the next message among those of the run: its offset."""
        return next(self._numbers)

    def acked(self) -> None:
        self._run.counters.messages_acked += 1

    async def hand_out(self, message: Message) -> int:
        """Decode a message and give it to every reader, waiting for room. Returns how many got it."""
        run = self._run
        if run.pacer.due():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        part = "key"
        try:
            key = self.schema.decode_key(message.key, message.headers)
            part = "value"
            value = self.schema.decode_value(message.value, message.headers)
        except NotReady as pending:
            await run.errands.run(pending)
            return await self.hand_out(message)
        except Exception as error:
            readers = await self._refuse(message, part, error)
        else:
            readers = await self._channel.hand_out(run, Event(key, value, message.headers, message))
        run.counters.messages_received += 1
        self._child.progressed = True
        return readers

    async def _refuse(self, message: Message, part: str, error: Exception) -> int:
        """Bad input names itself and never stops a reader (law 6)."""
        self._run.counters.decode_errors += 1
        log.error("%s@%d: undecodable %s: %s", message.tp, message.offset, part, error)
        await settle_undecodable(self._run, self._channel, message, part, error, reader=self.name)
        message.release()
        return 0


def _free_name(run: Run, name: str) -> str:
    """The name, or with a number behind it, where another channel of this run has the same one."""
    taken: set[str] = run.state("names of listening children", set)
    free = next(each for n in itertools.count(1) if (each := name if n == 1 else f"{name} {n}") not in taken)
    taken.add(free)
    return free


class ForeignSubscription(ChannelSubscription):
    """A reader of a channel that listens to something."""

    async def _begin(self) -> None:
        check_readable(self.run, self.channel, self._listening.schema)
        await self._listening.join(self)

    @property
    def _listening(self) -> _Listening:
        run, channel = self.run, self.channel._root  # which clones share
        return run.state(("listening", channel), lambda: _Listening(run, channel))

    def _detach(self, leave: bool) -> None:
        super()._detach(leave)
        if leave:
            self._listening.leave(self)

    def _abandon(self) -> None:
        for cursor in self._cursors:
            self._leave_to_others(cursor)
            cursor.close(release=())
        while (unread := self._inbox.take_nowait()) is not None:
            _give_up(unread)

    def _leave_to_others(self, cursor: Cursor) -> None:
        """What is in hand where the user acknowledges remains the user's to acknowledge."""
        event = cursor.event
        if event is not None and cursor.acks and not event.acked:
            for part in event.parts:
                _give_up(part)
            event.pass_on()
        cursor.ungather()
        while (waiting := cursor.take_nowait()) is not None:
            if isinstance(waiting, Event):
                _give_up(waiting)


def _give_up(event: Event[Any]) -> None:
    """Its reader goes. Others who have the message no longer wait for it; without others it is never acknowledged."""
    arrival = event.message.tracker
    if event.acked or not isinstance(arrival, Arrival):
        return
    if arrival.leave():
        event.abandon()
    else:
        event.acked = True
