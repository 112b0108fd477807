"""A real Kafka on this machine, without Docker: one node, broker and controller in one JVM (KRaft). POSIX systems.

For tests it is an object, `KafkaBroker` (`famulus.testing.kafka` has the pytest fixtures); its JVM never outlives the
process that made it (`kafka_process` says how). For development it is a command that leaves it running::

    python -P -m famulus.testing.kafka_broker start|stop|status|run [--port N] [--directory D]

Java 17 or newer has to be there, and Maven for the first start, which downloads Kafka into a cache directory
(`FAMULUS_CACHE` names another one). ``KAFKA_HEAP_OPTS`` sets the heap of the JVM, as with Kafka's own scripts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import attrs
import click

from .kafka_jars import KAFKA_VERSION, KafkaBrokerError, MissingToolError, cache_directory, locked
from .kafka_node import KafkaBroker, answers, log_tail
from .kafka_process import Detached, end, fingerprint

__all__ = ["KAFKA_VERSION", "KafkaBroker", "KafkaBrokerError", "MissingToolError"]

_NOT_RUNNING = 3  # exit code of `status`, as the LSB has it for services


@attrs.frozen
class _Record:
    """What `start` writes down about the JVM that it leaves running, for `stop` and `status`."""

    address: str
    pid: int
    mark: str
    """The fingerprint of the process: see `kafka_process`."""
    home: str
    temporary: bool

    @property
    def process(self) -> Detached:
        return Detached(self.pid, self.mark)

    @property
    def log(self) -> Path:
        return Path(self.home) / "broker.log"


def _record_file(directory: Path | None) -> Path:
    """One broker for each user, or for each directory that is asked for."""
    return (directory.absolute() if directory else cache_directory()) / "broker.json"


def _read(file: Path) -> _Record | None:
    try:
        return _Record(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as problem:
        raise KafkaBrokerError(f"{file} is damaged ({problem}): remove it, and the broker if one runs") from problem


def _forget(file: Path, record: _Record) -> None:
    if record.temporary:
        shutil.rmtree(record.home, ignore_errors=True)
    file.unlink(missing_ok=True)


def _start(port: int | None, directory: Path | None) -> str:
    """The address of the broker that now runs, or ran already."""
    file = _record_file(directory)
    with locked(file.with_suffix(".lock")):
        record = _read(file)
        if record is not None and record.process.running():
            if not answers(record.address):
                raise KafkaBrokerError(f"pid {record.pid} runs, but {record.address} does not answer: stop it first")
            if port is not None and record.address != f"127.0.0.1:{port}":
                raise KafkaBrokerError(f"a broker runs at {record.address}, not at port {port}: stop it first")
            return record.address
        if record is not None:
            _forget(file, record)
        broker = KafkaBroker(port=port, directory=directory, detached=True)
        broker.start()
        try:
            mark = fingerprint(broker.pid)
            if mark is None:
                broker.check()
            record = _Record(broker.address, broker.pid, str(mark), str(broker.home), directory is None)
            new = file.with_suffix(".new")
            new.write_text(json.dumps(attrs.asdict(record), indent=1) + "\n", encoding="utf-8")
            new.replace(file)
        except BaseException:
            broker.stop()
            raise
        return broker.address


def _stop(directory: Path | None) -> _Record | None:
    """The broker that ran until now."""
    file = _record_file(directory)
    if not file.exists():
        return None
    with locked(file.with_suffix(".lock")):
        record = _read(file)
        if record is None:
            return None
        ran = record.process.running()
        end(record.process, kill=record.temporary)  # clean data is for those who keep it
        _forget(file, record)
        return record if ran else None


class _Commands(click.Group):
    """Errors become one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        signal.signal(signal.SIGTERM, _leave)
        try:
            return super().invoke(ctx)
        except (KafkaBrokerError, OSError) as problem:
            raise click.ClickException(str(problem)) from problem


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


_port = click.option(
    "--port", type=click.IntRange(1, 65535), metavar="N", help="Port of 127.0.0.1; default: a free one."
)
_directory = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="D",
    help="Where its data are kept; default: a temporary directory, removed by stop.",
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A real Kafka on this machine, for development and tests."""


@main.command()
@_port
@_directory
def start(port: int | None, directory: Path | None) -> None:
    """Start it, unless it runs; print its address."""
    click.echo(_start(port, directory))


@main.command()
@_directory
def stop(directory: Path | None) -> None:
    """Stop it, if it runs."""
    record = _stop(directory)
    click.echo(f"stopped {record.address} (pid {record.pid})" if record else "no broker runs", err=True)


@main.command()
@_directory
def status(directory: Path | None) -> None:
    """Say where it runs; exit code 3 if it does not."""
    record = _read(_record_file(directory))
    if record is None:
        click.echo("no broker runs")
        sys.exit(_NOT_RUNNING)
    if not record.process.running():
        click.echo(f"the broker at {record.address} has ended by itself. {log_tail(record.log)}")
        sys.exit(_NOT_RUNNING)
    state = "runs" if answers(record.address) else "does not answer"
    click.echo(f"{record.address} {state} (pid {record.pid}, Kafka {KAFKA_VERSION}, {record.home})")


@main.command()
@_port
@_directory
def run(port: int | None, directory: Path | None) -> None:
    """Run it until Ctrl-C; print its address when it is ready."""
    with KafkaBroker(port=port, directory=directory) as broker:
        click.echo(broker.address)
        try:
            while True:
                time.sleep(0.2)
                broker.check()
        except KeyboardInterrupt:
            click.echo("stopping", err=True)


if __name__ == "__main__":
    main(prog_name=f"python -P -m {__spec__.name}" if __spec__ else os.path.basename(__file__))
