"""Topics that a stream's operators name by a string: described once per run, however many streams name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..models import Schema

if TYPE_CHECKING:
    from .runs import Declaration, Run
    from .topic import Topic

__all__ = ["alike", "topic_like"]


def topic_like(run: Run, app: Declaration, name: str, schema: Schema, value_type: Any = None) -> Topic[Any]:
    """The topic of this name whose messages travel as those of a stream do.

    Args:
        value_type: another one than that of the schema.
    """
    from .topic import Topic  # topics make streams, and streams name topics

    known: list[tuple[Schema, Any, Topic[Any]]] = run.state(("topics like", app, name), list)
    for as_schema, as_type, topic in known:
        if as_type == value_type and alike(as_schema, schema):
            return topic
    topic = Topic(app, name, value_type=value_type, schema=schema)
    known.append((schema, value_type, topic))
    return topic


def alike(first: Schema, second: Schema) -> bool:
    """Whether what one has encoded comes out of the other as it would out of itself."""
    return first is second or (
        type(first) is type(second) is Schema
        and (first.key_type, first.value_type) == (second.key_type, second.value_type)
        and (first.key_serializer, first.value_serializer) == (second.key_serializer, second.value_serializer)
        and first.allow_empty == second.allow_empty
    )
