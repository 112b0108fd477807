"""TLS and SASL against a real broker: what works, and what is said when it does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest
import trio
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

import famulus
from famulus.channels.errors import BrokerUnavailable, ImproperlyConfigured, TransportError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ConsumerOptions, ProduceResult, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.kafka.errors import ConnectionMisconfigured
from famulus.testing.contract import Recorder
from famulus.testing.contract_kit import Changes, GroupMember, numbered, values
from famulus.testing.kafka_broker import KafkaBroker
from famulus.testing.kafka_settings import Listener

pytestmark = [pytest.mark.slow, pytest.mark.real_time, pytest.mark.hard_timeout(120)]

PASSWORD = "p@ss:w/rd?50%&+#"  # all that has to be escaped in a URL
MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@attrs.frozen
class Secured:
    """A broker with every kind of listener; its SSL one asks for a client's certificate, its SASL_SSL one does not.

    In the clear there is no SCRAM-SHA-256.
    """

    broker: KafkaBroker
    clients: trustme.CA
    directory: Path

    @property
    def ca(self) -> Path:
        assert self.broker.ca is not None
        return self.broker.ca

    def tls(self, options: str = "") -> str:
        """A login by TLS certificate."""
        return f"kafka://{self.broker.address_of('SSL')}?ssl_cafile={self.ca}{options}"

    def sasl_tls(self, mechanism: str = "PLAIN", login: str | None = None, host: str = "127.0.0.1") -> str:
        port = self.broker.address_of("SASL_SSL").rpartition(":")[2]
        login = f"ann:{quote(PASSWORD, safe='')}" if login is None else login
        return f"kafka://{login}@{host}:{port}?sasl_mechanism={mechanism}&ssl_cafile={self.ca}"

    def sasl(self, mechanism: str = "PLAIN", login: str | None = None) -> str:
        login = f"ann:{quote(PASSWORD, safe='')}" if login is None else login
        return f"kafka://{login}@{self.broker.address_of('SASL_PLAINTEXT')}?sasl_mechanism={mechanism}"

    def certificate(self, *, password: bytes | None = None) -> tuple[Path, Path]:
        """PEM files of a client: certificate, and key."""
        issued = self.clients.issue_cert("client@example.org")
        certificate, key = (
            self.directory / "client.pem",
            self.directory / f"client-{'locked' if password else 'open'}.key",
        )
        certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        pem = issued.private_key_pem.bytes()
        if password is not None:
            encryption = BestAvailableEncryption(password)
            pem = load_pem_private_key(pem, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        key.write_bytes(pem)
        return certificate, key


@pytest.fixture(scope="module")
def secured(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("tls")
    clients = trustme.CA()
    clients.cert_pem.write_to_path(str(directory / "clients.pem"))
    settings = {
        "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.ssl.ssl.client.auth": "required",
        "listener.name.ssl.ssl.truststore.type": "PEM",
        "listener.name.ssl.ssl.truststore.location": str(directory / "clients.pem"),
    }
    listeners: list[Listener] = ["SSL", "SASL_PLAINTEXT", "SASL_SSL"]
    with KafkaBroker(listeners=listeners, users={"ann": PASSWORD}, settings=settings) as broker:
        yield Secured(broker, clients, directory)


async def write_and_read(url: str, topic: str) -> list[bytes | None]:
    """Use every kind of client that a transport has."""
    transport, recorder, tp = KafkaTransport(url), Recorder(Changes()), TP(topic, 0)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=topic, partitions=1))
        assert (await transport.produce({tp: numbered(0, 2)}))[tp] == ProduceResult(0)
        receipts = await transport.transact({tp: [ProducerRecord(None, b"2")]}, {}, group=topic, generation=0)
        assert receipts[tp] == ProduceResult(2)
        async with transport.open_consumer(ConsumerOptions(group=topic), recorder) as consumer:
            await consumer.subscribe([topic])
            member = GroupMember(transport, consumer, recorder)
            messages = await member.read(3)
            await member.commit({tp: 3})
            return values(messages)


async def problem(url: str) -> TransportError:
    with pytest.raises(TransportError) as caught:
        async with KafkaTransport(url).open():
            raise AssertionError("connected")
    return caught.value


# What works.


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_user_reads_and_writes_over_tls(secured: Secured, mechanism: str) -> None:
    assert await write_and_read(secured.sasl_tls(mechanism), f"tls-{mechanism}") == [b"0", b"1", b"2"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_user_reads_and_writes_in_the_clear(secured: Secured, mechanism: str) -> None:
    assert await write_and_read(secured.sasl(mechanism), f"clear-{mechanism}") == [b"0", b"1", b"2"]


async def test_a_certificate_of_ours_lets_us_in(secured: Secured) -> None:
    certificate, key = secured.certificate()
    url = secured.tls(f"&ssl_certfile={certificate}&ssl_keyfile={key}")
    assert await write_and_read(url, "mutual") == [b"0", b"1", b"2"]


async def test_the_key_may_be_encrypted(secured: Secured, tmp_path: Path) -> None:
    certificate, key = secured.certificate(password=b"open sesame")
    word, wrong = tmp_path / "word", tmp_path / "wrong"
    word.write_text("open sesame\n", encoding="utf-8")
    wrong.write_text("please\n", encoding="utf-8")
    url = secured.tls(f"&ssl_certfile={certificate}&ssl_keyfile={key}")
    assert await write_and_read(f"{url}&ssl_key_password_file={word}", "encrypted-key") == [b"0", b"1", b"2"]
    with pytest.raises(ImproperlyConfigured, match="the key is encrypted: name the file with its password"):
        KafkaTransport(url)
    with pytest.raises(ImproperlyConfigured, match="does not open the key"):
        KafkaTransport(f"{url}&ssl_key_password_file={wrong}")


async def test_the_password_may_be_in_a_file_or_in_the_environment(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n", encoding="utf-8")
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    for option in (f"password_file={file}", "password_env=SHOP_PASSWORD"):
        async with KafkaTransport(secured.sasl(login="ann") + f"&{option}").open():
            pass


async def test_an_app_works_over_tls_with_a_login(secured: Secured) -> None:
    url = secured.sasl_tls("SCRAM-SHA-512")
    transport = KafkaTransport(url)
    async with transport.open():
        await transport.create_topic(TopicSpec(name="secure-numbers", partitions=2))
    app = famulus.App("secure-shop", broker=url)

    @app.agent(app.topic("secure-numbers", value_type=int))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app):
        with trio.fail_after(30):
            assert await double.ask(21) == 42


# What does not, and what is said.


async def test_an_authority_that_is_not_trusted_is_named(secured: Secured, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    error = await problem(secured.sasl_tls().replace(str(secured.ca), str(other)))
    assert isinstance(error, ConnectionMisconfigured)
    assert (
        f"no authority that is trusted here (self-signed certificate; trusted are those in ssl_cafile='{other}')"
        in str(error)
    )


async def test_a_certificate_for_another_host_is_refused_unless_told_not_to(secured: Secured) -> None:
    url = secured.sasl_tls(host="127.1")  # the same address, and no name in the certificate
    error = await problem(url)
    assert isinstance(error, ConnectionMisconfigured)
    assert "has a certificate for another host" in str(error)
    assert "'127.1'" in str(error)
    async with KafkaTransport(f"{url}&ssl_check_hostname=false").open():
        pass


async def test_a_missing_certificate_of_ours_is_asked_for(secured: Secured) -> None:
    error = await problem(secured.tls())
    assert isinstance(error, ConnectionMisconfigured)
    assert "name the PEM files as ssl_certfile and ssl_keyfile" in str(error)


@pytest.mark.parametrize(
    ("listener", "login", "options", "told"),
    [
        ("SSL", "", "", "speaks TLS on this port: set security=ssl"),
        ("SASL_SSL", "ann:x@", "", "speaks TLS on this port: set security=sasl_ssl"),
        ("PLAINTEXT", "", "security=ssl", "does not speak TLS on this port: give the port of its TLS listener, or s"),
        ("SASL_PLAINTEXT", "ann:x@", "security=sasl_ssl", "or security=sasl_plaintext"),
        ("SASL_PLAINTEXT", "", "", "wants a login on this port: give USER:PASSWORD@"),
        ("SASL_SSL", "", "security=ssl", "sasl_mechanism=PLAIN or SCRAM-SHA-256 or SCRAM-SHA-512"),
        ("PLAINTEXT", "ann:x@", "", "takes no login on this port: give no user, and security=plaintext"),
    ],
)
async def test_the_wrong_kind_of_port_is_an_error_and_no_hang(
    secured: Secured, listener: Listener, login: str, options: str, told: str
) -> None:
    ca = f"&ssl_cafile={secured.ca}" if options.endswith("ssl") else ""
    error = await problem(f"kafka://{login}{secured.broker.address_of(listener)}?{options}{ca}".rstrip("?"))
    assert isinstance(error, ConnectionMisconfigured)
    assert told in str(error)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", ["ann", "nobody"])
async def test_a_wrong_login_names_the_user_and_is_final(secured: Secured, mechanism: str, user: str) -> None:
    error = await problem(secured.sasl_tls(mechanism, f"{user}:not-this-one"))
    assert isinstance(error, ConnectionMisconfigured)
    assert not error.retriable
    assert f"does not let user {user!r} in" in str(error)
    assert "not-this-one" not in str(error)


async def test_a_broker_that_is_away_is_tried_again() -> None:
    error = await problem("kafka://ann:not-this-one@127.0.0.1:1")
    assert isinstance(error, BrokerUnavailable)
    assert "Connection refused" in str(error.__cause__)


async def test_a_mechanism_that_the_broker_does_not_have_is_named(secured: Secured) -> None:
    error = await problem(secured.sasl("SCRAM-SHA-256"))
    assert isinstance(error, ConnectionMisconfigured)
    assert "does not take sasl_mechanism=SCRAM-SHA-256" in str(error)


# Passwords are not shown.


async def test_the_client_logs_no_password(secured: Secured, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(
        logging.DEBUG, "aiokafka"
    )  # which a worker silences, also one that another test runs in this process
    transport = KafkaTransport(secured.sasl("PLAIN"))
    async with transport.open():
        pass
    assert any("SaslAuthenticateRequest" in record.getMessage() for record in caplog.records)
    assert not any(PASSWORD in record.getMessage() for record in caplog.records)
    assert PASSWORD not in repr(transport) + repr(transport.settings)


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_worker_with_a_wrong_password_ends_with_one_line_and_shows_no_password(
    secured: Secured, tmp_path: Path, level: str
) -> None:
    (tmp_path / "shop.py").write_text("import famulus\napp = famulus.App('shop')\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "famulus", "-A", "shop", "worker", "-l", level],
        env={**os.environ, "FAMULUS_BROKER": secured.sasl("PLAIN", "ann:not-this-one")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 1
    (line,) = [line for line in told.splitlines() if line.startswith("Error: ")]
    assert "does not let user 'ann' in" in line
    assert "Traceback" not in told or level == "debug"
    assert "not-this-one" not in told
