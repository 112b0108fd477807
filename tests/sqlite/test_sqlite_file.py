"""The broker's file: where it may be, who may use it, what happens when it is full, cut off or damaged."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.errors import BrokerUnavailable, ImproperlyConfigured, TransportError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport, file
from famulus.channels.sqlite.filesystem import check_filesystem, filesystem_of, verdict
from famulus.channels.sqlite.url import parse_url
from famulus.channels.transport import ConsumerOptions, ProduceResult, TopicSpec, TransportOptions
from famulus.testing.contract_kit import Changes, GroupMember, Recorder

TOPIC = TP("t", 0)


@asynccontextmanager
async def opened(path: Path | str, options: str = "") -> AsyncIterator[SqliteTransport]:
    transport = SqliteTransport(f"sqlite://{path}{options}")
    async with transport.open():
        yield transport


def records(start: int, stop: int, size: int = 10) -> list[ProducerRecord]:
    return [ProducerRecord(None, (b"%d" % number).ljust(size)) for number in range(start, stop)]


async def write(transport: SqliteTransport, some: list[ProducerRecord]) -> ProduceResult:
    result = (await transport.produce({TOPIC: some}))[TOPIC]
    assert isinstance(result, ProduceResult), result
    return result


async def read(transport: SqliteTransport, group: str, count: int) -> list[bytes]:
    recorder = Recorder(Changes())
    async with transport.open_consumer(ConsumerOptions(group=group), recorder) as consumer:
        await consumer.subscribe(["t"])
        messages = await GroupMember(transport, consumer, recorder).read(count)
    return [(message.value or b"").strip() for message in messages]


# Where it is.


async def test_the_url_names_a_file_or_its_directory(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as transport:
        await transport.create_topic(TopicSpec(name="t"))
    async with opened(f"{tmp_path}/deep/er/") as transport:
        assert await transport.list_topics() == []
    assert (tmp_path / "shop.db").stat().st_size > 0
    assert (tmp_path / "deep" / "er" / "broker.db").exists()


def test_without_a_path_the_file_is_in_the_data_directory() -> None:
    assert SqliteTransport("sqlite://", TransportOptions(datadir="shop-data")).settings.path == Path(
        "shop-data/broker.db"
    )
    assert SqliteTransport("sqlite://./here.db").settings.path == Path("here.db")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite://host/path.db", "'host' stands where a host would"),
        ("sqlite:///x.db#part", "expected sqlite://"),
        ("sqlite:///x.db?durability=some", "option durability='some': expected full or normal"),
        ("sqlite:///x.db?busy_timeout=0", "option busy_timeout='0': expected seconds above 0"),
        ("sqlite:///x.db?sync=full", "option 'sync': expected one of durability, "),
        ("sqlite:///x.db?max_bytes=1&max_bytes=2", "option max_bytes: expected once"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_what_was_expected(url: str, expected: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=expected.replace("?", r"\?")):
        SqliteTransport(url)


async def test_an_app_finds_it_by_its_url_and_goes_on_where_its_group_committed(tmp_path: Path) -> None:
    app = famulus.App("shop")
    orders = app.topic("orders", value_type=int, partitions=2)
    seen: list[int] = []
    enough = trio.Event()

    @app.agent(orders)
    async def note(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)
            if len(seen) in (10, 20):
                enough.set()

    for run in range(2):
        enough = trio.Event()
        async with famulus.open_app(app, broker=f"sqlite://{tmp_path}/broker.db"):
            for number in range(10):
                await orders.send(10 * run + number)
            await enough.wait()
    assert sorted(seen) == list(range(20))


async def test_the_data_directory_is_named_after_the_app_or_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [({}, "shop-data"), ({"datadir": "kept"}, "kept")]
    for settings, place in cases:
        app = famulus.App("shop", broker="sqlite://", **settings)
        orders = app.topic("orders", value_type=int, partitions=1)
        async with famulus.open_app(app):
            await (await orders.send(1))
        assert os.listdir(tmp_path / place) == ["broker.db"]


# Who may use it.


async def test_a_directory_that_is_read_only_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, as whom this may run, may write everywhere
    with pytest.raises(ImproperlyConfigured, match=r"is not writable: .* Give this user the right"):
        async with opened(tmp_path / "broker.db"):
            pass


async def test_a_directory_that_cannot_be_made_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImproperlyConfigured, match=r"cannot be made .*: make it, or name another"):
        async with opened(tmp_path / "file" / "below" / "broker.db"):
            pass


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
def test_durability_says_whether_the_disk_is_waited_for_at_each_commit(
    tmp_path: Path, durability: str, level: int
) -> None:
    db = file.open_writing(parse_url(f"sqlite://{tmp_path}/broker.db?durability={durability}", tmp_path))
    assert db.execute("PRAGMA synchronous").fetchone() == (level,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.write_bytes(b"a letter to my aunt".ljust(5000))
    with pytest.raises(ImproperlyConfigured, match="is no database"):
        async with opened(path):
            pass
    assert path.read_bytes() == b"a letter to my aunt".ljust(5000)


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE letters (text)")
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(ImproperlyConfigured, match="database of another program"):
        async with opened(path):
            pass
    assert path.read_bytes() == before


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    async with opened(path) as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=1))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(
        ImproperlyConfigured, match=r"by a newer Famulus \(file version 99, .*nothing in it was changed"
    ):
        async with opened(path):
            pass
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM topics").fetchall() == [("t",)]
    db.close()


async def test_a_file_of_an_older_version_is_brought_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broker.db"
    async with opened(path) as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        await write(transport, records(0, 3))
    next_version = "ALTER TABLE topics ADD COLUMN owner TEXT; UPDATE topics SET owner = 'ada';\n"
    monkeypatch.setattr(file, "MIGRATIONS", (*file.MIGRATIONS, next_version.replace("; U", ";\nU")))
    async with opened(path) as transport:
        assert await read(transport, "g", 3) == [b"0", b"1", b"2"]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT owner FROM topics").fetchall() == [("ada",)]
        assert db.execute("PRAGMA user_version").fetchone() == (len(file.MIGRATIONS),)
    db.close()


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.db"
    async with opened(path) as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=1))
    with monkeypatch.context() as patched:
        patched.setattr(file, "MIGRATIONS", (*file.MIGRATIONS, "DROP TABLE batches;\nSELECT nonsense;\n"))
        with pytest.raises(TransportError, match="nonsense"):
            async with opened(path):
                pass
    async with opened(path) as transport:
        await write(transport, records(0, 1))


async def test_who_holds_the_write_lock_for_long_is_told_of_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    async with opened(path, "?busy_timeout=0.1") as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        second = sqlite3.connect(path, isolation_level=None)
        second.execute("BEGIN IMMEDIATE")
        error = (await transport.produce({TOPIC: records(0, 3)}))[TOPIC]
        assert isinstance(error, BrokerUnavailable)
        assert not error.in_doubt
        assert "held its write lock for more than busy_timeout=0.1 s; is it open in a tool" in str(error)
        with pytest.raises(BrokerUnavailable):
            async with opened(path, "?busy_timeout=0.1"):
                pass
        second.close()
        assert (await write(transport, records(0, 3))).base_offset == 0
        assert await read(transport, "g", 3) == [b"0", b"1", b"2"]


# Network file systems.

MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 0:31 / /mnt/share rw,relatime shared:2 - nfs4 server:/export rw
37 22 0:32 / /mnt/my\040files rw shared:3 - cifs //server/files rw
38 22 0:33 / /home/ada/remote rw - fuse.bindfs bindfs rw
39 36 254:1 / /mnt/share/local rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "what"),
    [
        ("/srv/broker.db", "ext4", "fine"),
        ("/mnt/share/deep/broker.db", "nfs4", "network"),
        ("/mnt/sharewhatever/broker.db", "ext4", "fine"),
        ("/mnt/my files/broker.db", "cifs", "network"),
        ("/mnt/share/local/broker.db", "xfs", "fine"),
        ("/home/ada/remote/broker.db", "fuse.bindfs", "doubtful"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(path: str, kind: str, what: str) -> None:
    assert filesystem_of(Path(path), MOUNTS) == kind
    assert verdict(kind) == what


def test_a_network_file_system_is_refused_and_one_that_may_be_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 22 0:31 / {tmp_path} rw - nfs server:/export rw\n")
    with pytest.raises(ImproperlyConfigured, match=r"network file system \(nfs\).*shared memory.*kafka://"):
        check_filesystem(tmp_path / "broker.db", mounts=mounts)
    mounts.write_text(f"36 22 0:31 / {tmp_path} rw - fuse.something x rw\n")
    with caplog.at_level(logging.WARNING, "famulus.sqlite"):
        check_filesystem(tmp_path / "broker.db", mounts=mounts)
    assert "if a network is behind that" in caplog.text
    check_filesystem(tmp_path / "broker.db", mounts=tmp_path / "this system has no such file")


# Full, cut off, damaged.


async def test_a_full_file_refuses_writes_and_takes_them_again_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    async with opened(path, "?max_bytes=1000000") as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        written = 0
        while True:
            outcome = (await transport.produce({TOPIC: records(written, written + 100, 1000)}))[TOPIC]
            if not isinstance(outcome, ProduceResult):
                break
            written += 100
        assert isinstance(outcome, BrokerUnavailable)
        assert not outcome.in_doubt
        assert "no room for more" in str(outcome)
        assert "max_bytes=1000000" in str(outcome)
        assert written >= 500
    async with opened(path) as transport:
        assert (await write(transport, records(written, written + 100, 1000))).base_offset == written
        assert await read(transport, "g", written + 100) == [b"%d" % number for number in range(written + 100)]


async def test_a_write_ahead_log_that_is_cut_off_leaves_a_whole_beginning(tmp_path: Path) -> None:
    """As a power cut may leave it with durability=normal: records and offsets still fit together."""
    path = tmp_path / "broker.db"
    async with opened(path, "?durability=normal") as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        recorder = Recorder(Changes())
        async with transport.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
            await consumer.subscribe(["t"])
            for number in range(50):
                await write(transport, records(number * 10, number * 10 + 10))
                await consumer.commit({TOPIC: number * 10 + 5}, generation=consumer.assignment.generation)
            whole = (await trio.Path(f"{path}-wal").stat()).st_size
            for part in range(11):
                copy = tmp_path / f"copy-{part}.db"
                shutil.copy(path, copy)
                shutil.copy(f"{path}-wal", f"{copy}-wal")
                os.truncate(f"{copy}-wal", whole * part // 10)
    ends = []
    for part in range(2, 11):  # before, there are no tables yet
        async with opened(tmp_path / f"copy-{part}.db") as transport:
            with sqlite3.connect(tmp_path / f"copy-{part}.db") as db:
                (end,) = db.execute("SELECT next FROM partitions").fetchone()
                (committed,) = db.execute("SELECT max(next) FROM committed").fetchone()
            db.close()
            assert end % 10 == 0
            assert end - committed in (5, 15)
            assert await read(transport, "other", end) == [b"%d" % number for number in range(end)]
            ends.append(end)
    assert ends == sorted(ends)
    assert ends[-1] == 500


async def test_a_damaged_record_stops_its_partition_and_no_other_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broker.db"
    async with opened(path) as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=2))
        await write(transport, records(0, 5))
        await write(transport, records(5, 10))
        await transport.produce({TP("t", 1): records(0, 5)})
        db = sqlite3.connect(path)
        (data,) = db.execute("SELECT data FROM batches WHERE base = 5").fetchone()
        with db:
            db.execute("UPDATE batches SET data = ? WHERE base = 5", (data[:-1] + b"x",))
        db.close()
        recorder = Recorder(Changes())
        async with transport.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
            await consumer.subscribe(["t"])
            member = GroupMember(transport, consumer, recorder)
            with caplog.at_level(logging.ERROR, "famulus.sqlite"):
                assert len(await member.read(10)) == 10
                await member.reads_nothing(5)
            assert "t-0 cannot be read on: t-0, offsets 5 to 9: its checksum is wrong" in caplog.text
            assert consumer.position(TOPIC) == 5
            await consumer.seek(TOPIC, 10)
            await write(transport, records(10, 12))
            assert [message.offset for message in await member.read(2)] == [10, 11]


async def test_a_file_that_is_cut_off_is_told_of_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    async with opened(path) as transport:
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        await write(transport, records(0, 2000, 1000))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(TransportError, match=r"is damaged .*\.recover"):
        async with opened(path) as transport:
            await write(transport, records(0, 2000, 1000))
            await read(transport, "g", 2000)
