"""examples/tcp_channel.py as a user has it: a worker, its own client, and programs that speak its lines."""

import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from famulus.testing.kafka_settings import free_ports
from famulus.testing.worker_process import WorkerProcess

PROGRAM = Path(__file__).parents[2] / "examples" / "tcp_channel.py"
LIMIT = 60.0  # seconds; only a broken program gets there

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(4 * LIMIT)]


@pytest.fixture
def port() -> int:
    """Not one that the system gives out for connections: whoever connects to anything may get it before the worker."""
    return free_ports(1)[0]


StartProcess = Callable[..., WorkerProcess]


@pytest.fixture
def start(port: int, tmp_path: Path) -> Iterator[StartProcess]:
    """``start("worker")``: the example with these arguments."""
    processes: list[WorkerProcess] = []

    def start(*arguments: str) -> WorkerProcess:
        process = WorkerProcess(
            [str(PROGRAM), *arguments],
            log=tmp_path / f"{arguments[0]}{len(processes)}.log",
            environment={"TCP_CHANNEL_PORT": str(port)},
            patience=LIMIT,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


async def started(start: StartProcess) -> WorkerProcess:
    worker = start("worker")
    await worker.wait_for("ready: app tcp-orders")
    return worker


async def order(connection: trio.SocketStream, number: int, cents: int) -> None:
    await connection.send_all(b'%d {"account": "ada", "cents": %d}\n' % (number, cents))


async def acks(connection: trio.SocketStream, count: int) -> list[int]:
    """The next acks, so many."""
    received = b""
    with trio.fail_after(LIMIT):
        while received.count(b"\n") < count:
            chunk = await connection.receive_some()
            assert chunk, f"the worker closed the connection after {received!r}"
            received += chunk
    return [int(line) for line in received.split()]


async def rest(connection: trio.SocketStream) -> bytes:
    """What comes until the worker closes the connection."""
    with trio.fail_after(LIMIT):
        return b"".join([chunk async for chunk in connection])


def test_it_is_short() -> None:
    assert len(PROGRAM.read_text().splitlines()) < 80


def test_the_excerpt_and_the_commands_in_the_docs_are_the_example_s_own() -> None:
    program = PROGRAM.read_text(encoding="utf-8").splitlines()
    docs = (PROGRAM.parents[1] / "docs" / "channels.md").read_text(encoding="utf-8")
    excerpt = docs.partition("class TCPChannel")[2].partition("```")[0].splitlines()[1:]
    assert len(excerpt) > 5
    assert [line for line in excerpt if line not in program] == []
    commands = [line.strip().partition(" #")[0].strip() for line in program if line.strip().startswith("python ")]
    assert len(commands) == 2
    assert all(command in docs for command in commands)


async def test_the_two_documented_commands_work_together(start: StartProcess) -> None:
    worker = await started(start)
    client = start("client", "10")
    assert await client.wait() == 0
    assert client.log.split("\n")[:10] == [f"acknowledged: {n}" for n in range(1, 11)]
    assert worker.lines("booked") == [f"booked {n} cents of ada" for n in range(1, 11)]
    worker.stop()
    assert await worker.wait() == 0
    assert "Traceback" not in worker.log


async def test_an_order_that_fails_is_tried_again_and_acknowledged_when_it_has_become_a_dead_letter(
    start: StartProcess, port: int
) -> None:
    worker = await started(start)
    async with await trio.open_tcp_stream("127.0.0.1", port) as connection:
        await order(connection, 1, -5)
        await order(connection, 2, 7)
        assert sorted(await acks(connection, 2)) == [1, 2]
    assert len(worker.lines("failed on orders-0@0, attempt [12]: .*; it will be delivered again")) == 2
    assert len(worker.lines("failed on orders-0@0, attempt 3: .*; sent to the dead letters")) == 1
    assert worker.lines("booked") == ["booked 7 cents of ada"]
    worker.stop()
    assert await worker.wait() == 0


async def test_bad_lines_and_dropped_connections_are_only_their_sender_s_trouble(
    start: StartProcess, port: int
) -> None:
    worker = await started(start)
    bystander = await trio.open_tcp_stream("127.0.0.1", port)
    async with bystander:
        await order(bystander, 1, 1)
        assert await acks(bystander, 1) == [1]

        async with await trio.open_tcp_stream("127.0.0.1", port) as broken:
            await broken.send_all(b'2 {"account": \n3 {"account": "ada", "cents": "many"}\n4\n')
            assert await acks(broken, 3) == [2, 3, 4]
        assert len(worker.lines("undecodable value")) == 3

        async with await trio.open_tcp_stream("127.0.0.1", port) as endless:
            with trio.fail_after(LIMIT), pytest.raises(trio.BrokenResourceError):
                while True:
                    await endless.send_all(b"x" * 65536)

        for number in range(20):
            reset = await trio.open_tcp_stream("127.0.0.1", port)
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing sends a reset
            await order(reset, number, 1000 + number)
            await reset.aclose()

        await order(bystander, 4, 4)
        assert await acks(bystander, 1) == [4]
    worker.stop()
    assert await worker.wait() == 0
    assert "Traceback" not in worker.log


async def test_a_sender_that_ends_its_half_gets_its_acks_before_the_connection_is_closed(
    start: StartProcess, port: int
) -> None:
    worker = await started(start)
    async with await trio.open_tcp_stream("127.0.0.1", port) as connection:
        for number in range(1000):
            await order(connection, number, number)
        await connection.send_eof()
        assert [int(line) for line in (await rest(connection)).split()] == list(range(1000))
    worker.stop()
    assert await worker.wait() == 0


async def test_a_killed_worker_comes_back_and_every_order_is_booked_and_acknowledged(start: StartProcess) -> None:
    first = await started(start)
    client = start("client", "2000")
    await client.wait_for("acknowledged", times=50)
    first.kill()
    acknowledged = {int(line.split()[-1]) for line in client.lines("acknowledged")}
    booked = {int(line.split()[1]) for line in first.lines("^booked .* ada$")}
    assert acknowledged <= booked
    second = await started(start)
    assert await client.wait() == 0
    booked |= {int(line.split()[1]) for line in second.lines("^booked .* ada$")}
    assert booked == set(range(1, 2001))
    assert {int(line.split()[-1]) for line in client.lines("acknowledged")} == booked
    second.stop()
    assert await second.wait() == 0


async def test_a_worker_that_stops_closes_its_port_and_has_acknowledged_nothing_that_it_did_not_book(
    start: StartProcess, port: int
) -> None:
    worker = await started(start)
    received = bytearray()

    async def listen_for_acks(connection: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # closed while there is more to read, a socket is reset
            async for chunk in connection:
                received.extend(chunk)

    async def send_without_end(connection: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            for number in itertools.count():
                await order(connection, number, number)

    async with await trio.open_tcp_stream("127.0.0.1", port) as connection:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_without_end, connection)
                nursery.start_soon(listen_for_acks, connection)
                await worker.wait_for("booked", times=100)
                worker.stop()
                assert await worker.wait() == 0
    *acknowledged, _ = received.split(b"\n")
    booked = [int(line.split()[1]) for line in worker.lines("^booked")]
    assert booked == list(range(len(booked)))
    assert [int(line) for line in acknowledged] == booked[: len(acknowledged)]
    assert "Traceback" not in worker.log
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_port_that_is_taken_is_said_so(start: StartProcess) -> None:
    first = await started(start)
    second = start("worker")
    assert await second.wait() != 0
    assert second.lines("[Aa]ddress already in use")
    first.stop()
    assert await first.wait() == 0


def test_client_without_worker_waits_for_one(port: int) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        subprocess.run(
            [sys.executable, "-P", str(PROGRAM), "client", "1"],
            env={**os.environ, "TCP_CHANNEL_PORT": str(port), "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            timeout=3,
            check=False,
        )
    assert b"1 orders to send again" in (caught.value.stdout or b"")
