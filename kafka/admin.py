"""Administration of topics. Answers carry error codes where other clients raise: each one is looked at here.

Every change is awaited until the brokers' metadata shows it. Nothing here asks about a topic by name in a way
that lets the broker create it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import attrs
import trio
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from ..channels.errors import BrokerUnavailable, TopicExists, TransportError
from ..channels.message import TP, some_names
from ..channels.transport import TopicDescription, TopicSpec
from .bridge import Bridge
from .errors import CALL_FAILURES, by_code, is_passing, translated, unknown_topic
from .settings import KafkaSettings

__all__ = ["KafkaAdmin", "TopicMetadata", "command_to"]

_POLL = 0.05  # seconds between two looks whether a change is visible
_GLANCE = 2.0  # seconds that a broker has to answer whether it shows a change


@attrs.frozen
class TopicMetadata:
    """A topic as a broker's metadata have it. `ready`: each partition has a leader."""

    name: str
    partitions: int
    replicas: int
    internal: bool
    ready: bool


def command_to(
    settings: KafkaSettings,
    change: Literal["grow", "configure", "delete"],
    topic: str,
    *,
    partitions: int = 0,
    config: Mapping[str, str] | None = None,
) -> str:
    """The command that changes a topic: ours, or where we have none the one that comes with Kafka. See `Transport.command_to`."""
    if change == "configure":
        pairs = ",".join(
            f"{name}=[{value}]" if "," in value else f"{name}={value}" for name, value in (config or {}).items()
        )
        return (
            f"kafka-configs.sh --bootstrap-server {settings.servers[0]} --alter --entity-type topics "
            f"--entity-name {topic} --add-config {pairs}"
        )
    topics = f"famulus --broker {shlex.quote(settings.url)} topics"
    if change == "delete":
        return f"{topics} delete {shlex.quote(topic)}"
    return f"{topics} add-partitions {shlex.quote(topic)} --total {partitions}"


class KafkaAdmin:
    """Topics of one cluster, over one started admin client. May be used by several tasks."""

    def __init__(self, bridge: Bridge, client: AIOKafkaAdminClient, *, timeout: float, broker: str) -> None:
        self._bridge = bridge
        self._client = client
        self._timeout = timeout
        self._broker = broker

    async def _bounded(self, doing: str, function: Callable[..., Any], *args: Any, within: float | None = None) -> Any:
        """Call the client; its errors, and no answer in time, become ours."""
        within = self._timeout if within is None else within
        with trio.move_on_after(within):
            try:
                return await self._bridge.call(function, *args)
            except CALL_FAILURES as error:
                raise translated(error, doing) from error
        raise BrokerUnavailable(f"{doing}: no answer within {within:g} s; it is tried again")

    # -- looking -------------------------------------------------------------------------------------------

    async def _metadata(self, topics: list[str] | None, node: int | None) -> Any:
        # `describe_topics` would let the broker create what is missing.
        return await self._client._send_request(MetadataRequest(topics, allow_auto_topic_creation=False), node)

    async def topics(
        self, names: Sequence[str] | None = None, *, within: float | None = None, node: int | None = None
    ) -> dict[str, TopicMetadata]:
        """What the cluster has of these topics, or all; those that do not exist are left out.

        Args:
            within: seconds to wait for an answer, if not the usual ones.
            node: the broker to ask; any one by default.
        """
        doing = "listing topics" if names is None else f"looking at {', '.join(names)}"
        asked = None if names is None else list(names)
        response = (await self._bounded(doing, self._metadata, asked, node, within=within)).to_object()
        found: dict[str, TopicMetadata] = {}
        for topic in response["topics"]:
            error = by_code(topic["error_code"])
            if error in (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.InvalidTopicError):
                continue
            if error is not None and not is_passing(error()):
                raise translated(error(), f"looking at {topic['topic']}")
            partitions = topic["partitions"]
            found[topic["topic"]] = TopicMetadata(
                name=topic["topic"],
                partitions=len(partitions),
                replicas=max((len(partition["replicas"]) for partition in partitions), default=0),
                internal=topic["is_internal"],
                ready=error is None and bool(partitions) and all(each["leader"] >= 0 for each in partitions),
            )
        return found

    async def topic(self, name: str) -> TopicMetadata:
        """One topic.

        Raises:
            UnknownTopic: the cluster does not have it.
        """
        found = await self.topics([name])
        if name not in found:
            raise unknown_topic(name, self._broker)
        return found[name]

    async def _until(self, name: str, visible: Callable[[TopicMetadata | None], bool]) -> None:
        """Wait until every broker shows a change; one that does not answer is left out, unless none does."""
        with trio.move_on_after(self._timeout):
            while not visible((await self.topics([name])).get(name)):
                await trio.sleep(_POLL)
            for node in sorted(self._client._client.cluster.brokers(), key=lambda node: node.nodeId):
                with suppress(BrokerUnavailable):
                    while not visible((await self.topics([name], node=node.nodeId, within=_GLANCE)).get(name)):
                        await trio.sleep(_POLL)
            return
        raise BrokerUnavailable(f"{name}: the change was accepted, but is not visible within {self._timeout:g} s")

    async def describe(self, name: str) -> TopicDescription:
        topic = await self.topic(name)
        doing = f"describing {name}"
        responses = await self._bounded(doing, self._describe_configs, name)
        config: dict[str, str] = {}
        for response in responses:
            for code, message, _, _, entries in response.resources:
                error = by_code(code)
                if error is kafka_errors.UnknownTopicOrPartitionError:
                    raise unknown_topic(name, self._broker)
                if error is not None:
                    raise translated(error(message), doing)
                config.update((entry[0], entry[1]) for entry in entries if entry[1] is not None)
        return TopicDescription(
            name=name, partitions=topic.partitions, replicas=topic.replicas, config=config, internal=topic.internal
        )

    async def _describe_configs(self, name: str) -> Any:
        return await self._client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])

    async def committed(self, group: str, partitions: Collection[TP]) -> dict[TP, int | None]:
        """What a group has committed."""
        asked = [TopicPartition(*tp) for tp in partitions]
        doing = f"looking up what group {group!r} has committed"
        found = await self._bounded(doing, self._committed, group, asked) if asked else {}
        offsets = {TP(*tp): entry.offset for tp, entry in found.items()}
        return {tp: None if offsets.get(tp, -1) < 0 else offsets[tp] for tp in partitions}

    async def _committed(self, group: str, asked: list[TopicPartition]) -> Any:
        return await self._client.list_consumer_group_offsets(group, partitions=asked)

    # -- changing ------------------------------------------------------------------------------------------

    async def create(self, spec: TopicSpec, partitions: int) -> None:
        doing = f"creating topic {spec.name!r}"
        response = await self._bounded(doing, self._create, spec, partitions)
        for name, code, *message in response.topic_errors:
            error = by_code(code)
            if error is kafka_errors.TopicAlreadyExistsError:
                raise TopicExists(f"the broker already has a topic {name!r}")
            if error is not None:
                raise translated(error(*message), doing)
        await self._until(spec.name, lambda topic: topic is not None and topic.ready and topic.partitions == partitions)

    async def _create(self, spec: TopicSpec, partitions: int) -> Any:
        topic = NewTopic(spec.name, partitions, spec.replicas or 1, topic_configs=dict(spec.config))
        return await self._client.create_topics([topic])

    async def delete(self, name: str) -> None:
        doing = f"deleting topic {name!r}"
        response = await self._bounded(doing, self._delete, name)
        for _, code in response.topic_error_codes:
            error = by_code(code)
            if error is kafka_errors.UnknownTopicOrPartitionError:
                raise unknown_topic(name, self._broker)
            if error is not None:
                raise translated(error(), doing)
        await self._until(name, lambda topic: topic is None)

    async def _delete(self, name: str) -> Any:
        return await self._client.delete_topics([name])

    async def add_partitions(self, name: str, total: int) -> None:
        has = (await self.topic(name)).partitions
        if total <= has:
            raise ValueError(f"topic {name!r} has {has} partitions: expected more than that, not {total}")
        try:
            await self._bounded(f"adding partitions to {name!r}", self._add_partitions, name, total)
        except TransportError as error:
            if isinstance(error.__cause__, kafka_errors.InvalidPartitionsError):  # somebody was faster
                raise ValueError(str(error)) from error
            raise
        await self._until(name, lambda topic: topic is not None and topic.ready and topic.partitions >= total)

    async def _add_partitions(self, name: str, total: int) -> Any:
        return await self._client.create_partitions({name: NewPartitions(total)})

    async def delete_records(self, before: Mapping[TP, int]) -> None:
        if not before:
            return
        try:
            await self._bounded(f"trimming {some_names(before)}", self._delete_records, dict(before))
        except BrokerUnavailable:
            # Of a partition that is not there, or that we may not see, it says that nobody leads it.
            topics = {tp.topic for tp in before}
            missing = topics.difference(await self.topics(sorted(topics)))
            if missing:
                raise unknown_topic(min(missing), self._broker) from None
            raise

    async def _delete_records(self, before: dict[TP, int]) -> Any:
        return await self._client.delete_records(
            {TopicPartition(*tp): RecordsToDelete(before_offset=offset) for tp, offset in before.items()}
        )
