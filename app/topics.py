"""Topics by function call: `create_topic` declares one, `TopicManager` changes those of the broker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from ..channels.arguments import AnyTopicOptions, check_count, topic_config
from ..channels.runs import current_run
from ..channels.topic import Topic
from ..channels.transport import TopicDescription, TopicSpec, Transport
from .declare import Declarations

__all__ = ["TopicManager", "create_topic"]


def create_topic(
    app: Declarations,
    topic: str,
    *,
    replication_factor: int | None = None,
    **options: Unpack[AnyTopicOptions],
) -> Topic[Any]:
    """Declare a topic, as `app.topic` does. Nothing is created at the broker before the app runs, and then only what is ours.

    Args:
        replication_factor: the option `replicas` under its other name.
        options: `partitions`, `config` and the others of `Topic`.

    Raises:
        ImproperlyConfigured: an argument is not what it takes.
    """
    if replication_factor is not None:
        options["replicas"] = replication_factor
    return app.topic(topic, **options)


class TopicManager:
    """The topics of the broker that a running app is connected to: look at them, create, grow and delete them.

    Each call goes to the current run of the app. What it changes, others see at once; nothing here asks back.

    Error handling: a broker that is away raises `BrokerUnavailable`; whether to try again is the caller's business. An app
    that does not run raises `AppNotRunning`.
    """

    def __init__(self, app: Declarations) -> None:
        self._app = app

    @property
    def _transport(self) -> Transport:
        return current_run(self._app._declaration).transport

    async def create_topic(
        self,
        topic: str,
        partitions: int | None = None,
        replication_factor: int | None = None,
        **config: str | float,
    ) -> None:
        """Create a topic; it can be used when this returns.

        Args:
            topic: its name.
            partitions: setting `topic_partitions` by default.
            replication_factor: copies; setting `topic_replication_factor` by default.
            config: the broker's own settings; an underscore stands for a dot: ``retention_ms=60_000``.

        Raises:
            TopicExists: there is one of this name, whatever it is like.
            ImproperlyConfigured: a number is less than 1.
        """
        owner = f"topic {topic!r}"
        check_count(owner, "partitions", partitions)
        check_count(owner, "replication_factor", replication_factor)
        settings = current_run(self._app._declaration).options
        dotted: Mapping[str, str | float] = {name.replace("_", "."): value for name, value in config.items()}
        await self._transport.create_topic(
            TopicSpec(
                name=topic,
                partitions=partitions or settings.topic_partitions,
                replicas=replication_factor or settings.topic_replication_factor,
                config=topic_config(owner, dotted, compacting=None, deleting=None, retention=None),
            )
        )

    async def delete_topic(self, topic: str) -> None:
        """Delete a topic and its messages; it is gone when this returns.

        Raises:
            UnknownTopic: the broker does not have it.
        """
        await self._transport.delete_topic(topic)

    async def add_partitions(self, topic: str, total: int) -> None:
        """Raise a topic's number of partitions to `total`. Keys that are written from then on may go to other partitions.

        Raises:
            UnknownTopic: the broker does not have it.
            ValueError: `total` is not more than it has.
        """
        await self._transport.add_partitions(topic, total)

    async def list_topics(self) -> list[str]:
        """The names of all topics, sorted, the broker's own among them."""
        return list(await self._transport.list_topics())

    async def describe_topic(self, topic: str) -> TopicDescription:
        """A topic's partitions, replicas and configuration.

        Raises:
            UnknownTopic: the broker does not have it.
        """
        return await self._transport.describe_topic(topic)

    def __repr__(self) -> str:
        return f"<TopicManager of {self._app!r}>"
