"""Calls over a real Kafka, with workers and clients as real processes that are killed, suspended and replaced.

Each ask ends in the right answer, once; what comes late or twice is dropped and counted; and law 2 holds all the time, which
`numbered` sees to.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.actors.replies import Replies
from famulus.channels.message import TP
from famulus.kafka import KafkaTransport
from famulus.testing.kafka import RunningKafka
from famulus.testing.kafka_broker import KafkaBroker
from famulus.testing.numbered import Numbered, numbered
from famulus.testing.worker_process import WorkerProcess

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(180), pytest.mark.slow]

SCRIPT = Path(__file__).with_name("asks_app.py")
QUICK = {"broker_session_timeout": 2, "broker_commit_interval": 0.2, "broker_retry_backoff_max": 0.5}
PACE = {"ASKS_PACE": "0.002"}
PATIENCE = 60.0

Asks = Callable[[], AbstractAsyncContextManager[Numbered]]


@pytest.fixture
def asks(kafka_broker: RunningKafka, tmp_path: Path) -> Asks:
    """Requests in four partitions, under a name of their own."""
    name = f"asks-{uuid4().hex[:8]}"
    return lambda: numbered(kafka_broker.url, name=name, script=SCRIPT, directory=tmp_path)


class Caller:
    """A client in this process, which asks many numbers at once.

    Attributes:
        answered: the numbers that were answered, rightly.
        received: messages that came to the reply topic.
    """

    def __init__(self, client: famulus.RunningClient, square: famulus.Agent[int, int]) -> None:
        self.client = client
        self.answered: list[int] = []
        self.received = 0
        self._square = square
        replies = Replies.of(client._run)
        receive = replies.receive

        def count_and_receive(message: famulus.Message) -> None:
            self.received += 1
            receive(message)

        replies.receive = count_and_receive  # type: ignore[method-assign]  # to know what came, whatever became of it

    async def ask_all(self, number_of_asks: int, *, first: int = 0, width: int = 50) -> None:
        """Every second one asks again and again, under the same id, when it has waited a moment in vain."""
        places = trio.Semaphore(width)

        async def ask(number: int) -> None:
            async with places:
                with trio.fail_after(PATIENCE):
                    answer = await (self._ask_again(number) if number % 2 else self._ask(number))
                assert answer == number**2
                self.answered.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(first, first + number_of_asks):
                nursery.start_soon(ask, number)

    async def _ask(self, number: int) -> int:
        return await self._square.ask(number, key=f"k{number}")

    async def _ask_again(self, number: int) -> int:
        for times in count():
            with trio.move_on_after(0.2 * 2**times):
                return await self._square.ask(number, key=f"k{number}", correlation_id=f"{self.client.id}.{number}")
        raise AssertionError("it goes on until the deadline")

    async def wait_answered(self, number: int) -> None:
        with trio.fail_after(PATIENCE):
            while len(self.answered) < number:
                await trio.sleep(0.005)

    async def check_end(self, number: int) -> None:
        """Every number was answered once. Of all that came in the end, the others were dropped and counted."""
        assert sorted(self.answered) == [*range(number)]
        replies = Replies.of(self.client._run)
        assert replies.waiting == 0
        came = await end_of(self.client, replies.address.decode())
        with trio.move_on_after(PATIENCE):
            while self.received < came:
                await trio.sleep(0.02)
        assert self.received == came
        assert self.client.statistics().replies_dropped == came - number


@asynccontextmanager
async def open_caller(run: Numbered, url: str) -> AsyncIterator[Caller]:
    app = famulus.App(run.name, broker=url, broker_retry_backoff_max=0.5)

    @app.agent(app.topic(run.name, value_type=int), name="square")
    async def square(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        raise NotImplementedError("it runs elsewhere")
        yield

    async with famulus.open_client(app) as client:
        yield Caller(client, square)


async def end_of(client: famulus.RunningClient, topic: str) -> int:
    """Messages that were written to a topic of one partition."""
    tp = TP(topic, 0)
    async with client._run.transport.open_reader({tp: "latest"}) as reader:
        return reader.highwater(tp)


async def all_committed(run: Numbered, client: famulus.RunningClient) -> None:
    """Every request that was sent is processed, and the group's offset is behind it."""
    for tp in run.ends:
        async with client._run.transport.open_reader({tp: "latest"}) as reader:
            run.ends[tp] = reader.highwater(tp)
    await run.wait_committed()


async def stop(*workers: WorkerProcess) -> None:
    for worker in workers:
        worker.stop()
        assert await worker.wait() == 0, worker.log
        assert not worker.lines("ERROR|Traceback"), worker.log


async def test_a_thousand_asks_are_answered_though_a_worker_is_killed_in_the_middle_and_another_comes(
    asks: Asks, kafka_broker: RunningKafka
) -> None:
    async with asks() as run, open_caller(run, kafka_broker.url) as caller:
        victim = run.start(environment=PACE, settings={**QUICK, "broker_commit_interval": 60})
        other = run.start(environment=PACE, settings=QUICK)
        for worker in (victim, other):
            await worker.wait_for(r"generation \d+: 2 partitions assigned")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.ask_all, 1000)
            await caller.wait_answered(200)
            await run.wait_seen(50, victim)
            victim.kill()  # what it has answered is delivered again: it has committed nothing
            third = run.start(environment=PACE, settings=QUICK)
        await all_committed(run, caller.client)
        await stop(other, third)
        await caller.check_end(1000)
        assert caller.client.statistics().replies_dropped > 0


async def test_asks_outlast_a_suspended_worker_and_a_broker_that_is_away(
    own_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    name, url = f"asks-{uuid4().hex[:8]}", own_kafka_broker.url
    async with numbered(url, name=name, script=SCRIPT, directory=tmp_path) as run, open_caller(run, url) as caller:
        zombie, other = (run.start(environment=PACE, settings=QUICK) for _ in "12")
        for worker in (zombie, other):
            await worker.wait_for(r"generation \d+: 2 partitions assigned")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.ask_all, 1000)
            await caller.wait_answered(200)
            assigned = len(other.lines(": 4 partitions assigned"))
            zombie.suspend()
            await other.wait_for(": 4 partitions assigned", times=assigned + 1)
            await caller.wait_answered(400)
            zombie.resume()
            await caller.wait_answered(500)
            await trio.to_thread.run_sync(lambda: own_kafka_broker.stop_process(kill=True))
            try:
                await other.wait_for("waits for the broker")
            finally:
                await trio.to_thread.run_sync(own_kafka_broker.start_process)
        await all_committed(run, caller.client)
        for worker in (zombie, other):
            worker.stop()
            assert await worker.wait() == 0, worker.log
        await caller.check_end(1000)


async def test_a_caller_that_is_killed_gets_no_answers_in_its_next_life_and_one_that_is_interrupted_leaves_nothing(
    asks: Asks, kafka_broker: RunningKafka, tmp_path: Path
) -> None:
    clients: list[WorkerProcess] = []

    async def start_client(run: Numbered, first: int, **environment: str) -> WorkerProcess:
        clients.append(
            WorkerProcess(
                [str(SCRIPT), "--broker", kafka_broker.url, "client"],
                log=tmp_path / f"client-{len(clients)}.log",
                environment={"NUMBERS": run.name, "ASKS_FROM": str(first), **environment},
            )
        )
        await clients[-1].wait_for("^asking")
        return clients[-1]

    transport = KafkaTransport(kafka_broker.url)
    try:
        async with transport.open(), asks() as run, open_caller(run, kafka_broker.url) as watcher:
            worker = run.start(environment=PACE, settings={**QUICK, "broker_session_timeout": 45})
            await worker.wait_for("ready")

            async def reply_topics() -> list[str]:
                """Those of our clients; the one who asks has none, since it has asked nothing."""
                own = Replies.of(watcher.client._run).address.decode()
                found = await transport.list_topics()
                return sorted(topic for topic in found if topic.startswith(f"{run.name}-reply-") and topic != own)

            first = await start_client(run, 0)
            await first.wait_for("^asked 100")
            worker.suspend()
            first.kill()
            (topic,) = await reply_topics()
            await transport.delete_topic(topic)  # as the broker does when it has expired
            second = await start_client(run, 1_000_000, ASKS_NAME="caller")
            worker.resume()
            await second.wait_for("^asked 100")
            worker.suspend()
            second.kill()
            (topic,) = await reply_topics()
            assert topic.endswith("-caller")
            third = await start_client(run, 2_000_000, ASKS_NAME="caller")
            worker.resume()
            await third.wait_for("^asked 200")
            os.kill(third.pid, signal.SIGINT)
            assert await third.wait() == 0, third.log
            (ended,), (left,) = third.lines("^ended"), third.lines("^left")
            outcome = json.loads(ended.removeprefix("ended"))
            assert outcome.pop("dropped") > 0  # of the second, which waited at the same topic
            assert outcome.pop("answered") >= 200
            assert outcome == {}
            assert json.loads(left.removeprefix("left")) == {"threads": 0, "sockets": 0}
            assert await reply_topics() == []
            await all_committed(run, watcher.client)
            await stop(worker)
    finally:
        for client in clients:
            client.kill()


async def test_two_workers_ask_each_other(asks: Asks, kafka_broker: RunningKafka) -> None:
    async with asks() as run, open_caller(run, kafka_broker.url) as watcher:
        firsts = (0, 10_000)
        one, two = (
            run.start(environment={**PACE, "ASKS_COUNT": "500", "ASKS_FROM": str(first)}, settings=QUICK)
            for first in firsts
        )
        for worker in (one, two):
            await worker.wait_for("^ended")
            (ended,) = worker.lines("^ended")
            assert json.loads(ended.removeprefix("ended")) == {"answered": 500}
        await all_committed(run, watcher.client)
        await stop(one, two)


@pytest.mark.torture
@pytest.mark.hard_timeout(900)
async def test_asks_end_whatever_befalls_workers_and_broker(
    own_kafka_broker: KafkaBroker, tmp_path: Path, seed: int
) -> None:
    """`FAMULUS_SEED` repeats the order of the faults."""
    name, url, rng = f"asks-{uuid4().hex[:8]}", own_kafka_broker.url, random.Random(seed)
    over = False
    asked = 0

    async def trouble(run: Numbered, workers: list[WorkerProcess]) -> None:
        nonlocal over
        for _ in range(15):
            await trio.sleep(rng.uniform(0, 3))
            place, away = rng.randrange(len(workers)), rng.uniform(0, 4)
            fault = rng.choice(["kill", "suspend", "restart", "broker"])
            print(f"{fault} for {away:.1f} s")
            if fault == "broker":
                await trio.to_thread.run_sync(lambda: own_kafka_broker.stop_process(kill=True))
            elif fault == "suspend":
                workers[place].suspend()
            elif fault == "kill":
                workers[place].kill()
            else:
                workers[place].stop()
                await workers[place].wait()
            try:
                await trio.sleep(away)
            finally:
                if fault == "broker":
                    await trio.to_thread.run_sync(own_kafka_broker.start_process)
                elif fault == "suspend":
                    workers[place].resume()
                else:
                    workers[place] = run.start(environment=PACE, settings=QUICK)
        over = True

    async with numbered(url, name=name, script=SCRIPT, directory=tmp_path) as run, open_caller(run, url) as caller:
        workers = [run.start(environment=PACE, settings=QUICK) for _ in "123"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble, run, workers)
            while not over:
                await caller.ask_all(300, first=asked)
                asked += 300
        await all_committed(run, caller.client)
        for worker in workers:
            await worker.wait_for("ready")
            worker.stop()
            assert await worker.wait() == 0, worker.log
        await caller.check_end(asked)
        print(f"{asked} asks, {caller.client.statistics().replies_dropped} replies dropped")
