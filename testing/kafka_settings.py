"""How a local Kafka is set up: listeners, server.properties, users, certificates. Used by `kafka_broker`."""

import random
import socket
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from .kafka_jars import KafkaBrokerError

__all__ = [
    "Listener",
    "check_users",
    "free_ports",
    "is_free",
    "make_certificate",
    "scram_credentials",
    "write_log_settings",
    "write_settings",
]

Listener = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
"""Kafka's own names for: nothing, TLS, SASL, and SASL over TLS."""

_PASSWORD = "famulus"  # of a key that is made for one run, in a directory that only its user can read
_PASSWORD_MARKS = "-_.~!@#%&*+:;?/()"
_SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")

# One node does it all, and kills cost a second each instead of six (DESIGN, "A real Kafka for tests").
_BASE = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    # After a SIGKILL the node cannot come back before its own controller has given it up; Kafka's 9 s and 2 s make it 11 s.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "auto.create.topics.enable": "false",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.backoff.ms": "300",  # compaction is seen at once, not after 15 s
    "group.min.session.timeout.ms": "1000",
}

_LOG = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now; another process may still be faster.

    They lie below the range from which systems take ports for outgoing connections (32768 on Linux, 49152 by RFC 6335).
    From within it, a client that keeps trying to reach a stopped broker sooner or later connects to itself, and the
    broker cannot have its port back.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(15000, 32000), 1000):
        if is_free(port):
            found.append(port)
        if len(found) == number:
            return found
    raise KafkaBrokerError(f"no {number} free ports between 15000 and 32000 on 127.0.0.1")


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: old connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def write_settings(
    file: Path,
    ports: Mapping[Listener, int],
    controller: int,
    users: Mapping[str, str],
    extra: Mapping[str, str],
    *,
    node: int = 1,
) -> None:
    """Write server.properties for these listeners; `extra` wins over everything here.

    Args:
        controller: port of the controller, which is node 1. The others are brokers only.
    """
    keystore = file.parent / "keystore.p12"
    settings = dict(_BASE)
    settings["log.dirs"] = str(file.parent / "data")
    settings["controller.quorum.voters"] = f"1@127.0.0.1:{controller}"
    listeners = [f"{name}://127.0.0.1:{port}" for name, port in ports.items()]
    settings["listeners"] = ",".join([*listeners, f"CONTROLLER://127.0.0.1:{controller}"] if node == 1 else listeners)
    if node > 1:
        settings["node.id"] = str(node)
        settings["process.roles"] = "broker"
    settings["advertised.listeners"] = ",".join(listeners)
    settings["listener.security.protocol.map"] = "CONTROLLER:PLAINTEXT," + ",".join(f"{name}:{name}" for name in ports)
    for name in ports:
        prefix = f"listener.name.{name.lower()}."
        if name.endswith("SSL"):
            settings[f"{prefix}ssl.keystore.type"] = "PKCS12"
            settings[f"{prefix}ssl.keystore.location"] = str(keystore)
            settings[f"{prefix}ssl.keystore.password"] = _PASSWORD
        if name.startswith("SASL"):
            security = "org.apache.kafka.common.security"
            plain = " ".join(f'user_{user}="{password}"' for user, password in users.items())
            settings["sasl.enabled.mechanisms"] = ",".join(["PLAIN", *_SCRAM])
            settings[f"{prefix}plain.sasl.jaas.config"] = f"{security}.plain.PlainLoginModule required {plain};"
            for mechanism in _SCRAM:
                key = f"{prefix}{mechanism.lower()}.sasl.jaas.config"
                settings[key] = f"{security}.scram.ScramLoginModule required;"
    settings.update(extra)
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}={_escaped(value)}\n" for name, value in settings.items()), encoding="utf-8")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\")


def write_log_settings(file: Path) -> None:
    """Write a Log4j 2 configuration: warnings and errors, to the output."""
    file.write_text(_LOG, encoding="utf-8")


def scram_credentials(users: Mapping[str, str]) -> list[str]:
    """Arguments for `StorageTool format`: the only way to have SCRAM users before the first connection (KIP-900)."""
    return [f"--add-scram={name}=[name={user},password={users[user]}]" for name in _SCRAM for user in users]


def check_users(users: Mapping[str, str], listeners: Collection[Listener]) -> None:
    """Refuse names and passwords that would have to be quoted in a JAAS line, and SASL without anybody to let in."""
    for name, password in users.items():
        for text, more in ((name, "-_"), (password, _PASSWORD_MARKS)):
            if not (text.isascii() and all(letter.isalnum() or letter in more for letter in text) and text):
                raise ValueError(
                    f"users: {text!r}: letters, digits, - and _ only in names; in passwords also {_PASSWORD_MARKS[2:]}"
                )
    if not users and any(name.startswith("SASL") for name in listeners):
        raise ValueError("listeners: SASL needs users={name: password}")


def make_certificate(java: Path, directory: Path) -> Path:
    """Make a key for 127.0.0.1 and localhost with Java's keytool; the PEM file that clients are to trust."""
    keystore, trusted = directory / "keystore.p12", directory / "ca.pem"
    keytool = java.resolve().with_name("keytool")
    store = ["-keystore", str(keystore), "-storetype", "PKCS12", "-storepass", _PASSWORD, "-alias", "kafka"]
    extensions = [
        "-ext",
        "san=ip:127.0.0.1,dns:localhost",
        "-ext",
        "bc:c=ca:true",
        "-ext",
        "ku:c=digitalSignature,keyCertSign",
    ]
    for command in (
        [
            "-genkeypair",
            "-keyalg",
            "EC",
            "-groupname",
            "secp256r1",
            "-validity",
            "30",
            "-dname",
            "CN=localhost",
            *extensions,
        ],
        ["-exportcert", "-rfc", "-file", str(trusted)],
    ):
        done = subprocess.run([str(keytool), *command, *store], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KafkaBrokerError(f"{keytool} {command[0]} failed:\n{(done.stdout + done.stderr).strip()}")
    return trusted
