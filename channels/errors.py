"""Errors of the messaging layers, each raised at one seam and saying what to do next.

Transports map the errors of their client to the ones in the second group, once, at their own seam;
everything above them knows only these names.
"""

from __future__ import annotations

__all__ = [
    "AmbiguousRun",
    "AppNotRunning",
    "BrokerUnavailable",
    "BufferFull",
    "CommitRefused",
    "FamulusError",
    "ImproperlyConfigured",
    "MemberReplaced",
    "MessageTooLarge",
    "ProduceError",
    "StreamStuck",
    "TopicExists",
    "TopicMismatch",
    "TransportError",
    "UnknownTopic",
]


class FamulusError(Exception):
    """Base of the errors that Famulus raises about itself and its brokers."""


class ImproperlyConfigured(FamulusError, ValueError):
    """A declaration or a setting that cannot work; the message names it and what was expected."""


class AppNotRunning(FamulusError, RuntimeError):
    """A declared object was used while its App has no live run in this trio run."""


class AmbiguousRun(FamulusError, RuntimeError):
    """A declared object was used outside a run's tasks while its App has several live runs."""


class BufferFull(FamulusError):
    """`send_soon` found its buffer full. It cannot wait: use `await send(...)`, or send less."""


class StreamStuck(FamulusError):
    """An agent took longer over an event than `stream_watchdog_timeout`, and has to stop (`stream_watchdog_action`)."""


class TransportError(FamulusError):
    """Base of what a transport raises.

    Attributes:
        retriable: True when the same call may succeed later without anyone changing anything.
        in_doubt: True when it is not known whether what was asked for was done: a message that failed with such an error
            may have been written. False: it was not.
    """

    retriable = False
    in_doubt = False


class BrokerUnavailable(TransportError):
    """The broker cannot be reached at the moment."""

    retriable = True


class UnknownTopic(TransportError):
    """The broker has no such topic."""


class TopicExists(TransportError):
    """The broker already has a topic of this name."""


class TopicMismatch(ImproperlyConfigured, TransportError):
    """The broker has a topic of ours with other partitions or another configuration than declared; it says what mends it."""


class ProduceError(TransportError):
    """A message was not written, or nobody can say (`in_doubt`). It is final: all retries that are made have been made."""


class MessageTooLarge(ProduceError):
    """A message, or a batch of several, is larger than its topic takes."""


class CommitRefused(TransportError):
    """The broker refused a commit: this member no longer owns the partitions (it was fenced).

    It means *lost*: what is in hand belongs to somebody else now; discard, do not drain.
    """


class MemberReplaced(TransportError):
    """The group has given this static member's place away, or has forgotten it: its process must end.

    It must not join again: two processes under one `consumer_group_instance_id` would evict each other for ever.
    """
