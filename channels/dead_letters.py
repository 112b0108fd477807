"""Dead letters: messages that could not be processed, kept as they were in a topic beside theirs, with what was wrong.

What cannot be decoded comes here from its subscription (`on_decode_error`), what its agent failed on from the agents'
layer (`on_failure`). The offset of the message waits until its letter is delivered.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .errors import TransportError
from .future import FutureMessage
from .message import Message
from .provisioning import provide_topic
from .transport import TopicSpec

if TYPE_CHECKING:
    from .channel import Channel
    from .runs import Run

__all__ = ["LETTERS", "bury", "error_facts", "is_dead_letter", "settle_undecodable"]

log = logging.getLogger("famulus.topic")

LETTERS: Final = ".dead-letter"  # what the name of a topic of letters ends with
_MARK: Final = "famulus-dead-letter"  # header: the topic that the letter was written to
_PREFIX: Final = "famulus-dead-letter-"
_LONGEST: Final = 8192  # characters of one fact: the letter must not become larger than the broker takes


def bury(
    run: Run,
    message: Message,
    facts: Mapping[str, str],
    *,
    value: bytes | None,
    topic: str | None = None,
) -> None:
    """Send a message's key, value and headers to the dead letters. Never waits; sent even beyond the producer's bounds.

    Takes over one hold on the message, and gives it up when the letter is delivered. A dead letter makes no further one: it
    is given up as it is, since the log that it came from has it.

    Args:
        facts: become headers of the letter, their names after ``famulus-dead-letter-``; of one that is long, the end. Those
            of an earlier letter, which was sent back, are left out.
        value: the message's own, or where no log has it, what stands for it.
        topic: of the letter; the message's own with ``.dead-letter`` by default. Created when missing.
    """
    if is_dead_letter(message):
        message.release()
        return
    name = topic or f"{message.topic}{LETTERS}"
    run.producer.declare.setdefault(name, lambda: _provide(run, name))
    facts = {_MARK: name, **{f"{_PREFIX}{fact}": text[-_LONGEST:] for fact, text in facts.items()}}
    about = tuple((header, text.encode(errors="backslashreplace")) for header, text in facts.items())
    own = tuple(
        (header, text) for header, text in message.headers if header != _MARK and not header.startswith(_PREFIX)
    )

    def buried(future: FutureMessage) -> None:
        try:
            future.result()
        except TransportError as reason:  # the run has ended: the producer gives it up for nothing else
            log.error("the dead letter for %s@%d was not delivered: %s", message.tp, message.offset, reason)
        else:
            run.counters.dead_letters += 1
            message.release()

    letter = FutureMessage(name, message.key, value, (*own, *about), time.time(), callback=buried)
    letter.persistent = True
    run.producer.enqueue(letter, partition=None, beyond_bounds=True)


async def _provide(run: Run, name: str) -> None:
    options = run.options
    spec = TopicSpec(name=name, partitions=options.topic_partitions, replicas=options.topic_replication_factor)
    if await provide_topic(run.transport, spec, partitions=None):
        log.info("created topic %s", name)


def error_facts(message: Message, error: BaseException) -> dict[str, str]:
    """What every letter says: where the message was, and what was wrong with it."""
    return {
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "error-type": f"{type(error).__module__}.{type(error).__qualname__}",
        "error-message": str(error),
    }


def is_dead_letter(message: Message) -> bool:
    """Whether a message was read as a dead letter. One that was sent on to another topic is none any more."""
    return any(name == _MARK and text == message.topic.encode() for name, text in message.headers)


async def settle_undecodable(
    run: Run, channel: Channel[Any], message: Message, part: str, error: Exception, *, reader: str
) -> None:
    """Do what the channel says about a message that cannot be decoded. What its handlers raise is logged.

    A dead letter that cannot be decoded is skipped, so that a reader of letters makes no letters of letters.
    """
    policy = channel.on_decode_error
    if policy == "dead_letter" and not is_dead_letter(message):
        message.refcount += 1  # before anything waits: whatever is cancelled, the letter is on its way
        facts = {**error_facts(message, error), "part": part, "reader": reader}
        bury(run, message, facts, value=message.value, topic=channel.dead_letter)
    hook = channel.on_key_decode_error if part == "key" else channel.on_value_decode_error
    for handler in (hook, policy):
        if callable(handler):
            try:
                result = handler(error, message)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                where = f"{message.tp}@{message.offset}"
                log.exception("%s: the handler of its undecodable %s raised; it is skipped", where, part)
    if policy == "dead_letter":
        await run.producer.wait_room()  # letters go beyond its bounds, but their reader does not run ahead
