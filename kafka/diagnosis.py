"""Why a connection cannot be made: whether it passes by itself, or which option of the URL is wrong.

The client says only that it found no broker. So after a failed start we connect once more ourselves, and where the
broker just hangs up, ask its port without TLS or without a login what it is for. No password is sent that way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Iterator
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.protocol.admin import SaslHandShakeRequest
from aiokafka.protocol.metadata import MetadataRequest

from ..channels.errors import BrokerUnavailable, TransportError
from .errors import CALL_FAILURES, ConnectionMisconfigured
from .settings import KafkaSettings

__all__ = ["diagnose", "keep_passwords_from_log"]

_PATIENCE = 3.0  # seconds for one step; what is said here is worth no longer wait
_TLS_ALERT = 0x15  # first byte of the record with which a TLS server answers what is no TLS (RFC 8446, 5.1)
_WRONG_HOST = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


async def diagnose(settings: KafkaSettings) -> TransportError | None:
    """In asyncio: look for the reason why none of the servers takes us; None: one of them does, or it says nothing.

    The answer is a `ConnectionMisconfigured` where somebody has to change something, else a `BrokerUnavailable`.
    """
    reasons: list[str] = []
    for host, port, _ in collect_hosts(list(settings.servers), randomize=False):
        problem = await _look(settings, host, port)
        if problem is None:
            return None
        if isinstance(problem, ConnectionMisconfigured):
            return problem
        reasons.append(str(problem))
    return BrokerUnavailable("; ".join(reasons)) if reasons else None


async def _look(settings: KafkaSettings, host: str, port: int) -> TransportError | None:
    try:
        connection = await _connect(settings, host, port)
        try:
            await asyncio.wait_for(connection.send(MetadataRequest([])), _PATIENCE)
        finally:
            await _close(connection)
    except (*CALL_FAILURES, ValueError) as error:
        server = f"{host}:{port}"
        if wrong := _explain(error, settings, server) or await _ask_plainly(settings, host, port):
            return ConnectionMisconfigured(f"Kafka at {server} {wrong}")
        return BrokerUnavailable(f"{server}: {_reason(error)}")
    return None


async def _connect(settings: KafkaSettings, host: str, port: int, **other: Any) -> AIOKafkaConnection:
    options = settings.client_options()
    del options["bootstrap_servers"], options["metadata_max_age_ms"]
    options.update(other)
    return await asyncio.wait_for(
        create_conn(host, port, client_id="famulus", request_timeout_ms=round(_PATIENCE * 1000), **options), _PATIENCE
    )


async def _close(connection: AIOKafkaConnection) -> None:
    closed = connection.close()
    if closed is not None:
        await asyncio.wait({closed}, timeout=_PATIENCE)


def _explain(error: BaseException, settings: KafkaSettings, server: str) -> str | None:
    """What an error says for sure."""
    user, mechanism = settings.user, settings.sasl_mechanism
    for cause in _causes(error):
        if isinstance(cause, kafka_errors.SaslAuthenticationFailed):
            return (
                f"does not let user {user!r} in: wrong user or password, or none for {mechanism}; "
                "check them and sasl_mechanism in the broker's URL"
            )
        if isinstance(cause, kafka_errors.UnsupportedSaslMechanismError):
            return f"does not take sasl_mechanism={mechanism}: set the one that it is configured for"
        if isinstance(cause, kafka_errors.IllegalSaslStateError):
            without = "ssl" if settings.with_tls else "plaintext"
            return f"takes no login on this port: give no user, and security={without}; or give the port of its SASL listener"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _bad_certificate(cause, settings, server)
        if isinstance(cause, ssl.SSLError):
            name = cause.reason or ""
            if "CERTIFICATE_REQUIRED" in name or "BAD_CERTIFICATE" in name:
                return "wants a certificate of ours: name the PEM files as ssl_certfile and ssl_keyfile"
            if "UNKNOWN_CA" in name or "CERTIFICATE_UNKNOWN" in name:
                return f"does not accept the certificate in ssl_certfile={settings.ssl_certfile!r} ({name})"
            if "WRONG_VERSION_NUMBER" in name:
                return f"does not speak TLS on this port: {_without_tls(settings)}"
        if isinstance(cause, asyncio.IncompleteReadError) and (cause.expected or 0) >> 24 == _TLS_ALERT:
            return f"speaks TLS on this port: {_with_tls(settings)}"
    return None


def _bad_certificate(error: ssl.SSLCertVerificationError, settings: KafkaSettings, server: str) -> str:
    if error.verify_code in _WRONG_HOST:
        return (
            f"has a certificate for another host ({error.verify_message}): use a name that it is for, or with "
            "ssl_check_hostname=false do without knowing who answers"
        )
    if error.verify_code in _EXPIRED:
        return f"has a certificate that is not valid now ({error.verify_message}): renew it, or set the clock right"
    trusted = f"those in ssl_cafile={settings.ssl_cafile!r}" if settings.ssl_cafile else "those of this system"
    return (
        f"has a certificate from no authority that is trusted here ({error.verify_message}; trusted are {trusted}): "
        "name the PEM file of its authority as ssl_cafile"
    )


async def _ask_plainly(settings: KafkaSettings, host: str, port: int) -> str | None:
    """The port has hung up on us: what does it say to a client without TLS, or without a login?"""
    if settings.with_tls and await _answer(settings, host, port, "PLAINTEXT", None):
        return f"does not speak TLS on this port: {_without_tls(settings)}"
    if settings.with_sasl:
        return None
    security = "SSL" if settings.with_tls else "PLAINTEXT"
    answer = await _answer(settings, host, port, security, SaslHandShakeRequest(settings.sasl_mechanism))
    if answer is None or answer.error_code == kafka_errors.IllegalSaslStateError.errno:
        return None
    offered = " or ".join(sorted(answer.enabled_mechanisms))
    return f"wants a login on this port: give USER:PASSWORD@ before the hosts, and sasl_mechanism={offered}"


async def _answer(settings: KafkaSettings, host: str, port: int, security: str, request: Any) -> Any:
    """The answer to one request, or True if none is to be sent but that for versions; None if there is no answer."""
    try:
        connection = await _connect(settings, host, port, security_protocol=security)
        try:
            return True if request is None else await asyncio.wait_for(connection.send(request), _PATIENCE)
        finally:
            await _close(connection)
    except CALL_FAILURES:
        return None


def _with_tls(settings: KafkaSettings) -> str:
    return f"set security={'sasl_ssl' if settings.with_sasl else 'ssl'}, and its authority's PEM file as ssl_cafile"


def _without_tls(settings: KafkaSettings) -> str:
    security = "sasl_plaintext" if settings.with_sasl else "plaintext"
    return f"give the port of its TLS listener, or security={security}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_PATIENCE:g} s"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # asyncio says it at length
    return str(error) or type(error).__name__


class _Redaction(logging.Filter):
    """The client logs its requests at DEBUG, and SASL/PLAIN sends the password in one."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and any("Sasl" in type(value).__name__ for value in record.args):
            record.args = tuple(
                f"{type(value).__name__}(***)" if "Sasl" in type(value).__name__ else value for value in record.args
            )
        return True


_REDACTION: Final = _Redaction()


def keep_passwords_from_log() -> None:
    """Have aiokafka's log lines about logins show no passwords, whoever listens. Again does nothing."""
    logging.getLogger("aiokafka.conn").addFilter(_REDACTION)
