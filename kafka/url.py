"""The URL of a Kafka broker: hosts, who we are, and settings of the connection. Pure.

kafka://host:9092,other:9092?compression=lz4
kafka://user:password@host:9093?security=sasl_ssl&sasl_mechanism=SCRAM-SHA-512&ssl_cafile=/etc/ca.pem
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

from ..channels.errors import ImproperlyConfigured

__all__ = ["DEFAULT_PORT", "SCHEMES", "KafkaSettings", "parse_url"]

SCHEMES: Final = ("kafka", "aiokafka")
DEFAULT_PORT: Final = 9092

_COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
_SECURITY = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_ISOLATION = ("read_committed", "read_uncommitted")


@attrs.frozen(kw_only=True)
class KafkaSettings:
    """What a URL says. All times are in seconds, all sizes in bytes.

    Attributes:
        servers: ``host:port`` of the brokers that are asked for the others.
        user, password: for SASL; never shown.
        security: plaintext, ssl, sasl_plaintext or sasl_ssl; sasl_plaintext when a user is given and nothing else.
        sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        ssl_cafile, ssl_certfile, ssl_keyfile: PEM files; without a CA file the system's are trusted.
        ssl_check_hostname: whether the certificate must be the host's.
        compression: of what we write: none, gzip, snappy, lz4 or zstd.
        isolation: read_committed passes over what aborted transactions wrote.
        metadata_max_age: after which new topics of a pattern and new partitions are noticed.
        partition_fetch_bytes: read ahead of each partition at most; times partitions, it bounds the memory of fetching.
        fetch_wait: that the broker waits for news before it answers an empty fetch.
        connect_timeout: for the first connection.
        request_timeout: for one request and its answer.
        produce_timeout: for a write, before it counts as not answered.
    """

    servers: tuple[str, ...]
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    security: str = "plaintext"
    sasl_mechanism: str = "PLAIN"
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    compression: str = "none"
    isolation: str = "read_committed"
    metadata_max_age: float = 60.0
    partition_fetch_bytes: int = 1_048_576
    fetch_wait: float = 0.05
    connect_timeout: float = 10.0
    request_timeout: float = 15.0
    produce_timeout: float = 15.0

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context, where there is TLS. Reads the files.

        Raises:
            ImproperlyConfigured: a file cannot be read or holds nothing of the kind.
        """
        if not self.security.endswith("ssl"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
            if self.ssl_certfile is not None:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
        except OSError as error:  # ssl.SSLError is one
            raise ImproperlyConfigured(
                f"ssl_cafile={self.ssl_cafile!r}, ssl_certfile={self.ssl_certfile!r}, "
                f"ssl_keyfile={self.ssl_keyfile!r}: {error}"
            ) from error
        context.check_hostname = self.ssl_check_hostname
        return context

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": self.security.upper(),
            "ssl_context": self.ssl_context(),
            "metadata_max_age_ms": round(self.metadata_max_age * 1000),
        }
        if self.security.startswith("sasl"):
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.user
            options["sasl_plain_password"] = self.password
        return options


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _bytes(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _boolean(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        return next(choice for choice in choices if choice.lower() == text.lower())

    return parse


_OPTIONS: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "security": (_one_of(_SECURITY), " or ".join(_SECURITY)),
    "sasl_mechanism": (_one_of(_MECHANISMS), " or ".join(_MECHANISMS)),
    "ssl_cafile": (str, "a path"),
    "ssl_certfile": (str, "a path"),
    "ssl_keyfile": (str, "a path"),
    "ssl_check_hostname": (_boolean, "true or false"),
    "compression": (_one_of(_COMPRESSIONS), " or ".join(_COMPRESSIONS)),
    "isolation": (_one_of(_ISOLATION), " or ".join(_ISOLATION)),
    "metadata_max_age": (_seconds, "seconds above 0"),
    "partition_fetch_bytes": (_bytes, "bytes, at least 1"),
    "fetch_wait": (_seconds, "seconds above 0"),
    "connect_timeout": (_seconds, "seconds above 0"),
    "request_timeout": (_seconds, "seconds above 0"),
    "produce_timeout": (_seconds, "seconds above 0"),
}


def parse_url(url: str) -> KafkaSettings:
    """Take a broker's URL apart.

    Raises:
        ImproperlyConfigured: the message names the part and what was expected, and shows no password.

    >>> parse_url("kafka://one,two:9093?compression=LZ4").servers
    ('one:9092', 'two:9093')
    """
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    shown = url.replace(f"{credentials}@", "***@", 1) if at else url

    def refuse(what: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"broker={shown!r}: {what}")

    if parts.scheme not in SCHEMES or parts.path.strip("/") or parts.fragment:
        raise refuse("expected kafka://HOST:PORT,HOST:PORT?OPTION=VALUE")
    servers = tuple(_server(host, refuse) for host in hosts.split(","))
    user, _, password = credentials.partition(":")
    given: dict[str, Any] = {}
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise refuse(f"{error}: expected OPTION=VALUE&OPTION=VALUE after the question mark") from None
    for name, text in pairs:
        if name not in _OPTIONS:
            raise refuse(f"option {name!r}: expected one of {', '.join(_OPTIONS)}")
        parse, expected = _OPTIONS[name]
        try:
            given[name] = parse(text)
        except (ValueError, KeyError, StopIteration):
            raise refuse(f"option {name}={text!r}: expected {expected}") from None
    if at and "security" not in given:
        given["security"] = "sasl_plaintext"
    settings = KafkaSettings(
        servers=servers, user=unquote(user) if at else None, password=unquote(password) if at else None, **given
    )
    if settings.security.startswith("sasl") != bool(at):
        raise refuse(
            f"security={settings.security}: "
            + ("expected USER:PASSWORD@ before the hosts" if not at else "a user is only given with sasl")
        )
    return settings


def _server(host: str, refuse: Callable[[str], ImproperlyConfigured]) -> str:
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        name, port = None, None
    if not name:
        raise refuse(f"host {host!r}: expected HOST:PORT")
    shown = f"[{name}]" if ":" in name else name
    return f"{shown}:{port or DEFAULT_PORT}"
