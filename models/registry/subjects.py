"""Subjects: the names under which a registry keeps the versions of a schema. Confluent's three strategies, or your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["SubjectNames", "subject_name"]

SubjectNames = Literal["topic", "record", "topic_record"] | Callable[[str | None, bool, str | None], str]
"""How subjects are named.

- `"topic"` (TopicNameStrategy): `orders-value`, `orders-key`; one schema for each topic.
- `"record"` (RecordNameStrategy): `shop.Order`; one for each type, in all topics.
- `"topic_record"` (TopicRecordNameStrategy): `orders-shop.Order`; several types in a topic, each topic apart.
- a function of the topic (None where there is none), whether it is for keys, and the record's full name (None where the
  schema has no name).
"""


def subject_name(names: SubjectNames, topic: str | None, is_key: bool, record: str | None) -> str:
    """The subject of a schema.

    Raises `ValueError` when there is no name to be made.
    """
    if callable(names):
        return names(topic, is_key, record)
    if names != "record" and topic is None:
        raise ValueError(f'subject="{names}" needs a topic: send through one, or use subject="record"')
    if names == "topic":
        return f"{topic}-{'key' if is_key else 'value'}"
    if record is None:
        raise ValueError(
            f'subject="{names}" needs a schema that has a name, such as a record\'s; or use subject="topic"'
        )
    return record if names == "record" else f"{topic}-{record}"
