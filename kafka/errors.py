"""Foreign errors, mapped once: what aiokafka raises becomes an error of ours that says what to do next.

Everything in `kafka/` that calls aiokafka passes what it catches through `translated`; nothing above this package
knows aiokafka's names.
"""

from __future__ import annotations

from typing import Final

from aiokafka import errors as kafka_errors

from ..channels.errors import BrokerUnavailable, CommitRefused, ProduceError, TopicExists, TransportError, UnknownTopic

__all__ = [
    "CALL_FAILURES",
    "GONE",
    "WITHOUT_PRODUCER",
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


class StaleProducer(TransportError):
    """The broker has forgotten or replaced our producer; the batch is not written, a new producer will write it."""

    retriable = True


def is_passing(error: BaseException) -> bool:
    """Whether it goes away by itself: no connection, no leader, no coordinator at the moment."""
    return isinstance(error, _PASSING) or bool(getattr(error, "retriable", False))


def by_code(code: int) -> type[kafka_errors.BrokerResponseError] | None:
    """The error that a code in a response stands for; None for success."""
    return None if code == 0 else kafka_errors.for_code(code)


def unknown_topic(topic: str) -> UnknownTopic:
    """The error for a topic that the broker does not have, with the command that creates it."""
    return UnknownTopic(
        f"the broker has no topic {topic!r}: create it with `kafka-topics.sh --bootstrap-server HOST:PORT --create "
        f"--topic {topic} --partitions N`, or with the transport's create_topic()"
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
        return ProduceError(f"{reason}; send less at once, or raise the topic's max.message.bytes")
    if isinstance(error, _AUTHENTICATION):
        return TransportError(f"{reason}; check user, password and sasl_mechanism in the broker's URL")
    if isinstance(error, _AUTHORIZATION):
        return TransportError(f"{reason}; the broker's ACLs do not allow it to this user")
    if isinstance(error, kafka_errors.CorruptRecordException):
        return TransportError(f"{reason}; the log of the partition is damaged on the broker")
    if is_passing(error):
        return BrokerUnavailable(f"{reason}; it is tried again")
    return TransportError(reason)


def _name(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return text if text.startswith(name) or name in text else f"{name}: {text}" if text else name
