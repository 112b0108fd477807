"""Who reads which topic, by name or by pattern. Pure book-keeping of the conductor, and one pattern made of several."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from re import Pattern
from typing import Final, Protocol, TypeAlias

import attrs

from .errors import ImproperlyConfigured
from .inbox import BatchInbox
from .message import TP, Message

__all__ = ["Interest", "Item", "Readers", "Split", "one_pattern", "without_letters"]

Item: TypeAlias = "str | Pattern[str]"
"""What can be subscribed to: a topic by its name, or all whose whole name matches a pattern."""

_FLAGS: Final = {re.ASCII: "a", re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s", re.VERBOSE: "x"}


@attrs.frozen
class Interest:
    """What one reader wants: topics by name, and those that match a pattern, which may come later."""

    topics: frozenset[str]
    pattern: Pattern[str] | None = None

    @property
    def items(self) -> frozenset[Item]:
        return self.topics if self.pattern is None else self.topics | {self.pattern}

    def wants(self, topic: str) -> bool:
        return topic in self.topics or (self.pattern is not None and self.pattern.fullmatch(topic) is not None)


class Split(Protocol):
    """A reader that has an inbox for each partition number."""

    def part(self, partition: int) -> BatchInbox: ...

    @property
    def parts(self) -> Collection[BatchInbox]: ...

    def assigned(self, partitions: Iterable[TP]) -> None: ...

    def close(self) -> list[Message]: ...

    def __hash__(self) -> int: ...


class Readers:
    """The readers of one run, and for each topic, or partition, the inboxes that get its messages.

    The list of a topic stays the same object: trackers share it. A partition that somebody reads by itself has its own.
    """

    def __init__(self) -> None:
        self._interests: dict[BatchInbox, Interest] = {}
        self._splits: dict[Split, Interest] = {}
        self._of: dict[str, list[BatchInbox]] = {}
        self._of_partition: dict[TP, list[BatchInbox]] = {}

    @property
    def items(self) -> frozenset[Item]:
        """All that somebody wants."""
        interests = [*self._interests.values(), *self._splits.values()]
        return frozenset(item for interest in interests for item in interest.items)

    @property
    def of(self) -> Mapping[str, list[BatchInbox]]:
        """The inboxes of each topic that was asked for yet."""
        return self._of

    def add(self, interest: Interest, inbox: BatchInbox) -> None:
        self._interests[inbox] = interest
        for topic in interest.topics:
            self._of.setdefault(topic, self._find(topic))
        for topic, inboxes in self._of.items():
            if inbox not in inboxes and interest.wants(topic):
                inboxes.append(inbox)
        self._renew()

    def add_split(self, interest: Interest, split: Split) -> None:
        self._splits[split] = interest

    def remove_split(self, split: Split) -> tuple[frozenset[Item], frozenset[str]]:
        """See `remove`."""
        interest = self._splits.pop(split, None)
        if interest is None:
            return frozenset(), frozenset()
        self._renew()
        topics = {tp.topic for tp in self._of_partition} | self._of.keys()
        read_on = frozenset(topic for topic in topics if interest.wants(topic) and self._is_read(topic))
        return interest.items - self.items, read_on

    def remove(self, inbox: BatchInbox) -> tuple[frozenset[Item], frozenset[str]]:
        """Forget a reader. Returns what nobody wants any more, and which of its topics others go on reading."""
        interest = self._interests.pop(inbox, None)
        if interest is None:
            return frozenset(), frozenset()
        for inboxes in self._of.values():
            if inbox in inboxes:
                inboxes.remove(inbox)
        self._renew()
        read_on = frozenset(topic for topic in self._of if interest.wants(topic) and self._is_read(topic))
        return interest.items - self.items, read_on

    def topics_read(self, *, apart_from: Collection[BatchInbox]) -> frozenset[str]:
        """The topics that somebody else reads."""
        others = [
            interest for split, interest in self._splits.items() if not any(part in apart_from for part in split.parts)
        ]
        return frozenset(
            topic
            for topic, inboxes in self._of.items()
            if any(each not in apart_from for each in inboxes) or any(other.wants(topic) for other in others)
        )

    def __contains__(self, inbox: object) -> bool:
        return inbox in self._interests or inbox in self._splits

    def assigned(self, partitions: Collection[TP]) -> None:
        """These are ours now."""
        self._of_partition = {tp: inboxes for tp, inboxes in self._of_partition.items() if tp in partitions}
        for split, interest in self._splits.items():
            split.assigned(tp for tp in partitions if interest.wants(tp.topic))

    def readers_of(self, tp: TP) -> list[BatchInbox]:
        """The inboxes that get the messages of a partition; kept up to date."""
        inboxes = self._of.get(tp.topic)
        if inboxes is None:
            inboxes = self._of[tp.topic] = self._find(tp.topic)
        if any(interest.wants(tp.topic) for interest in self._splits.values()):
            inboxes = self._of_partition.setdefault(tp, [])
            self._fill(tp, inboxes)
        return inboxes

    def _renew(self) -> None:
        for tp, inboxes in self._of_partition.items():
            self._fill(tp, inboxes)

    def _fill(self, tp: TP, inboxes: list[BatchInbox]) -> None:
        parts = [split.part(tp.partition) for split, interest in self._splits.items() if interest.wants(tp.topic)]
        inboxes[:] = [*self._of[tp.topic], *parts]

    def _is_read(self, topic: str) -> bool:
        return bool(self._of.get(topic)) or any(interest.wants(topic) for interest in self._splits.values())

    def _find(self, topic: str) -> list[BatchInbox]:
        return [inbox for inbox, interest in self._interests.items() if interest.wants(topic)]


def one_pattern(items: Collection[Item]) -> Pattern[str] | None:
    r"""One pattern for whole names that match any of these; names stand for themselves. None where there is nothing.

    >>> both = one_pattern([re.compile("(?i)orders-.."), re.compile("# European ones\n.*-eu", re.VERBOSE), "a.b"])
    >>> [name for name in ("ORDERS-us", "x-eu", "X-EU", "a.b", "aXb", "orders-usa") if both.fullmatch(name)]
    ['ORDERS-us', 'x-eu', 'a.b']

    Raises:
        ImproperlyConfigured: one of several patterns refers to its own groups, which have other numbers among others.
    """
    patterns = sorted(
        {item for item in items if not isinstance(item, str)}, key=lambda item: (item.pattern, item.flags)
    )
    parts = [_part(pattern, alone=len(patterns) == 1) for pattern in patterns]
    parts += map(re.escape, sorted(item for item in items if isinstance(item, str)))
    return re.compile("|".join(parts)) if parts else None


def without_letters(pattern: Pattern[str], *others: str) -> Pattern[str]:
    r"""The pattern, but for topics of dead letters, unless it speaks of them itself; nor does it match these other names.

    >>> orders = without_letters(re.compile("(?i)orders.*"), "graveyard")
    >>> [name for name in ("Orders", "orders-eu", "orders.dead-letter") if orders.fullmatch(name)]
    ['Orders', 'orders-eu']
    >>> without_letters(re.compile(r".*\.dead-letter")).fullmatch("orders.dead-letter") is None
    False
    """
    if re.search(r"dead\\?-letter", pattern.pattern):
        return pattern
    names = "|".join([r".*\.dead-letter", *map(re.escape, others)])
    return re.compile(rf"(?!(?:{names})\Z){_part(pattern, alone=True)}")


def _part(pattern: Pattern[str], *, alone: bool) -> str:
    """A pattern's source with its flags, to stand beside others."""
    source = re.sub(r"^\(\?[aiLmsux]+\)", "", pattern.pattern)  # flags for the whole: they stand at the start
    if not alone:
        if re.search(r"\\[1-9]|\(\?P=|\(\?\(", source):
            raise ImproperlyConfigured(
                f"pattern {pattern.pattern!r} refers to groups of its own (as in \\1), which does not go together with the "
                "other patterns of one app: write it without"
            )
        source = re.sub(r"(?<!\\)\(\?P<\w+>", "(?:", source)  # two patterns may have groups of one name
    flags = "".join(letter for flag, letter in _FLAGS.items() if pattern.flags & flag)
    end = "\n" if pattern.flags & re.VERBOSE else ""  # it may end in a comment
    return f"(?{flags}:{source}{end})"
