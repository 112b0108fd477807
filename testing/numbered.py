"""A numbered input for worker processes, and the check that none of it is lost and none is committed unseen.

A worker writes each event that it has processed into a journal, which survives its SIGKILL. An observer, which is no
member of the group, compares the group's committed offsets with the journal all the time: what is committed must
have been in the journal before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from ..channels.errors import BrokerUnavailable
from ..channels.message import TP, ProducerRecord
from ..channels.transport import Consumer, ConsumerOptions, TopicSpec, Transport, TransportOptions, load_transport
from .worker_process import WorkerProcess

__all__ = ["Numbered", "numbered"]

_SAMPLE = 0.1  # seconds between two looks at the committed offsets
_LIMIT = 60.0  # seconds that any wait may take


class Numbered:
    """The numbers of one test, in topic and group `name`, and the workers on them. Made by `numbered`.

    Attributes:
        name: of the topic, the group and the app.
        ends: where each partition of the input ends.
        committed: the group's offsets, as last seen; they never go back.
        samples: how often they were compared with the journal.
        workers: all that were started.
    """

    def __init__(
        self,
        transport: Transport,
        observer: Consumer,
        *,
        url: str,
        name: str,
        script: Path,
        directory: Path,
        partitions: int,
    ) -> None:
        self.name = name
        self.ends = {TP(name, partition): 0 for partition in range(partitions)}
        self.committed = dict.fromkeys(self.ends, 0)
        self.samples = 0
        self.workers: list[WorkerProcess] = []
        self._transport = transport
        self._observer = observer
        self._url = url
        self._script = script
        self._directory = directory
        self._journal = directory / "journal"
        self._read = 0  # bytes of the journal
        self._seen: dict[TP, set[int]] = {tp: set() for tp in self.ends}
        self._seen_to = dict.fromkeys(self.ends, 0)  # the first offset that nobody has processed
        self._by_pid: dict[int, list[tuple[TP, int]]] = {}
        self._written = 0
        self._sampling = trio.Lock()

    # -- workers -------------------------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        settings: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
        url: str | None = None,
    ) -> WorkerProcess:
        """Start a worker on the numbers, with these arguments of ``worker`` and these settings."""
        log = self._directory / f"worker-{len(self.workers) + 1}.log"
        options = [f"--set={name}={value}" for name, value in settings.items()]
        worker = WorkerProcess(
            [str(self._script), "--broker", url or self._url, *options, "worker", "--no-banner", *arguments],
            log=log,
            environment={"NUMBERS": self.name, "NUMBERS_JOURNAL": str(self._journal), **(environment or {})},
        )
        self.workers.append(worker)
        return worker

    # -- input and output ----------------------------------------------------------------------------------

    async def write(self, count: int) -> None:
        """Append so many numbers, spread over the partitions. Waits while the broker is away."""
        records: dict[TP, list[ProducerRecord]] = {tp: [] for tp in self.ends}
        tps = list(self.ends)
        for number in range(self._written, self._written + count):
            records[tps[number % len(tps)]].append(ProducerRecord(None, b"%d" % number))
        self._written += count
        batches = {tp: batch for tp, batch in records.items() if batch}
        while batches:
            outcome = await self._transport.produce(batches)
            for tp, result in outcome.items():
                if not isinstance(result, Exception):
                    self.ends[tp] += len(batches.pop(tp))
                elif not isinstance(result, BrokerUnavailable):
                    raise result

    async def outputs(self) -> list[int]:
        """What the workers have written to ``NAME-doubled``, from its beginning to its present end."""
        return [int(value) for value in await self.values_of(f"{self.name}-doubled")]

    async def values_of(self, topic: str) -> list[bytes]:
        """Everything in a topic, from its beginning to its present end."""
        found: list[bytes] = []
        options = ConsumerOptions(group=f"{topic}-reader")
        with trio.fail_after(_LIMIT):
            async with self._transport.open_consumer(options, _Silent()) as reader:
                await reader.subscribe([topic])
                tps = reader.assignment.partitions
                ends = {tp: reader.highwater(tp) for tp in tps}
                while True:
                    room = {tp: 10_000 for tp in tps if reader.position(tp) < ends[tp]}
                    if not room:
                        return found
                    for batch in await reader.fetch(room):
                        found += [message.value or b"" for message in batch.messages]

    # -- the check -----------------------------------------------------------------------------------------

    def seen(self, worker: WorkerProcess | None = None) -> int:
        """How many events have been processed, by one worker or by all; repetitions count."""
        self._read_journal()
        pids = list(self._by_pid) if worker is None else [worker.pid]
        return sum(len(self._by_pid.get(pid, ())) for pid in pids)

    def seen_in(self, worker: WorkerProcess) -> set[TP]:
        """The partitions of which a worker has processed something."""
        self._read_journal()
        return {tp for tp, _ in self._by_pid.get(worker.pid, ())}

    def unseen(self) -> int:
        """How many numbers nobody has processed yet."""
        self._read_journal()
        return sum(end - len(self._seen[tp]) for tp, end in self.ends.items())

    async def sample(self) -> None:
        """Compare the committed offsets with the journal.

        Raises:
            BrokerUnavailable: it cannot be asked at the moment.
            AssertionError: something was committed that nobody has processed, or a committed offset went back.
        """
        async with self._sampling:
            found = await self._observer.committed(list(self.ends))
            self._read_journal()
            for tp, offset in found.items():
                offset = offset or 0
                assert offset <= self._seen_to[tp], f"{tp}: {offset} is committed, and {self._seen_to[tp]} is unseen"
                assert offset >= self.committed[tp], f"{tp}: {offset} is committed after {self.committed[tp]} was"
                self.committed[tp] = offset
            self.samples += 1

    async def watch(self) -> None:
        """Take samples until cancelled."""
        while True:
            with suppress(BrokerUnavailable):
                await self.sample()
            await trio.sleep(_SAMPLE)

    async def wait_seen(self, count: int, worker: WorkerProcess | None = None) -> None:
        """Wait until so many events have been processed, by one worker or by all."""
        await self._wait(lambda: self.seen(worker) >= count, worker, 0.01)

    async def wait_committed_of(self, worker: WorkerProcess) -> None:
        """Wait until everything that a worker has processed is committed."""

        def is_committed() -> bool:
            self._read_journal()
            return all(self.committed[tp] > offset for tp, offset in self._by_pid.get(worker.pid, ()))

        await self._wait(is_committed, worker, _SAMPLE)

    async def wait_committed(self) -> None:
        """Wait until everything is committed, and with that processed."""
        await self._wait(lambda: self.committed == self.ends, None, _SAMPLE)

    async def _wait(self, condition: Callable[[], bool], worker: WorkerProcess | None, look: float) -> None:
        with trio.move_on_after(_LIMIT):
            while not condition():
                self._check_running(worker)
                await trio.sleep(look)
            return
        raise AssertionError(f"not within {_LIMIT:g} s: {self!r}\n{self._logs()}")

    def _check_running(self, worker: WorkerProcess | None) -> None:
        if all(one.code is not None for one in ([worker] if worker else self.workers)):
            raise AssertionError(f"nobody works on the numbers any more:\n{self._logs()}")

    def _logs(self) -> str:
        return "\n".join(f"{one!r}:\n{one.log}" for one in self.workers)

    def __repr__(self) -> str:
        written = sum(self.ends.values())
        return f"<Numbered {self.name}: {written} written, {self.unseen()} unseen, {sum(self.committed.values())} committed>"

    def _read_journal(self) -> None:
        if not self._journal.exists():
            return
        with self._journal.open("rb") as journal:
            journal.seek(self._read)
            news = journal.read()
        whole = news[: news.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            pid, partition, offset, _ = map(int, line.split())
            tp = TP(self.name, partition)
            self._seen[tp].add(offset)
            self._by_pid.setdefault(pid, []).append((tp, offset))
        for tp, seen in self._seen.items():
            while self._seen_to[tp] in seen:
                self._seen_to[tp] += 1


@asynccontextmanager
async def numbered(
    url: str, *, name: str, script: Path, directory: Path, partitions: int = 4, fed: bool = False
) -> AsyncIterator[Numbered]:
    """Topics for numbers at a broker, and an observer that compares all the time; workers are killed in the end.

    Args:
        script: the app; `tests/kafka/numbers_app.py` shows what it must do.
        directory: for the journal and the workers' logs.
        fed: whether to make the topic ``NAME-fed`` too.
    """
    transport = load_transport(url, TransportOptions(client_id=f"{name}-observer"))
    async with transport.open():
        for topic in (name, f"{name}-doubled", *([f"{name}-fed"] if fed else [])):
            await transport.create_topic(TopicSpec(name=topic, partitions=partitions))
        async with transport.open_consumer(ConsumerOptions(group=name), _Silent()) as observer:
            run = Numbered(
                transport, observer, url=url, name=name, script=script, directory=directory, partitions=partitions
            )
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.watch)
                try:
                    yield run
                except Exception as error:
                    failure = error  # it shall leave bare, not in the nursery's group
                finally:
                    for worker in run.workers:
                        worker.kill()
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure


class _Silent:
    async def on_assigned(self, assignment: object) -> None:
        await trio.lowlevel.checkpoint()

    async def on_revoked(self, revoked: object, *, lost: bool) -> None:
        await trio.lowlevel.checkpoint()
