"""``open_supervisor``: the root of a tree, and how its failures meet those of the body."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .core import Supervisor
from .errors import is_fatal
from .serving import serve
from .specs import Spec, check_siblings
from .strategies import OneForOneSupervisor, StrategyLike, as_strategy

__all__ = ["open_supervisor"]


@asynccontextmanager
async def open_supervisor(
    strategy: StrategyLike = OneForOneSupervisor, *children: Spec, name: str = "root"
) -> AsyncIterator[Supervisor]:
    """Run a supervision tree around the body of an ``async with`` block.

    The declared children are started in order before the body runs. When the body ends, in whatever way, the
    tree is stopped: children in reverse order, each asked, given its shutdown time, cancelled, awaited.
    Cancellation from outside cuts the drain short, and children see it only after the body and one after the
    other.

    Error handling:
        A failed start of a declared child leaves bare. The body's failure alone leaves bare. When the tree
        fails, the body is cancelled, and the failure leaves as one ``ExceptionGroup`` with the message
        ``supervision tree 'name' failed`` that holds the :exc:`SupervisorFailed`; if the body failed as well,
        the group holds both. KeyboardInterrupt and SystemExit out of a child stop the tree and leave bare if
        the body is fine, else in such a group. Outside cancellation leaves as ``trio.Cancelled``. When the
        supervisor stops without failure (``auto_shutdown``, ``request_stop``), the body goes on.

    Raises:
        ValueError: Children that cannot stand beside each other, as for :func:`supervisor`.
    """
    instance = as_strategy(strategy)
    check_siblings(children, instance, name)
    body_scope = trio.CancelScope()
    root = _Root(Supervisor(instance, name, on_failing=body_scope.cancel), children)
    body: BaseException | None = None
    began = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(root.run, name=f"supervisor {name}")
        try:
            with body_scope:
                await root.settled.wait()
                if root.failure is None:
                    began = True
                    yield root.supervisor
        except BaseException as exc:
            body = exc
        body = await root.finish(body)
    tree = root.failure
    if tree is None or tree is body:
        if body is not None:
            raise body
    elif body is not None:
        raise BaseExceptionGroup(f"supervision tree {name!r} failed", [tree, body])
    elif is_fatal(tree) or not began:
        raise tree
    else:
        raise BaseExceptionGroup(f"supervision tree {name!r} failed", [tree])


class _Root:
    """The root supervisor's task: shielded, so that only :meth:`finish` decides how the tree ends."""

    def __init__(self, supervisor: Supervisor, children: tuple[Spec, ...]) -> None:
        self.supervisor = supervisor
        self.children = children
        self.settled = trio.Event()
        self.done = False
        self.failure: BaseException | None = None
        self.scope = trio.CancelScope(shield=True)

    async def run(self) -> None:
        try:
            with self.scope:
                await serve(self.supervisor, self.children, lambda _: self.settled.set())
        except BaseException as exc:
            self.failure = exc
        self.done = True
        self.settled.set()

    async def finish(self, body: BaseException | None) -> BaseException | None:
        """Stop the tree, cutting the drain short if this wait is cancelled; give back what the body left, or
        that.
        """
        self.supervisor._end()
        try:
            await self.supervisor.wait()
        except BaseException as exc:
            self.scope.cancel()
            while not self.done:
                with trio.CancelScope(shield=True):
                    await self.supervisor._done.wait()
                    await trio.lowlevel.checkpoint()
            if body is None:
                return exc
            if not isinstance(exc, trio.Cancelled):  # KeyboardInterrupt
                return BaseExceptionGroup("the body failed, and its supervision tree was interrupted", [body, exc])
        return body
