"""Consumer groups in the tables: members, generations, assignment, committed offsets. Functions for one transaction each.

Groups work as Kafka's do under the eager protocol, as those of `memory://` do. A rebalance begins (`ask_rebalance`),
every member gives up what it has and joins (`let_go`), and when the last has joined a new generation begins with a new
assignment. Until then commits under the old generation are taken. Nothing waits here and nothing looks at a clock:
members look at `View`s, and who has to be thrown out is for them to find (`Consumer`'s membership).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from re import Pattern
from typing import Any, Final

import attrs

from ..errors import CommitRefused
from ..memory_group import assign
from ..message import TP
from ..transport import ConsumerOptions
from .log import partition_counts

__all__ = [
    "Subscription",
    "View",
    "ask_rebalance",
    "check_ownership",
    "commit",
    "committed",
    "enter",
    "leave",
    "let_go",
    "resubscribe",
    "stands_at",
    "starts",
    "throw_out",
    "throw_out_late",
    "topics_changed",
    "view",
]

_IN: Final = "consumer_group = ? AND gone IS NULL"


@attrs.frozen
class Subscription:
    """What a member wants: topics by name, and all whose whole name matches the pattern."""

    topics: frozenset[str]
    pattern: Pattern[str] | None = None

    def as_text(self) -> str:
        """For the table, since whichever process completes a rebalance has to know."""
        pattern = self.pattern and [self.pattern.pattern, int(self.pattern.flags)]
        return json.dumps({"topics": sorted(self.topics), "pattern": pattern})

    @classmethod
    def of_text(cls, text: str) -> Subscription:
        found: dict[str, Any] = json.loads(text)
        pattern = found["pattern"]
        return cls(frozenset(found["topics"]), re.compile(*pattern) if pattern else None)

    def wants(self, topic: str) -> bool:
        if topic in self.topics:
            return True
        return self.pattern is not None and self.pattern.fullmatch(topic) is not None


# -- members -----------------------------------------------------------------------------------------------------


def enter(
    db: sqlite3.Connection,
    subscription: Subscription,
    wish: int,
    *,
    peer: str,
    client: str,
    options: ConsumerOptions,
) -> int:
    """A member comes, and gets a number that was never used. One with its `instance_id` is replaced, for good.

    A peer has one member in a group: an earlier one, which has been thrown out or knows nothing of it, is forgotten.
    """
    db.execute("DELETE FROM members WHERE consumer_group = ? AND peer = ?", (options.group, peer))
    db.execute("INSERT OR IGNORE INTO consumer_groups (name) VALUES (?)", (options.group,))
    if options.instance_id is not None:
        why = f"another member has taken over its instance_id {options.instance_id!r}"
        db.execute(
            f"UPDATE members SET gone = ?, replaced = 1 WHERE {_IN} AND instance = ?",
            (why, options.group, options.instance_id),
        )
    member = db.execute(
        "INSERT INTO members (consumer_group, peer, client, instance, wish, topics, session_timeout, rebalance_timeout) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            options.group,
            peer,
            client,
            options.instance_id,
            wish,
            subscription.as_text(),
            options.session_timeout,
            options.rebalance_timeout,
        ),
    ).lastrowid
    assert member is not None, "an insert has a row"
    ask_rebalance(db, options.group)
    return member


def resubscribe(db: sqlite3.Connection, member: int, subscription: Subscription, wish: int) -> None:
    """A member wants something else."""
    db.execute("UPDATE members SET topics = ?, wish = ? WHERE id = ?", (subscription.as_text(), wish, member))
    group = _group_of(db, member)
    if group is not None:
        ask_rebalance(db, group)


def let_go(db: sqlite3.Connection, member: int) -> None:
    """A member has given up what it had, and waits for the new generation."""
    db.execute("UPDATE members SET joined = 1 WHERE id = ?", (member,))
    group = _group_of(db, member)
    if group is not None:
        _complete_if_all_joined(db, group)


def leave(db: sqlite3.Connection, group: str, peer: str) -> None:
    """A peer's member has given up what it had, and goes; also one that was thrown out, having learnt of it."""
    was_in = db.execute(f"SELECT 1 FROM members WHERE {_IN} AND peer = ?", (group, peer)).fetchone()
    db.execute("DELETE FROM members WHERE consumer_group = ? AND peer = ?", (group, peer))
    if was_in:
        ask_rebalance(db, group)


def throw_out(db: sqlite3.Connection, member: int, why: str) -> None:
    """A member is none any more, and learns so when it next looks."""
    group = _group_of(db, member)
    if group is None:
        return
    db.execute("UPDATE members SET gone = ? WHERE id = ?", (why, member))
    ask_rebalance(db, group)


def throw_out_late(db: sqlite3.Connection, group: str, round_: int) -> None:
    """The time of a rebalance is over: who has not joined is out. Does nothing if that rebalance is over."""
    state = db.execute("SELECT round, preparing FROM consumer_groups WHERE name = ?", (group,)).fetchone()
    if state != (round_, 1):
        return
    db.execute(
        "UPDATE members SET gone = 'its on_revoked took longer than rebalance_timeout=' || rebalance_timeout "
        f"WHERE {_IN} AND NOT joined",
        (group,),
    )
    if not _settle_if_empty(db, group):
        _complete_if_all_joined(db, group)


def _group_of(db: sqlite3.Connection, member: int) -> str | None:
    """Its group, unless it is out."""
    found = db.execute("SELECT consumer_group FROM members WHERE id = ? AND gone IS NULL", (member,)).fetchone()
    return None if found is None else str(found[0])


# -- rebalances --------------------------------------------------------------------------------------------------


def ask_rebalance(db: sqlite3.Connection, group: str) -> None:
    """Begin a rebalance, if none is under way."""
    if _settle_if_empty(db, group):
        return
    (preparing,) = db.execute("SELECT preparing FROM consumer_groups WHERE name = ?", (group,)).fetchone()
    if not preparing:
        db.execute("UPDATE consumer_groups SET preparing = 1, round = round + 1 WHERE name = ?", (group,))
        db.execute(f"UPDATE members SET joined = 0 WHERE {_IN}", (group,))
    _complete_if_all_joined(db, group)


def topics_changed(db: sqlite3.Connection, name: str) -> None:
    """A topic has come, gone or grown: rebalance the groups in which somebody wants it."""
    rows = db.execute("SELECT consumer_group, topics FROM members WHERE gone IS NULL").fetchall()
    for group in sorted({group for group, topics in rows if Subscription.of_text(topics).wants(name)}):
        ask_rebalance(db, group)


def _settle_if_empty(db: sqlite3.Connection, group: str) -> bool:
    if db.execute(f"SELECT 1 FROM members WHERE {_IN}", (group,)).fetchone():
        return False
    db.execute("UPDATE consumer_groups SET preparing = 0 WHERE name = ?", (group,))
    return True


def _complete_if_all_joined(db: sqlite3.Connection, group: str) -> None:
    """Begin the next generation when nobody is waited for any more."""
    rows = db.execute(f"SELECT id, instance, topics, joined FROM members WHERE {_IN} ORDER BY id", (group,)).fetchall()
    if not rows or not all(joined for *_, joined in rows):
        return
    db.execute("UPDATE consumer_groups SET preparing = 0, generation = generation + 1 WHERE name = ?", (group,))
    (generation,) = db.execute("SELECT generation FROM consumer_groups WHERE name = ?", (group,)).fetchone()
    partitions = partition_counts(db)
    wants: dict[str, list[str]] = {}
    ids: dict[str, int] = {}
    for member, instance, topics, _ in rows:
        # By its instance_id it gets the same partitions again; otherwise who came first comes first, and keeps what it has.
        name = instance or f"{member:020d}"
        subscription = Subscription.of_text(topics)
        ids[name] = member
        wants[name] = [topic for topic in partitions if subscription.wants(topic)]
    shares = assign(wants, partitions)
    for name, member in ids.items():
        db.execute(
            "UPDATE members SET generation = ?, granted = wish, owned = ? WHERE id = ?",
            (generation, json.dumps(sorted(shares[name])), member),
        )


# -- what a member sees --------------------------------------------------------------------------------------------


@attrs.frozen
class View:
    """A group as one of its members sees it.

    Attributes:
        preparing: a rebalance is under way, the `round`-th.
        gone: why the member is out; None while it is in. `replaced`: for good.
        joined: it waits for the rebalance to end.
        generation, granted, owned: its newest assignment, and the wish which that fulfils.
        peers: the other members: number, peer, session timeout.
        longest: seconds that the slowest member may take to let go.
    """

    round: int
    preparing: bool
    gone: str | None
    replaced: bool
    joined: bool
    generation: int
    granted: int
    owned: frozenset[TP]
    peers: Sequence[tuple[int, str, float]]
    longest: float


def view(db: sqlite3.Connection, group: str, member: int) -> View:
    """Look at a group as this member."""
    mine = db.execute(
        "SELECT g.round, g.preparing, m.gone, m.replaced, m.joined, m.generation, m.granted, m.owned, m.rebalance_timeout "
        "FROM members m JOIN consumer_groups g ON g.name = m.consumer_group WHERE m.id = ?",
        (member,),
    ).fetchone()
    if mine is None:
        return View(0, False, "the broker does not know it any more", False, False, -1, 0, frozenset(), (), 0.0)
    round_, preparing, gone, replaced, joined, generation, granted, owned, longest = mine
    others = db.execute(
        f"SELECT id, peer, session_timeout, rebalance_timeout FROM members WHERE {_IN} AND id <> ?", (group, member)
    ).fetchall()
    return View(
        round_,
        bool(preparing),
        gone,
        bool(replaced),
        bool(joined),
        generation,
        granted,
        frozenset(TP(topic, number) for topic, number in json.loads(owned)),
        [(other, peer, session) for other, peer, session, _ in others],
        max([longest, *(seconds for *_, seconds in others)]),
    )


# -- offsets -------------------------------------------------------------------------------------------------------


def check_ownership(
    db: sqlite3.Connection, group: str, member: int, partitions: Collection[TP], generation: int
) -> None:
    """Whether a member may commit now.

    Raises:
        CommitRefused: it may not, for the reason in the message.
    """
    who = f"group {group!r}, member {member}"
    found = db.execute(
        "SELECT m.gone, m.joined, m.owned, m.generation, g.generation, g.preparing FROM members m "
        "JOIN consumer_groups g ON g.name = m.consumer_group WHERE m.id = ?",
        (member,),
    ).fetchone()
    if found is None:
        raise CommitRefused(f"{who}: the broker does not know it any more")
    gone, joined, owned, its_generation, current, preparing = found
    if gone is not None:
        raise CommitRefused(f"{who}: {gone}")
    if generation != current or generation != its_generation:
        raise CommitRefused(f"{who}: generation {generation} is over, the group is at {current}")
    if joined and preparing:
        raise CommitRefused(f"{who}: its partitions are revoked, a rebalance is under way")
    mine = {TP(topic, number) for topic, number in json.loads(owned)}
    foreign = sorted(str(tp) for tp in partitions if tp not in mine)
    if foreign:
        raise CommitRefused(f"{who}: does not own {', '.join(foreign)} in generation {generation}")


def commit(db: sqlite3.Connection, group: str, offsets: Mapping[int, int]) -> None:
    """Store what a group has committed, by the ids of the partitions that were read.

    Of a topic that was deleted meanwhile nothing is kept: there may be another of its name, whose offsets are others.
    """
    db.executemany(
        "INSERT OR REPLACE INTO committed (consumer_group, partition, next) SELECT ?, id, ? FROM partitions WHERE id = ?",
        [(group, offset, id_) for id_, offset in offsets.items()],
    )


def stands_at(db: sqlite3.Connection, group: str, offsets: Mapping[int, int]) -> bool:
    """Whether this is what a group has committed, by the ids of the partitions."""
    asked = "SELECT 1 FROM committed WHERE consumer_group = ? AND partition = ? AND next = ?"
    return all(db.execute(asked, (group, id_, offset)).fetchone() for id_, offset in offsets.items())


def committed(db: sqlite3.Connection, group: str, partitions: Iterable[TP]) -> dict[TP, int | None]:
    """What a group has committed."""
    found: dict[TP, int | None] = {}
    for tp in partitions:
        row = db.execute(
            "SELECT c.next FROM topics t JOIN partitions p ON p.topic = t.id JOIN committed c ON c.partition = p.id "
            "WHERE t.name = ? AND p.number = ? AND c.consumer_group = ?",
            (*tp, group),
        ).fetchone()
        found[tp] = None if row is None else row[0]
    return found


def starts(db: sqlite3.Connection, group: str, partitions: Iterable[TP]) -> dict[TP, tuple[int, int, int, int | None]]:
    """Id, first, next and committed offset of partitions; those that are gone are left out."""
    found: dict[TP, tuple[int, int, int, int | None]] = {}
    offsets = committed(db, group, partitions)
    for tp, offset in offsets.items():
        row = db.execute(
            "SELECT p.id, p.first, p.next FROM topics t JOIN partitions p ON p.topic = t.id "
            "WHERE t.name = ? AND p.number = ?",
            tp,
        ).fetchone()
        if row is not None:
            found[tp] = (*row, offset)
    return found
