"""What the codecs of a registry have in common: one for all topics, which gives each topic its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from .client import Registering, SchemaRegistry
from .subjects import SubjectNames

__all__ = ["BoundCodec", "RegistryCodec"]

C = TypeVar("C", bound="BoundCodec")


class BoundCodec(ABC):
    """A codec for the keys or values of one topic, by a registry."""

    complete = False
    """See `NativeCodec`."""

    @abstractmethod
    def dumps(self, obj: Any, /) -> bytes: ...

    @abstractmethod
    def loads(self, data: bytes, /) -> Any: ...


class RegistryCodec(ABC, Generic[C]):
    """A codec for any topic. Used without one it decodes, and encodes where subjects are named after records."""

    format = ""

    def __init__(self, registry: SchemaRegistry, *, subject: SubjectNames, write: Registering, normalize: bool) -> None:
        if write not in ("register", "existing", "latest"):
            raise ValueError(f"write={write!r}: expected 'register', 'existing' or 'latest'")
        if not callable(subject) and subject not in ("topic", "record", "topic_record"):
            raise ValueError(f"subject={subject!r}: expected 'topic', 'record', 'topic_record' or a function")
        self.registry = registry
        self.subject: SubjectNames = subject
        self.write: Registering = write
        self.normalize = normalize
        self._bound: dict[Any, C] = {}

    def for_topic(self, topic: str | None, type: Any, /, *, is_key: bool) -> C:
        """The codec for the keys or values of one topic; the same one each time."""
        try:
            bound = self._bound.get((topic, type, is_key))
        except TypeError:  # a type that can't be hashed
            return self._bind(topic, type, is_key)
        if bound is None:
            bound = self._bound.setdefault((topic, type, is_key), self._bind(topic, type, is_key))
        return bound

    @abstractmethod
    def _bind(self, topic: str | None, type: Any, is_key: bool) -> C: ...

    def dumps(self, obj: Any, /) -> bytes:
        return self.for_topic(None, Any, is_key=False).dumps(obj)

    def loads(self, data: bytes, /) -> Any:
        return self.for_topic(None, Any, is_key=False).loads(data)

    def __repr__(self) -> str:
        return f"<codec {self.format} by {self.registry!r}>"
