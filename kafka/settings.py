"""What a transport knows of its broker: hosts, who we are, how to connect. Made from a URL by `url.py`.

The files and variables that the settings name are read by `check`, and again for each client that is made.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import attrs

from ..channels.errors import ImproperlyConfigured

__all__ = ["KafkaSettings"]


@attrs.frozen(kw_only=True)
class KafkaSettings:
    """What a URL says. All times are in seconds, all sizes in bytes.

    Attributes:
        servers: ``host:port`` of the brokers that are asked for the others.
        url: the whole of it, without passwords, for messages.
        user, password: for SASL; the password is never shown.
        password_file, password_env: the file, or the environment variable, that holds the password instead.
        security: plaintext, ssl, sasl_plaintext or sasl_ssl; by default sasl where there is a user, ssl where there is
            any option of TLS.
        sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        ssl_cafile: PEM file with the authorities to trust; without it those of the system.
        ssl_certfile, ssl_keyfile: PEM files with our own certificate and its key, for brokers that ask for one.
        ssl_key_password_file: holds the password of an encrypted key.
        ssl_check_hostname: whether the certificate must be the host's.
        compression: of what we write: none, gzip, snappy, lz4 or zstd.
        acks: whose word a write waits for: all, that is, as many replicas as the topic's min.insync.replicas says.
        isolation: read_committed passes over what aborted transactions wrote.
        metadata_max_age: after which new topics of a pattern and new partitions are noticed.
        partition_fetch_bytes: read ahead of each partition at most; times partitions, it bounds the memory of fetching.
        fetch_wait: that the broker waits for news before it answers an empty fetch.
        connect_timeout: for the first connection.
        request_timeout: for one request and its answer.
        produce_timeout: for a write, before it counts as not answered.
    """

    servers: tuple[str, ...]
    url: str = attrs.field(default="kafka://HOST:PORT", eq=False)
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    password_file: str | None = None
    password_env: str | None = None
    security: str = "plaintext"
    sasl_mechanism: str = "PLAIN"
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_key_password_file: str | None = None
    ssl_check_hostname: bool = True
    compression: str = "none"
    acks: str = "all"
    isolation: str = "read_committed"
    metadata_max_age: float = 60.0
    partition_fetch_bytes: int = 1_048_576
    fetch_wait: float = 0.05
    connect_timeout: float = 10.0
    request_timeout: float = 15.0
    produce_timeout: float = 15.0

    @property
    def with_tls(self) -> bool:
        return self.security.endswith("ssl")

    @property
    def with_sasl(self) -> bool:
        return self.security.startswith("sasl")

    def check(self) -> None:
        """See that the files and variables are there and hold what they should.

        Raises:
            ImproperlyConfigured: one does not.
        """
        self.client_options()

    def login_password(self) -> str:
        """The password for SASL, from wherever it is.

        Raises:
            ImproperlyConfigured: the file or the variable is not there, or empty.
        """
        if self.password_file is not None:
            return _secret_in("password_file", self.password_file)
        if self.password_env is not None:
            if value := os.environ.get(self.password_env):
                return value
            raise ImproperlyConfigured(
                f"option password_env={self.password_env!r}: expected an environment variable that holds the password of "
                f"user {self.user!r}; it is not set, or empty"
            )
        return self.password or ""

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context, where there is TLS. Reads the files.

        Raises:
            ImproperlyConfigured: a file cannot be read or holds nothing of the kind.
        """
        if not self.with_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
        except OSError as error:  # ssl.SSLError is one
            raise ImproperlyConfigured(
                f"option ssl_cafile={self.ssl_cafile!r}: expected a PEM file with certificates: {error}"
            ) from error
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_certfile is not None:
            self._load_certificate(context, self.ssl_certfile)
        return context

    def _load_certificate(self, context: ssl.SSLContext, certfile: str) -> None:
        encrypted = False

        def password() -> str:  # without it, OpenSSL would ask at the terminal
            nonlocal encrypted
            encrypted = True
            return "" if self.ssl_key_password_file is None else secret

        file = self.ssl_key_password_file
        secret = "" if file is None else _secret_in("ssl_key_password_file", file)
        try:
            context.load_cert_chain(certfile, self.ssl_keyfile, password)
        except (OSError, ValueError) as error:  # ValueError: no password, or one that is too long
            given = f"ssl_certfile={certfile!r}, ssl_keyfile={self.ssl_keyfile!r}"
            if encrypted:
                wrong = "the key is encrypted: name the file with its password as"
                if file is not None:
                    wrong = "the password does not open the key; it is the one in"
                raise ImproperlyConfigured(f"options {given}: {wrong} ssl_key_password_file={file or 'PATH'}") from None
            raise ImproperlyConfigured(
                f"options {given}: expected PEM files with a certificate and the key that belongs to it: {error}"
            ) from error

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes. Reads the files and variables.

        Raises:
            ImproperlyConfigured: one is not there, or holds nothing of the kind.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": self.security.upper(),
            "ssl_context": self.ssl_context(),
            "metadata_max_age_ms": round(self.metadata_max_age * 1000),
        }
        if self.with_sasl:
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.user
            options["sasl_plain_password"] = self.login_password()
        return options


def _secret_in(option: str, path: str) -> str:
    """What a file holds, without the line's end that editors add."""
    try:
        secret = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        raise ImproperlyConfigured(f"option {option}={path!r}: expected a file with a password: {error}") from error
    if not secret:
        raise ImproperlyConfigured(f"option {option}={path!r}: expected a file with a password; it is empty")
    return secret
