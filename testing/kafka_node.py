"""`KafkaBroker`: one Kafka node in one JVM, as an object. Users import it from `famulus.testing.kafka_broker`."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Collection, Mapping
from itertools import count
from pathlib import Path

from .kafka_jars import KafkaBrokerError, find_java, jars
from .kafka_process import Detached, Process, Supervised, end
from .kafka_settings import (
    Listener,
    check_users,
    free_ports,
    is_free,
    make_certificate,
    scram_credentials,
    write_log_settings,
    write_settings,
)

__all__ = ["KafkaBroker", "answers", "log_tail"]

_HEAP = "-Xms128m -Xmx512m"
_ATTEMPTS = 5  # to find free ports before somebody else takes them
_KILLED = 15.0  # seconds within which SIGKILL surely works


class KafkaBroker:
    """A Kafka node of this process: a context manager, or `start` and `stop`. Methods block; none may run in two threads.

    Resource handling: `stop`, or leaving the block, ends the JVM and removes the temporary directory. So does the end
    of this process in any other way, SIGKILL included (a directory alone may stay if that happens between
    `stop_process` and `start_process`).

    Error handling: `KafkaBrokerError` with the end of Kafka's log if it ends or does not answer in time;
    `MissingToolError` if Java or Maven is missing.

    Args:
        port: of the PLAINTEXT listener on 127.0.0.1; default: a free one.
        directory: for data, settings and log, kept; default: a temporary one, removed by `stop`.
        settings: more lines of server.properties, over the ones for tests (`kafka_settings`).
        listeners: more listeners beside PLAINTEXT, each on a free port: ``SSL``, ``SASL_PLAINTEXT``, ``SASL_SSL``.
        users: names and passwords for SASL: PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512 know them all.
        patience: seconds within which a started JVM must answer.
        joins: the first node of a cluster, which runs, to be a further one of it. The first is the cluster's controller:
            it can be stopped no more than for a moment. Replication is 1 where `settings` of each node do not say more.
        detached: the JVM and its directory stay when this process ends; whoever asks for that takes care of them.

    Attributes:
        home: the directory in use, with ``broker.log``; None before `start`.
        node_id: in its cluster, from 1.
        ca: the PEM file for clients of the TLS listeners to trust, else None.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        directory: Path | None = None,
        settings: Mapping[str, str] | None = None,
        listeners: Collection[Listener] = (),
        users: Mapping[str, str] | None = None,
        patience: float = 60.0,
        detached: bool = False,
        joins: KafkaBroker | None = None,
    ) -> None:
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"port={port}: expected 1 to 65535")
        self.settings = dict(settings or {})
        self.users = dict(users or {})
        check_users(self.users, listeners)
        self.home: Path | None = None
        self.ca: Path | None = None
        self._names: list[Listener] = list(dict.fromkeys(["PLAINTEXT", *listeners]))
        self._wanted_port = port
        self._wanted_directory = directory
        self._patience = patience
        self._detached = detached
        self._joins = joins
        self._nodes = count(2)  # ids for those who join
        self._controller = 0
        self._cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        self.node_id = 1 if joins is None else next(joins._nodes)
        self._ports: dict[Listener, int] = {}
        self._settled = False  # whether the ports are ours: they have been before
        self._process: Process | None = None
        self._program: list[str] = []
        self._classes: list[str] = []

    def __enter__(self) -> KafkaBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        if self._process is None:
            return f"<KafkaBroker {'stopped' if self._ports else 'not started'}>"
        return f"<KafkaBroker {self.address} pid {self.pid} {'running' if self.running else 'ended'}>"

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT` of the PLAINTEXT listener; the same one after `stop_process` and `start_process`."""
        return self.address_of("PLAINTEXT")

    @property
    def url(self) -> str:
        """`kafka://127.0.0.1:PORT`."""
        return f"kafka://{self.address}"

    def address_of(self, listener: Listener) -> str:
        """`127.0.0.1:PORT` of a listener."""
        if listener not in self._ports:
            raise KafkaBrokerError(f"{self!r}: no {listener} listener: start it with listeners=[{listener!r}]")
        return f"127.0.0.1:{self._ports[listener]}"

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        if self._process is None:
            raise KafkaBrokerError(f"{self!r} has no process")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the JVM runs; also true of a suspended one."""
        return self._process is not None and self._process.running()

    @property
    def log(self) -> Path:
        """Kafka's log file."""
        if self.home is None:
            raise KafkaBrokerError(f"{self!r} has no log yet")
        return self.home / "broker.log"

    @property
    def has_ended(self) -> bool:
        """Whether the JVM has ended by itself."""
        return self._process is not None and not self._process.running()

    def check(self) -> None:
        """Raise `KafkaBrokerError` with the end of the log if the JVM has ended by itself."""
        if self.has_ended:
            raise KafkaBrokerError(f"Kafka has ended by itself. {log_tail(self.log)}")

    def start(self) -> None:
        """Start it, and return when it answers. Does nothing if it is started."""
        if self._process is not None:
            return
        java, libraries = find_java(), jars()
        if self._wanted_directory is None:
            self.home = Path(tempfile.mkdtemp(prefix="famulus-kafka-"))
        else:
            self.home = self._wanted_directory.absolute()
            self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._prepare(java, libraries)
            self.start_process()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the JVM and remove the temporary directory. A directory that was asked for stays, with clean data."""
        if self._wanted_directory is not None:
            self.stop_process()
        elif self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.wait(_KILLED)
            self._process = None
        if self._wanted_directory is None and self.home is not None:
            shutil.rmtree(self.home, ignore_errors=True)
            self.home = None
            self._ports = {}
        self._settled = False

    def start_process(self) -> None:
        """Start the JVM again after `stop_process`: same port, same data. Returns when it answers."""
        if self.home is None:
            raise KafkaBrokerError(f"{self!r}: start() comes first")
        if self._process is not None:
            self.check()
            return
        attempts = 1 if self._settled else _ATTEMPTS
        for attempt in range(1, attempts + 1):
            if not self._settled:
                self._choose_ports()
            port = self._ports["PLAINTEXT"]
            if not is_free(port):  # somebody else's broker there would answer for ours
                if self._wanted_port is None and attempt < attempts:
                    continue
                raise KafkaBrokerError(
                    f"port {port} of 127.0.0.1 is in use: end what listens there, or take another one"
                )
            began = self.log.stat().st_size if self.log.exists() else 0
            process = self._launch()
            self._process = process
            if self._wait_until_ready(process):
                self._settled = True
                return
            self._process = None
            told = self.log.read_bytes()[began:]
            if attempt == attempts or b"Address already in use" not in told:
                raise KafkaBrokerError(f"Kafka ended before it answered. {log_tail(self.log)}")

    def stop_process(self, *, kill: bool = False) -> None:
        """End the JVM, cleanly or with SIGKILL; its data and port stay for `start_process`."""
        process, self._process = self._process, None
        if process is not None:
            end(process, kill=kill)

    def suspend(self) -> None:
        """Stop the JVM in its tracks (SIGSTOP), and return when it stands: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended JVM go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise KafkaBrokerError(f"{self!r} has no process")
        self.check()
        self._process.signal(number)

    def _prepare(self, java: Path, libraries: Path) -> None:
        """Everything that comes before the JVM of the broker: certificate, users and empty data."""
        assert self.home is not None
        self._program = [str(java), f"-Dlog4j2.configurationFile={self.home / 'log4j2.properties'}"]
        self._classes = ["-cp", f"{libraries}{os.sep}*"]
        write_log_settings(self.home / "log4j2.properties")
        if any(name.endswith("SSL") for name in self._names):
            self.ca = make_certificate(java, self.home)
        if (self.home / "data" / "meta.properties").exists():
            return
        self._write_settings(free_ports(len(self._names) + 1))  # any will do to format
        cluster = self._cluster if self._joins is None else self._joins._cluster
        users = scram_credentials(self.users)
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        command = [*self._program, *quick, *self._classes, "kafka.tools.StorageTool"]
        command += ["format", "-t", cluster, "-c", str(self.home / "server.properties"), *users]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KafkaBrokerError(f"Kafka could not prepare its data:\n{(done.stdout + done.stderr).strip()}")

    def _choose_ports(self) -> None:
        ports = free_ports(len(self._names) + 1)
        if self._wanted_port is not None:
            ports[0] = self._wanted_port
        self._write_settings(ports)

    def _write_settings(self, ports: list[int]) -> None:
        assert self.home is not None
        self._ports = dict(zip(self._names, ports, strict=False))
        self._controller = ports[-1] if self._joins is None else self._joins._controller
        write_settings(
            self.home / "server.properties",
            self._ports,
            self._controller,
            self.users,
            self.settings,
            node=self.node_id,
        )

    def _command(self) -> list[str]:
        assert self.home is not None
        heap = os.environ.get("KAFKA_HEAP_OPTS", _HEAP).split()
        return [*self._program, *heap, *self._classes, "kafka.Kafka", str(self.home / "server.properties")]

    def _launch(self) -> Process:
        if self._detached:
            return Detached.launch(self._command(), log=self.log)
        scrap = self.home if self._wanted_directory is None else None
        return Supervised(self._command(), log=self.log, scrap=scrap)

    def _wait_until_ready(self, process: Process) -> bool:
        """False: it has ended."""
        until = time.monotonic() + self._patience
        while not answers(self.address):
            if not process.running():
                process.wait(_KILLED)
                return False
            if time.monotonic() > until:
                process.signal(signal.SIGKILL)
                process.wait(_KILLED)
                self._process = None
                raise KafkaBrokerError(f"Kafka did not answer within {self._patience:g} s. {log_tail(self.log)}")
            process.wait(0.05)
        return process.running()


def answers(address: str, patience: float = 1.0) -> bool:
    """Whether a Kafka broker that is ready for clients answers there, unencrypted, within `patience` seconds per step.

    It is asked for its cluster (Metadata version 1 of the Kafka protocol, no topics). A broker answers requests shortly
    before it has joined its own cluster; until then its list of brokers is empty, and clients would have to try again.
    """
    host, _, port = address.rpartition(":")
    body = struct.pack(">hhihi", 3, 1, 1, -1, 0)  # api key, version, correlation id, no client id, no topics
    try:
        with socket.create_connection((host, int(port)), patience) as stream, stream.makefile("rb") as answer:
            stream.sendall(struct.pack(">i", len(body)) + body)
            _, correlation, brokers = struct.unpack(">iii", answer.read(12))
    except (OSError, struct.error):
        return False
    return bool(correlation == 1 and brokers > 0)


def log_tail(log: Path, lines: int = 20) -> str:
    """A sentence that names the log and quotes its end."""
    try:
        told = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        told = []
    return "\n".join([f"The end of its log, {log}:", *(f"    {line}" for line in told[-lines:] or ["(it is empty)"])])
