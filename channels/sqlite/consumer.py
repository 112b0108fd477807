"""A member of a consumer group: its own task for rebalances, and fetching and commits for others."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import inf
from re import Pattern
from typing import Final

import trio

from ..errors import BrokerUnavailable, CommitRefused, MemberReplaced, TransportError
from ..message import TP
from ..transport import Assignment, Batch, Consumer, ConsumerOptions, RebalanceListener
from . import groups
from .engine import Engine
from .groups import Subscription, View
from .jobs import Transaction
from .log import Read, Wanted, partition_count, read
from .owned import Owned
from .peers import CHANGE
from .watching import Watch

__all__ = ["SqliteConsumer"]

log = logging.getLogger("famulus.sqlite")

_PACE: Final = 1.0  # seconds between two looks at the other members; a third of the session if that is shorter
_PAUSE: Final = 0.5  # seconds before something is tried again that the broker could not do


class SqliteConsumer(Consumer):
    """Made by `SqliteTransport.open_consumer`, which runs `run_membership` beside its body.

    All that concerns the group happens in that task, one thing after the other: so callbacks never overlap.

    Attributes:
        member: its number in the group; -1 before it subscribes.
    """

    def __init__(
        self,
        engine: Engine,
        options: ConsumerOptions,
        listener: RebalanceListener,
        *,
        client_id: str,
        commit_timeout: float,
        shutdown_timeout: float,
    ) -> None:
        self.options = options
        self.closed = trio.Event()
        self.member = -1
        self._engine = engine
        self._listener = listener
        self._client_id = client_id
        self._commit_timeout = commit_timeout
        self._shutdown_timeout = shutdown_timeout
        self._subscription: Subscription | None = None
        self._wish = 0
        self._is_wished = False
        self._granted = 0
        self._owned = Owned(self._reset_offset, options.on_reset)
        self._serving = False
        self._waits = False
        self._woken = False
        self._heard = 0  # how often there was news
        self._news = trio.Event()
        self._told = trio.Event()
        self._settled = trio.lowlevel.ParkingLot()
        self._entering = trio.Lock()
        self._closing = False
        self._leaving = False
        self._task: trio.lowlevel.Task | None = None
        self._pace = min(_PACE, options.session_timeout / 3)
        engine.signs.come_within(options.session_timeout)
        self._watch = Watch(engine, options.group, self._pace)

    # -- membership: the task of its own -------------------------------------------------------------------

    async def run_membership(self) -> None:
        """Take part in rebalances until `ask_close`, or until a callback fails; then leave the group."""
        self._task = trio.lowlevel.current_task()
        self._engine.on_change[self._tell] = None
        self._engine.on_news[self._tell_news] = None
        try:
            try:
                while not self._closing:
                    try:
                        await self._step()
                    except BrokerUnavailable as error:
                        log.debug("group %s: %s", self.options.group, error)
                        with trio.move_on_after(_PAUSE):
                            await self._told.wait()
            finally:
                await self._give_up(lost=False)
        finally:
            del self._engine.on_change[self._tell]
            del self._engine.on_news[self._tell_news]
            await self._leave()
            self.closed.set()

    async def _leave(self) -> None:
        """Leave the group; where that cannot be written, the others will notice that nobody is there."""
        self._leaving = True
        if self._subscription is None:
            return
        leave = partial(groups.leave, group=self.options.group, peer=self._engine.peers.name)
        with trio.CancelScope(shield=True):
            try:
                await self._change(leave, within=self._shutdown_timeout)
            except TransportError as error:
                log.warning("leaving group %s: %s", self.options.group, error)

    def release_waiters(self) -> None:
        """End the waits of other tasks, once the consumer is closed. (The body's own were cancelled.)"""
        self._news.set()
        self._settled.unpark_all()

    def ask_close(self) -> None:
        """End `run_membership`, once the callback under way has returned."""
        self._closing = True
        self._told.set()

    def _tell(self) -> None:
        self._told.set()

    def _tell_news(self) -> None:
        self._heard += 1
        self._news.set()

    async def _step(self) -> None:
        told = self._told = trio.Event()
        if self.member < 0:
            await told.wait()
            return
        now = await self._view()
        if now.gone is not None:
            await self._after_loss(now)
        elif now.preparing and not now.joined:
            await self._give_up(lost=False)
            await self._change(partial(groups.let_go, member=self.member))
        elif not now.preparing and now.generation > self._owned.assignment.generation:
            await self._take(now)
        else:
            await self._wait_told(told, now)

    async def _wait_told(self, told: trio.Event, now: View) -> None:
        """Wait for a change of the group, watching the others meanwhile; who is alone in it just waits."""
        while not told.is_set():
            await self._watch.look(now)
            with trio.move_on_after(self._pace if now.peers or now.preparing else inf):
                await told.wait()

    async def _view(self) -> View:
        return await self._engine.read(partial(groups.view, group=self.options.group, member=self.member))

    async def _change(self, do: Callable[[sqlite3.Connection], object], *, within: float | None = None) -> None:
        """Change the group, and tell its members."""

        def job(tx: Transaction) -> None:
            do(tx.db)
            tx.pokes.add(CHANGE)

        await self._engine.write(job, within=within)

    async def _give_up(self, *, lost: bool) -> None:
        """Stop serving, tell the listener, forget the partitions."""
        self._serving = False
        owned = self._owned.assignment.partitions
        self.wake()
        if not owned:
            return
        if lost:
            self._owned.give_up()
        try:
            await self._listener.on_revoked(owned, lost=lost)
        finally:
            self._owned.give_up()

    async def _take(self, now: View) -> None:
        """Begin a generation: positions first, so that the listener can see and change them."""
        found = await self._engine.read(partial(groups.starts, group=self.options.group, partitions=now.owned))
        self._owned.take(now.generation, found)
        await self._listener.on_assigned(self._owned.assignment)
        self._serving = True
        self._granted = now.granted
        self._settled.unpark_all()
        self.wake()

    async def _after_loss(self, now: View) -> None:
        """Tell the listener, join anew."""
        await self._give_up(lost=True)
        who = f"group {self.options.group!r}, member {self.member}: {now.gone}"
        if now.replaced:
            raise MemberReplaced(
                f"group {self.options.group!r}: the place of static member {self.options.instance_id!r} was given to another "
                "process of that id; joining again would let the two evict each other for ever: see that only one process "
                "runs with this id, then start it again"
            )
        log.warning("%s", who)
        async with self._entering:  # a wish that comes meanwhile is for the member that this makes
            if self._subscription is not None and not self._closing:
                await self._enter(self._subscription)

    async def _enter(self, subscription: Subscription) -> None:
        """Join the group as a new member."""
        await self._check_open()
        wish = self._wish

        def job(tx: Transaction) -> int:
            tx.pokes.add(CHANGE)
            return groups.enter(
                tx.db,
                subscription,
                wish,
                peer=self._engine.peers.name,
                client=self._client_id,
                options=self.options,
            )

        with trio.CancelScope(shield=True):  # or it would be a member that knows nothing of it
            self.member = await self._engine.write(job, within=self._commit_timeout)
        self._is_wished = wish == self._wish
        self._tell()

    def _reset_offset(self, first: int, end: int) -> int:
        return first if self.options.offset_reset == "earliest" else end

    # -- subscription --------------------------------------------------------------------------------------

    async def subscribe(self, topics: Collection[str], *, pattern: Pattern[str] | None = None) -> None:
        if trio.lowlevel.current_task() is self._task:
            raise RuntimeError("subscribe() in a rebalance callback would wait for itself: use another task")
        await trio.lowlevel.checkpoint()
        wanted = Subscription(frozenset(topics), pattern)
        while True:
            await self._check_open()
            try:
                await self._engine.read(lambda db: [partition_count(db, name) for name in sorted(wanted.topics)])
                await self._wish_for(wanted)
                break
            except BrokerUnavailable as error:
                log.debug("subscribing in group %s: %s", self.options.group, error)
                await trio.sleep(_PAUSE)
        while self._granted != self._wish:
            await self._check_open()
            await self._settled.park()

    async def _wish_for(self, wanted: Subscription) -> None:
        """Let the group know what is wanted, if it does not yet."""
        if wanted != self._subscription:
            self._subscription = wanted
            self._wish += 1
            self._is_wished = False
        async with self._entering:
            if self._is_wished:
                return
            if self.member < 0:
                await self._enter(wanted)
            else:
                change = partial(groups.resubscribe, member=self.member, subscription=wanted, wish=self._wish)
                await self._change(change, within=self._commit_timeout)
                self._is_wished = True

    @property
    def assignment(self) -> Assignment:
        return self._owned.assignment

    # -- reading -------------------------------------------------------------------------------------------

    async def fetch(self, room: Mapping[TP, int]) -> list[Batch]:
        await trio.lowlevel.checkpoint()
        while True:
            await self._check_open()
            self._news = trio.Event()
            wanted = self._wanted(room)
            if wanted:
                generation, heard = self._owned.assignment.generation, self._heard
                try:
                    found = await self._engine.read(partial(read, wanted=wanted, generation=generation))
                except BrokerUnavailable as error:
                    await self._wait_for_broker(error)
                    found = {}
                batches = self._accept(wanted, found, generation, heard)
                if batches:
                    self._woken = False
                    return batches
            if self._woken:
                self._woken = False
                return []
            if not wanted or not self._wanted(room):
                await self._news.wait()

    async def _wait_for_broker(self, error: BrokerUnavailable) -> None:
        if not self._waits:
            self._waits = True
            log.warning("group %s: reading waits: %s", self.options.group, error)
        with trio.move_on_after(_PAUSE):
            await self._news.wait()

    def _wanted(self, room: Mapping[TP, int]) -> list[Wanted]:
        return self._owned.wanted(room, self._heard) if self._serving else []

    def _accept(
        self, wanted: list[Wanted], found: Mapping[TP, Read | None], generation: int, heard: int
    ) -> list[Batch]:
        """Make what was read the member's own, if it is. There is no checkpoint here."""
        if not self._serving or self._owned.assignment.generation != generation:
            return []
        if found and self._waits:
            self._waits = False
            log.info("group %s: reading goes on", self.options.group)
        return self._owned.accept(wanted, found, heard)

    def wake(self) -> None:
        self._woken = True
        self._news.set()

    def position(self, tp: TP) -> int:
        return self._owned.position(tp)

    def highwater(self, tp: TP) -> int:
        return self._owned.highwater(tp)

    async def seek(self, tp: TP, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        self._owned.seek(tp, offset)
        self._tell_news()

    def pause(self, partitions: Collection[TP]) -> None:
        self._owned.pause(partitions)

    def resume(self, partitions: Collection[TP]) -> None:
        self._owned.resume(partitions)
        self._tell_news()

    # -- commits -------------------------------------------------------------------------------------------

    async def commit(self, offsets: Mapping[TP, int], *, generation: int) -> None:
        await trio.lowlevel.checkpoint()
        by_id = self.check_ownership(offsets)
        group, member = self.options.group, self.member

        def job(tx: Transaction) -> None:
            groups.check_ownership(tx.db, group, member, offsets, generation)
            groups.commit(tx.db, group, by_id)

        try:
            await self._engine.write(job, within=self._commit_timeout)
        except CommitRefused:
            self._tell()  # the group has changed: look at once
            raise

    def check_ownership(self, offsets: Mapping[TP, int]) -> dict[int, int]:
        """Whether these may be committed, as far as is known here: the offsets by the partitions' ids.

        Raises:
            CommitRefused: this member does not own them.
        """
        if self.member < 0:
            raise CommitRefused(f"group {self.options.group!r}: this consumer has not subscribed yet")
        if not self._owned.assignment.partitions.issuperset(offsets):
            self._tell()
            raise CommitRefused(
                f"group {self.options.group!r}, member {self.member}: its partitions are revoked, or not its own"
            )
        return self._owned.by_id(offsets)

    async def committed(self, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        asked = list(partitions)
        return await self._engine.read(partial(groups.committed, group=self.options.group, partitions=asked))

    async def _check_open(self) -> None:
        """No checkpoint while it is open; afterwards whoever was cancelled hears of that first."""
        if self._leaving:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this consumer has left its group")

    def __repr__(self) -> str:
        state = "closed" if self.closed.is_set() else "serving" if self._serving else "joining"
        return f"<SqliteConsumer of {self.options.group!r} {state} {len(self._owned.assignment.partitions)} partitions>"
