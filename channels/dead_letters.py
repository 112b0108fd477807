"""Dead letters: messages that could not be processed, kept as they were in a topic beside theirs, with what was wrong.

What cannot be decoded comes here from its subscription (`on_decode_error`), what its agent failed on from the agents'
layer (`on_failure`). The offset of the message waits until its letter is delivered.
"""

from __future__ import annotations

import inspect
import logging
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .errors import TransportError
from .future import DeliveryCallback, FutureMessage
from .letters import LETTERS, MARK, about, is_dead_letter, own_headers, replays_of
from .message import Headers, Message
from .provisioning import provide_topic
from .transport import TopicSpec

if TYPE_CHECKING:
    from .channel import Channel
    from .runs import Run

__all__ = ["bury", "error_facts", "error_text", "settle_undecodable"]

log = logging.getLogger("famulus.topic")

_LONGEST: Final = 8192  # characters of one fact
_SHORTEST: Final = 400  # the same, in a letter that has to be smaller


class _Letter(FutureMessage):
    """A dead letter on its way. It is never given up while the run lives; what is too large for its topic becomes smaller.

    First the texts are cut; then what a replay gets from the message's log is left out: the value, and as the last the key
    and the headers too. Where no log has the message that is lost, and said so: kept here it would be lost with the run, and
    what it was made of would wait until then.
    """

    __slots__ = ("_facts", "_message", "_stage")

    def __init__(
        self, topic: str, message: Message, value: bytes | None, facts: Mapping[str, str], callback: DeliveryCallback
    ) -> None:
        super().__init__(topic, message.key, value, (), time.time(), callback=callback)
        self.persistent = True
        self._message = message
        self._facts = {fact: text[-_LONGEST:] for fact, text in facts.items()}
        self._stage = 0
        self._write_headers(own_headers(message.headers))

    def _write_headers(self, own: Headers) -> None:
        self.headers = (*own, (MARK, self.topic.encode(errors="backslashreplace")), *about(self._facts))

    def shrink(self) -> bool:
        if self._stage == 3:
            return False
        self._stage += 1
        own = own_headers(self._message.headers)
        if self._stage == 1:
            self._facts = {fact: text[-_SHORTEST:] for fact, text in self._facts.items()}
            done = "its texts are cut"
        elif self._stage == 2:
            self._facts |= {"left-out": "value", "size": str(len(self.value or b""))}
            self.value = None
            done = "its value is left out"
        else:
            self._facts["left-out"] = "value key headers"
            self.key, own = None, ()
            done = "its key and headers are left out too"
        self._write_headers(own)
        where = f"{self._message.tp}@{self._message.offset}"
        in_log = self._message.offset >= 0
        if self._stage == 1:
            then = ""
        elif in_log:
            then = f", as long as its log has it the message is at {where}"
        else:
            then = ", and lost, since no log has them"
        log.log(
            logging.WARNING if in_log or self._stage == 1 else logging.ERROR,
            "the dead letter for %s is too large for topic %s: %s%s",
            where,
            self.topic,
            done,
            then,
        )
        return True


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
            of an earlier letter, which was sent back, are left out, but for the number of times that it was.
        value: the message's own, or where no log has it, what stands for it.
        topic: of the letter; the message's own with ``.dead-letter`` by default. Created when missing.
    """
    if is_dead_letter(message):
        message.release()
        return
    name = topic or f"{message.topic}{LETTERS}"
    run.producer.declare.setdefault(name, lambda: _provide(run, name))
    replays = replays_of(message.headers)
    if replays:
        facts = {**facts, "replays": str(replays)}

    def buried(future: FutureMessage) -> None:
        try:
            future.result()
        except TransportError as reason:  # the run has ended: the producer gives it up for nothing else
            log.error("the dead letter for %s@%d was not delivered: %s", message.tp, message.offset, reason)
        else:
            run.counters.dead_letters += 1
            message.release()

    letter = _Letter(name, message, value, facts, buried)
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
        "timestamp": repr(message.timestamp),
        "error-type": f"{type(error).__module__}.{type(error).__qualname__}",
        "error-message": error_text(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def error_text(error: BaseException) -> str:
    """What an error says, whatever its `__str__` does: the letter must be written."""
    try:
        return str(error)
    except Exception as trouble:
        return f"<the error's text cannot be had: its __str__ raised {type(trouble).__name__}>"


async def settle_undecodable(
    run: Run, channel: Channel[Any], message: Message, part: str, error: Exception, *, reader: str
) -> None:
    """Do what the channel says about a message that cannot be decoded. What its handlers raise is logged.

    A dead letter that cannot be decoded is skipped, so that a reader of letters makes no letters of letters.
    """
    policy = channel.on_decode_error
    if policy == "dead_letter" and not is_dead_letter(message):
        message.refcount += 1  # before anything waits: whatever is cancelled, the letter is on its way
        facts = {**error_facts(message, error), "part": part, "reader": reader, "attempts": "1"}
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
        await run.producer.wait_caught_up()  # letters go beyond its bounds, but their reader does not run ahead
