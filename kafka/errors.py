"""Foreign errors, mapped once: what aiokafka raises becomes an error of ours that says what to do next.

Everything in `kafka/` that calls aiokafka passes what it catches through `translated`; nothing above this package
knows aiokafka's names.
"""

from __future__ import annotations

import shlex
from typing import Final

from aiokafka import errors as kafka_errors

from ..channels.errors import (
    BrokerUnavailable,
    CommitRefused,
    ImproperlyConfigured,
    MessageTooLarge,
    TopicExists,
    TransportError,
    UnknownTopic,
)

__all__ = [
    "CALL_FAILURES",
    "DAMAGED",
    "GONE",
    "WITHOUT_PRODUCER",
    "ConnectionMisconfigured",
    "StaleProducer",
    "by_code",
    "is_passing",
    "translated",
    "unknown_topic",
]

CALL_FAILURES: Final = (
    kafka_errors.KafkaError,
    kafka_errors.IllegalOperation,
    kafka_errors.ConsumerStoppedError,
    OSError,  # includes TimeoutError, which asyncio's is too
    AssertionError,  # aiokafka asserts what it finds in answers
)
"""What a call of the client may raise."""

GONE: Final = (
    kafka_errors.UnknownMemberIdError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.CommitFailedError,
)
"""The group no longer knows this member, or not under this generation."""

WITHOUT_PRODUCER: Final = (
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.UnknownProducerId,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.ProducerFenced,
    kafka_errors.ProducerClosed,
)
"""The broker no longer accepts what this idempotent producer numbers; a new one is needed."""

DAMAGED: Final = (
    kafka_errors.CorruptRecordException,  # InvalidMessageError, to older readers
    kafka_errors.RecordTooLargeError,
    kafka_errors.UnknownError,  # so brokers answer where a disk fails them
    kafka_errors.KafkaStorageError,
)
"""What one partition holds cannot be read; the others are not concerned."""

_PASSING: Final = (
    kafka_errors.KafkaConnectionError,
    kafka_errors.KafkaTimeoutError,
    kafka_errors.KafkaUnavailableError,
    kafka_errors.BrokerNotAvailableError,
    kafka_errors.ReplicaNotAvailableError,
    OSError,
)

_TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

_AUTHENTICATION: Final = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
)

_AUTHORIZATION: Final = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
)


class ConnectionMisconfigured(TransportError, ImproperlyConfigured):
    """The broker is there and will never talk to us as the URL has it: login, TLS, certificate. Not tried again."""


class StaleProducer(TransportError):
    """The broker has forgotten or replaced our producer; the batch is not written, a new producer will write it."""

    retriable = True


def is_passing(error: BaseException) -> bool:
    """Whether it goes away by itself: no connection, no leader, no coordinator at the moment."""
    return isinstance(error, _PASSING) or bool(getattr(error, "retriable", False))


def by_code(code: int) -> type[kafka_errors.BrokerResponseError] | None:
    """The error that a code in a response stands for; None for success."""
    return None if code == 0 else kafka_errors.for_code(code)


def unknown_topic(topic: str, broker: str) -> UnknownTopic:
    """The error for a topic that the broker at this URL does not have, with the command that creates it."""
    return UnknownTopic(
        f"the broker has no topic {topic!r}: create it with `famulus --broker {shlex.quote(broker)} topics create "
        f"{shlex.quote(topic)} --partitions N`"
    )


def translated(error: BaseException, doing: str) -> TransportError:
    """Our error for one of the client's; `doing` says what was going on, as "committing for group 'shop'"."""
    if isinstance(error, TransportError):
        return error
    reason = f"{doing}: {_name(error)}"
    if isinstance(error, GONE):
        return CommitRefused(f"{reason}; other members own the partitions now")
    if isinstance(error, WITHOUT_PRODUCER):
        return StaleProducer(reason)
    if isinstance(error, kafka_errors.TopicAlreadyExistsError):
        return TopicExists(reason)
    if isinstance(error, _TOO_LARGE):
        return MessageTooLarge(
            f"{reason}; the broker takes no more at once than the topic's max.message.bytes (1 MB by default): raise that, "
            "or where each message alone is smaller, lower our producer_max_batch_bytes to it"
        )
    if isinstance(error, _AUTHENTICATION):
        return TransportError(f"{reason}; check user, password and sasl_mechanism in the broker's URL")
    if isinstance(error, _AUTHORIZATION):
        return TransportError(f"{reason}; the broker's ACLs do not allow it to this user")
    if isinstance(error, kafka_errors.CorruptRecordException):
        return TransportError(
            f"{reason}; its log is damaged on the broker: have that replica made anew from another one, or give up what is "
            "damaged by setting the group's offset behind it, with the workers stopped, as with `kafka-consumer-groups.sh "
            "--reset-offsets --to-offset N`"
        )
    if isinstance(error, kafka_errors.NodeNotReadyError):
        return BrokerUnavailable(
            f"{doing}: a broker of the cluster cannot be connected to: see that it runs, and that the address it gives to "
            "clients (advertised.listeners) can be reached from here; it is tried again"
        )
    if is_passing(error):
        return BrokerUnavailable(f"{reason}; it is tried again")
    return TransportError(reason)


def _name(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return text if text.startswith(name) or name in text else f"{name}: {text}" if text else name
