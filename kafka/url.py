"""The URL of a Kafka broker: hosts, who we are, and settings of the connection. docs/kafka.md explains them. Pure.

kafka://host:9092,other:9092?compression=lz4
kafka://user:password@host:9093?sasl_mechanism=SCRAM-SHA-512&ssl_cafile=/etc/ca.pem
kafka://user@host:9093?security=sasl_ssl&password_file=/run/secrets/kafka
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from ..channels.errors import ImproperlyConfigured
from ..channels.url_options import url_options
from .settings import KafkaSettings

__all__ = ["DEFAULT_PORT", "SCHEMES", "KafkaSettings", "parse_url"]

SCHEMES: Final = ("kafka", "aiokafka")
DEFAULT_PORT: Final = 9092

_COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
_SECURITY = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_ISOLATION = ("read_committed", "read_uncommitted")


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


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


_OPTIONS: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "security": (_one_of(_SECURITY), " or ".join(_SECURITY)),
    "sasl_mechanism": (_one_of(_MECHANISMS), " or ".join(_MECHANISMS)),
    "password_file": (_text, "a path"),
    "password_env": (_text, "the name of an environment variable"),
    "ssl_cafile": (_text, "a path"),
    "ssl_certfile": (_text, "a path"),
    "ssl_keyfile": (_text, "a path"),
    "ssl_key_password_file": (_text, "a path"),
    "ssl_check_hostname": (_boolean, "true or false"),
    "compression": (_one_of(_COMPRESSIONS), " or ".join(_COMPRESSIONS)),
    "acks": (
        _one_of(("all",)),
        "all: fewer would lose and double what is written; the topic's min.insync.replicas says how many",
    ),
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
    shown = _without_password(url)

    def refuse(what: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"broker={shown!r}: {what}")

    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise refuse(f"{error}: {_HOW_TO_WRITE}") from None
    if parts.scheme not in SCHEMES or parts.path.strip("/") or parts.fragment:
        raise refuse(_HOW_TO_WRITE)
    login, at, hosts = parts.netloc.rpartition("@")
    servers = tuple(_server(host, refuse) for host in hosts.split(","))
    user, _, password = login.partition(":")
    given = url_options(parts.query, _OPTIONS, refuse)
    if at:
        given.update(user=unquote(user), password=unquote(password) or None)
    if "security" not in given:
        tls = any(name.startswith("ssl_") for name in given)
        given["security"] = {(0, 0): "plaintext", (0, 1): "ssl", (1, 0): "sasl_plaintext", (1, 1): "sasl_ssl"}[
            bool(at), tls
        ]
    settings = KafkaSettings(servers=servers, url=shown, **given)
    if wrong := _contradiction(settings, given):
        raise refuse(wrong)
    return settings


_HOW_TO_WRITE = (
    "expected kafka://HOST:PORT,HOST:PORT?OPTION=VALUE, or kafka://USER:PASSWORD@HOST:PORT; "
    "in user, password and values, write @ : / ? # [ ] % & as %40 %3A %2F %3F %23 %5B %5D %25 %26"
)


def _without_password(url: str) -> str:
    """For messages, also about a URL that cannot be taken apart because of what is in its password."""
    return re.sub(r"([?&]\w*password=)[^&]*", r"\1***", re.sub("(://[^:]*):.*@", r"\1:***@", url))


def _contradiction(settings: KafkaSettings, given: Mapping[str, Any]) -> str | None:
    """What of the options does not go together."""
    passwords = [name for name in ("password", "password_file", "password_env") if given.get(name) is not None]
    if "user" in given and not settings.with_sasl:
        return f"security={settings.security}: a user is only given with sasl_plaintext or sasl_ssl"
    if "user" not in given and (settings.with_sasl or passwords or "sasl_mechanism" in given):
        name = f"security={settings.security}" if settings.with_sasl else f"option {[*passwords, 'sasl_mechanism'][0]}"
        return f"{name}: expected USER:PASSWORD@ before the hosts, or USER@ and password_file or password_env"
    if settings.with_sasl and (not settings.user or len(passwords) != 1):
        return "expected a user and one password: USER:PASSWORD@ before the hosts, or USER@ and password_file or password_env"
    if not settings.with_tls and (tls := [name for name in given if name.startswith("ssl_")]):
        return f"option {tls[0]}: only for TLS, security=ssl or sasl_ssl, not {settings.security}"
    for name, needed in (("ssl_keyfile", "ssl_certfile"), ("ssl_key_password_file", "ssl_certfile")):
        if name in given and needed not in given:
            return f"option {name}: expected {needed} with it"
    return None


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
