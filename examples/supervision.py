"""Supervision without an App: ``python examples/supervision.py``.

A feed that breaks, a store that depends on it, a pool of sessions, all under one root. What fails is restarted, with what
stands after it; the root lives on; at the end all is stopped in reverse order.
"""

import logging

import trio

from famulus.supervision import (
    Backoff,
    ChildHandle,
    OneForOneSupervisor,
    RestForOneSupervisor,
    TreeNode,
    child,
    monitor,
    open_supervisor,
    pool,
    supervisor,
    trap_stop,
)


async def feed(breaks: list[str], *, task_status: trio.TaskStatus[None]) -> None:
    await trio.sleep(0.01)  # connect
    task_status.started()  # ready: what stands after it may start now
    await trio.sleep(0.2)
    if breaks:
        raise ConnectionError(breaks.pop())  # crash: the supervisor decides what follows
    await trio.sleep_forever()


async def store() -> None:
    await trap_stop().wait()  # ask me to stop, and I will finish by myself
    print("the store has written what was left")


async def watch(handle: ChildHandle) -> None:
    async with monitor(handle) as exits:  # ends when the child is gone for good
        async for exit in exits:
            print(f"{exit}, it will {'' if exit.will_restart else 'not '}run again")


def show(node: TreeNode, indent: str = "") -> None:
    restarts = f", {node.restarts} restarts" if node.restarts else ""
    print(f"{indent}{node.name}: {node.strategy or node.kind}, {node.state}{restarts}")
    for below in node.children:
        show(below, indent + "    ")


async def main() -> None:
    logging.getLogger("famulus.supervision").setLevel(logging.CRITICAL)  # else each crash is logged with its traceback
    ingest = supervisor(
        RestForOneSupervisor(max_restarts=5, within=60, backoff=Backoff(min=0.05)),  # a new feed needs a new store
        child(feed, ["no route", "reset by peer"]),
        child(store),
        name="ingest",
    )
    sessions = pool(child(trio.sleep, restart="temporary"), name="sessions")  # begins empty, takes any number
    async with (
        trio.open_nursery() as nursery,
        open_supervisor(OneForOneSupervisor, ingest, sessions, name="shop") as shop,
    ):
        broken = shop.children["ingest"].supervisor.children["feed"]
        nursery.start_soon(watch, broken)
        for seconds in (3600, 7200):
            await shop.children["sessions"].supervisor.start_child(seconds)
        while broken.restarts < 2 or any(node.state != "running" for node in shop.tree().walk()):
            await trio.sleep(0.05)
        show(shop.tree())


if __name__ == "__main__":
    trio.run(main)
