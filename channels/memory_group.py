"""Consumer groups of a memory broker: members, generations, assignment, committed offsets.

Groups work as Kafka's do under the eager protocol. A rebalance begins (`ask_rebalance`), every member gives
up what it has and joins, and when the last has joined a new generation begins with a new assignment. Until
then commits under the old generation are taken. A member that has not joined when the longest
`rebalance_timeout` of the group is over is thrown out. Nothing here waits: members are told through
`Member.tell`, and their own task acts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from re import Pattern

import trio

from .errors import CommitRefused
from .message import TP
from .transport import ConsumerOptions

__all__ = ["Member", "MemoryGroup", "Subscription", "assign"]


def assign(wants: Mapping[str, Collection[str]], partitions: Mapping[str, int]) -> dict[str, set[TP]]:
    """Share topics among members: partition `p` goes to the `p`-th of those who want it, counted round.

    Members are taken in the order of their names, so the outcome depends on nothing but the arguments. Topics
    that the same members want are co-partitioned: the same member has the same partitions of each.

    >>> shares = assign({"a": ["t"], "b": ["t"]}, {"t": 3})
    >>> sorted(shares["a"]), sorted(shares["b"])
    ([TP(topic='t', partition=0), TP(topic='t', partition=2)], [TP(topic='t', partition=1)])
    """
    shares: dict[str, set[TP]] = {member: set() for member in wants}
    for topic, count in partitions.items():
        takers = sorted(member for member, topics in wants.items() if topic in topics)
        for number in range(count if takers else 0):
            shares[takers[number % len(takers)]].add(TP(topic, number))
    return shares


class Subscription:
    """What a member wants. Compared by identity where it matters which of two equal ones was granted."""

    __slots__ = ("pattern", "topics")

    def __init__(self, topics: frozenset[str], pattern: Pattern[str] | None) -> None:
        self.topics = topics
        self.pattern = pattern

    def wants(self, topic: str) -> bool:
        """Whether a topic is in it, by name or by pattern."""
        if topic in self.topics:
            return True
        return self.pattern is not None and self.pattern.fullmatch(topic) is not None

    def same_as(self, other: Subscription) -> bool:
        return self.topics == other.topics and self.pattern == other.pattern


class Member:
    """A member as its group sees it.

    Attributes:
        name: what assignments go by: its instance_id, if it has one, so it gets the same partitions again.
        subscription: what it wants now.
        granted: what it wanted when its newest generation began.
        generation: the newest one that it takes part in; -1 before the first.
        owned: the partitions it has under `generation`.
        joined: it has given up what it had, and waits for the rebalance to end.
        thrown_out: why it is no member any more; None while it is one.
        tell: wakes the member's task.
        told_at: when a member that was thrown out learns of it at the latest.
        replaced: another has taken its instance_id, so it may not come back.
    """

    __slots__ = (
        "client_id",
        "generation",
        "granted",
        "id",
        "joined",
        "name",
        "options",
        "owned",
        "replaced",
        "subscription",
        "tell",
        "thrown_out",
        "told_at",
    )

    def __init__(
        self,
        member_id: str,
        client_id: str,
        options: ConsumerOptions,
        subscription: Subscription,
        tell: Callable[[], None],
    ) -> None:
        self.id = member_id
        self.name = options.instance_id or member_id
        self.client_id = client_id
        self.options = options
        self.tell = tell
        self.subscription = subscription
        self.granted: Subscription | None = None
        self.generation = -1
        self.owned: frozenset[TP] = frozenset()
        self.joined = False
        self.thrown_out: str | None = None
        self.told_at = -inf
        self.replaced = False

    def __repr__(self) -> str:
        state = self.thrown_out or f"owns {len(self.owned)}"
        return f"<Member {self.id}: {state}>"


class MemoryGroup:
    """One consumer group.

    Attributes:
        generation: of the last completed rebalance; it only grows, also when the group was empty in between.
        preparing: a rebalance is under way.
        deadline: trio time at which members that have not joined are thrown out; infinite when stable.
    """

    def __init__(self, name: str, partitions: Callable[[], Mapping[str, int]]) -> None:
        self.name = name
        self.generation = 0
        self.preparing = False
        self.deadline = inf
        self.members: dict[str, Member] = {}
        self.committed: dict[TP, int] = {}
        self._partitions = partitions

    # -- members -------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """A member comes. One with the same `instance_id` is replaced by it, for good."""
        mine = member.options.instance_id
        for other in list(self.members.values()):
            if mine is not None and other.options.instance_id == mine:
                why = f"another member has taken over its instance_id {mine!r}"
                self.throw_out(other, why, told_at=-inf, replaced=True)
        self.members[member.id] = member
        self.ask_rebalance()

    def remove(self, member: Member) -> None:
        """A member leaves, having given up what it had."""
        if self.members.pop(member.id, None) is not None:
            self.ask_rebalance()

    def throw_out(self, member: Member, why: str, *, told_at: float, replaced: bool = False) -> None:
        """A member is gone for the group; it learns so at `told_at`, or when it next does something."""
        member.thrown_out = why
        member.replaced = replaced
        member.told_at = told_at
        member.tell()
        self.remove(member)

    def subscribe(self, member: Member, subscription: Subscription) -> None:
        member.subscription = subscription
        self.ask_rebalance()

    def joining(self, member: Member) -> None:
        """A member has given up what it had, and waits for the new generation."""
        member.joined = True
        self._complete_if_all_joined()

    # -- rebalances ----------------------------------------------------------------------------------------

    def ask_rebalance(self) -> None:
        """Begin a rebalance, if none is under way."""
        if not self.members:
            self._settle()
            return
        if not self.preparing:
            self.preparing = True
            self.restart_clock()
            for member in self.members.values():
                member.joined = False
        for member in self.members.values():
            member.tell()
        self._complete_if_all_joined()

    def restart_clock(self) -> None:
        """Give the members that a rebalance waits for their full time from now on."""
        if not self.preparing:
            return
        longest = max((member.options.rebalance_timeout for member in self.members.values()), default=0.0)
        self.deadline = trio.current_time() + longest

    def topics_changed(self, topics: Iterable[str]) -> None:
        """Topics have come, gone or grown: rebalance if somebody wants one of them."""
        members = self.members.values()
        if any(member.subscription.wants(topic) for topic in topics for member in members):
            self.ask_rebalance()

    def check_deadline(self) -> None:
        """Throw out who has not joined in time. Whoever looks at the group calls this first; nobody polls."""
        now = trio.current_time()
        if self.preparing and now >= self.deadline:
            for member in [member for member in self.members.values() if not member.joined]:
                seconds = member.options.rebalance_timeout
                del self.members[member.id]
                member.thrown_out = f"its on_revoked took longer than rebalance_timeout={seconds:g}"
                member.told_at = -inf
                member.tell()
            if not self.members:
                self._settle()
            self._complete_if_all_joined()

    def _settle(self) -> None:
        self.preparing = False
        self.deadline = inf

    def _complete_if_all_joined(self) -> None:
        members = self.members
        if not self.preparing or not members or not all(member.joined for member in members.values()):
            return
        self._settle()
        self.generation += 1
        partitions = self._partitions()
        names = {member.name: member for member in members.values()}
        wants = {
            name: [topic for topic in partitions if member.subscription.wants(topic)] for name, member in names.items()
        }
        shares = assign(wants, partitions)
        for name, member in names.items():
            member.owned = frozenset(shares[name])
            member.granted = member.subscription
            member.generation = self.generation
            member.tell()

    # -- offsets -------------------------------------------------------------------------------------------

    def check_ownership(self, member: Member, partitions: Collection[TP], generation: int) -> None:
        """Whether a member may commit.

        Raises:
            CommitRefused: it may not, for the reason in the message.
        """
        self.check_deadline()
        who = f"group {self.name!r}, member {member.id}"
        if member.thrown_out is not None:
            raise CommitRefused(f"{who}: {member.thrown_out}")
        if generation != self.generation:
            raise CommitRefused(f"{who}: generation {generation} is over, the group is at {self.generation}")
        if member.joined and self.preparing:
            raise CommitRefused(f"{who}: its partitions are revoked, a rebalance is under way")
        foreign = sorted(str(tp) for tp in partitions if tp not in member.owned)
        if foreign:
            raise CommitRefused(f"{who}: does not own {', '.join(foreign)} in generation {generation}")

    def consumes(self, topic: str) -> bool:
        """True if a member wants this topic now."""
        return any(member.subscription.wants(topic) for member in self.members.values())

    def __repr__(self) -> str:
        state = "rebalancing" if self.preparing else "stable" if self.members else "empty"
        return f"<MemoryGroup {self.name} {state} generation={self.generation} members={len(self.members)}>"
