"""Famulus: actor-model stream processing on trio, with supervision trees under it.

Names are loaded when they are first used, so importing the package is cheap and starts nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .actors.actor import current_agent as current_agent
    from .actors.agent import Agent as Agent
    from .actors.calls import ReplyPromise as ReplyPromise
    from .actors.errors import AgentError as AgentError
    from .actors.errors import AskDeadlock as AskDeadlock
    from .actors.errors import YieldInsideNursery as YieldInsideNursery
    from .actors.info import ActorInfo as ActorInfo
    from .actors.info import AgentInfo as AgentInfo
    from .app.app import App as App
    from .app.client import RunningClient as RunningClient
    from .app.client import open_client as open_client
    from .app.running import RunningApp as RunningApp
    from .app.running import open_app as open_app
    from .app.settings import Settings as Settings
    from .app.topics import TopicManager as TopicManager
    from .app.topics import create_topic as create_topic
    from .channels.channel import Channel as Channel
    from .channels.counters import PartitionStatistics as PartitionStatistics
    from .channels.counters import Statistics as Statistics
    from .channels.errors import AmbiguousRun as AmbiguousRun
    from .channels.errors import AppNotRunning as AppNotRunning
    from .channels.errors import BrokerUnavailable as BrokerUnavailable
    from .channels.errors import BufferFull as BufferFull
    from .channels.errors import CommitRefused as CommitRefused
    from .channels.errors import FamulusError as FamulusError
    from .channels.errors import ImproperlyConfigured as ImproperlyConfigured
    from .channels.errors import MemberReplaced as MemberReplaced
    from .channels.errors import MessageTooLarge as MessageTooLarge
    from .channels.errors import ProduceError as ProduceError
    from .channels.errors import StreamStuck as StreamStuck
    from .channels.errors import TopicExists as TopicExists
    from .channels.errors import TopicMismatch as TopicMismatch
    from .channels.errors import TransportError as TransportError
    from .channels.errors import UnknownTopic as UnknownTopic
    from .channels.event import Event as Event
    from .channels.future import FutureMessage as FutureMessage
    from .channels.hand import current_event as current_event
    from .channels.intake import Intake as Intake
    from .channels.letters import DeadLetter as DeadLetter
    from .channels.message import TP as TP
    from .channels.message import Message as Message
    from .channels.message import RecordMetadata as RecordMetadata
    from .channels.stream import Stream as Stream
    from .channels.topic import Topic as Topic
    from .channels.transport import TopicDescription as TopicDescription
    from .channels.transport import Transport as Transport
    from .models.codecs import Codec as Codec
    from .models.errors import DecodeError as DecodeError
    from .models.errors import EncodeError as EncodeError
    from .models.errors import NotReady as NotReady
    from .models.errors import Unavailable as Unavailable
    from .models.errors import ValidationError as ValidationError
    from .models.record import Record as Record
    from .models.record import field as field
    from .models.registry.client import SchemaRegistry as SchemaRegistry
    from .models.registry.derive import AvroType as AvroType
    from .models.registry.derive import avro_schema as avro_schema
    from .models.schema import Schema as Schema
    from .supervision.backoff import Backoff as Backoff
    from .supervision.errors import SupervisorFailed as SupervisorFailed
    from .supervision.strategies import CrashingSupervisor as CrashingSupervisor
    from .supervision.strategies import OneForAllSupervisor as OneForAllSupervisor
    from .supervision.strategies import OneForOneSupervisor as OneForOneSupervisor
    from .supervision.strategies import RestForOneSupervisor as RestForOneSupervisor
    from .supervision.trees import TreeSpec as TreeSpec
    from .supervision.trees import leaf as leaf
    from .supervision.trees import tree as tree
    from .supervision.view import TreeNode as TreeNode

else:  # type checkers must not see it: they would take any name for one of ours

    def __getattr__(name: str) -> object:
        module = _EXPORTS.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(module, __name__), name)
        return value


_EXPORTS = {
    # an app
    "App": ".app.app",
    "RunningApp": ".app.running",
    "RunningClient": ".app.client",
    "Settings": ".app.settings",
    "open_app": ".app.running",
    "open_client": ".app.client",
    # agents
    "ActorInfo": ".actors.info",
    "Agent": ".actors.agent",
    "ReplyPromise": ".actors.calls",
    "AgentInfo": ".actors.info",
    "current_agent": ".actors.actor",
    # channels
    "Channel": ".channels.channel",
    "Event": ".channels.event",
    "DeadLetter": ".channels.letters",
    "FutureMessage": ".channels.future",
    "Intake": ".channels.intake",
    "Message": ".channels.message",
    "RecordMetadata": ".channels.message",
    "PartitionStatistics": ".channels.counters",
    "Statistics": ".channels.counters",
    "Stream": ".channels.stream",
    "StreamStuck": ".channels.errors",
    "TP": ".channels.message",
    "Topic": ".channels.topic",
    "TopicDescription": ".channels.transport",
    "TopicManager": ".app.topics",
    "Transport": ".channels.transport",
    "create_topic": ".app.topics",
    "current_event": ".channels.hand",
    # values
    "AvroType": ".models.registry.derive",
    "Codec": ".models.codecs",
    "Record": ".models.record",
    "Schema": ".models.schema",
    "SchemaRegistry": ".models.registry.client",
    "avro_schema": ".models.registry.derive",
    "field": ".models.record",
    # supervision; all of it is in famulus.supervision
    "Backoff": ".supervision.backoff",
    "CrashingSupervisor": ".supervision.strategies",
    "OneForAllSupervisor": ".supervision.strategies",
    "OneForOneSupervisor": ".supervision.strategies",
    "RestForOneSupervisor": ".supervision.strategies",
    "TreeNode": ".supervision.view",
    "TreeSpec": ".supervision.trees",
    "leaf": ".supervision.trees",
    "tree": ".supervision.trees",
    # errors
    "AgentError": ".actors.errors",
    "AskDeadlock": ".actors.errors",
    "AmbiguousRun": ".channels.errors",
    "AppNotRunning": ".channels.errors",
    "BrokerUnavailable": ".channels.errors",
    "BufferFull": ".channels.errors",
    "CommitRefused": ".channels.errors",
    "DecodeError": ".models.errors",
    "EncodeError": ".models.errors",
    "FamulusError": ".channels.errors",
    "ImproperlyConfigured": ".channels.errors",
    "MemberReplaced": ".channels.errors",
    "NotReady": ".models.errors",
    "MessageTooLarge": ".channels.errors",
    "ProduceError": ".channels.errors",
    "SupervisorFailed": ".supervision.errors",
    "TopicExists": ".channels.errors",
    "TopicMismatch": ".channels.errors",
    "TransportError": ".channels.errors",
    "Unavailable": ".models.errors",
    "UnknownTopic": ".channels.errors",
    "ValidationError": ".models.errors",
    "YieldInsideNursery": ".actors.errors",
}

__all__ = [  # noqa: RUF022  # in groups
    # an app
    "App",
    "RunningApp",
    "RunningClient",
    "Settings",
    "open_app",
    "open_client",
    # agents
    "ActorInfo",
    "Agent",
    "ReplyPromise",
    "AgentInfo",
    "current_agent",
    # channels
    "Channel",
    "Event",
    "DeadLetter",
    "FutureMessage",
    "Intake",
    "Message",
    "PartitionStatistics",
    "RecordMetadata",
    "Statistics",
    "Stream",
    "TP",
    "Topic",
    "TopicDescription",
    "TopicManager",
    "Transport",
    "create_topic",
    "current_event",
    # values
    "AvroType",
    "Codec",
    "Record",
    "Schema",
    "SchemaRegistry",
    "avro_schema",
    "field",
    # supervision; all of it is in famulus.supervision
    "Backoff",
    "CrashingSupervisor",
    "OneForAllSupervisor",
    "OneForOneSupervisor",
    "RestForOneSupervisor",
    "TreeNode",
    "TreeSpec",
    "leaf",
    "tree",
    # errors
    "AgentError",
    "AmbiguousRun",
    "AppNotRunning",
    "AskDeadlock",
    "BrokerUnavailable",
    "BufferFull",
    "CommitRefused",
    "DecodeError",
    "EncodeError",
    "FamulusError",
    "ImproperlyConfigured",
    "MemberReplaced",
    "NotReady",
    "MessageTooLarge",
    "ProduceError",
    "StreamStuck",
    "SupervisorFailed",
    "TopicExists",
    "TopicMismatch",
    "TransportError",
    "Unavailable",
    "UnknownTopic",
    "ValidationError",
    "YieldInsideNursery",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
