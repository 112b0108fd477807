"""Who reads which topic, by name or by pattern. Pure book-keeping of the conductor, and one pattern made of several."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from re import Pattern
from typing import Final, TypeAlias

import attrs

from .errors import ImproperlyConfigured
from .inbox import BatchInbox

__all__ = ["Interest", "Item", "Readers", "one_pattern", "without_letters"]

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


class Readers:
    """The readers of one run, and for each topic the inboxes that get its messages.

    The list of a topic stays the same object: trackers share it.
    """

    def __init__(self) -> None:
        self._interests: dict[BatchInbox, Interest] = {}
        self._of: dict[str, list[BatchInbox]] = {}

    @property
    def items(self) -> frozenset[Item]:
        """All that somebody wants."""
        return frozenset(item for interest in self._interests.values() for item in interest.items)

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

    def remove(self, inbox: BatchInbox) -> tuple[frozenset[Item], frozenset[str]]:
        """Forget a reader. Returns what nobody wants any more, and which of its topics others go on reading."""
        interest = self._interests.pop(inbox, None)
        if interest is None:
            return frozenset(), frozenset()
        for inboxes in self._of.values():
            if inbox in inboxes:
                inboxes.remove(inbox)
        read_on = frozenset(topic for topic, inboxes in self._of.items() if inboxes and interest.wants(topic))
        return interest.items - self.items, read_on

    def topics_read(self, *, apart_from: Collection[BatchInbox]) -> frozenset[str]:
        """The topics that somebody else reads."""
        return frozenset(
            topic for topic, inboxes in self._of.items() if any(each not in apart_from for each in inboxes)
        )

    def __contains__(self, inbox: BatchInbox) -> bool:
        return inbox in self._interests

    def readers_of(self, topic: str) -> list[BatchInbox]:
        """The inboxes that get the messages of a topic; kept up to date."""
        inboxes = self._of.get(topic)
        if inboxes is None:
            inboxes = self._of[topic] = self._find(topic)
        return inboxes

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
