"""Protobuf messages, in Confluent's wire format: after the schema's id stands which message of the file it is."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError, Message

from .client import Registering, SchemaRegistry, Source
from .codec import BoundCodec, RegistryCodec
from .subjects import SubjectNames, subject_name
from .wire import HEADER, header, schema_id

__all__ = ["ProtobufCodec"]

BUILT_IN = ("google/protobuf/", "google/type/", "confluent/")
"""Files that every registry has."""


class ProtobufCodec(RegistryCodec["_Protobuf"]):
    """See `SchemaRegistry.protobuf`."""

    format = "protobuf"

    def __init__(
        self, registry: SchemaRegistry, message: Any, *, subject: SubjectNames, write: Registering, normalize: bool
    ) -> None:
        super().__init__(registry, subject=subject, write=write, normalize=normalize)
        if not (isinstance(message, type) and issubclass(message, Message)):
            raise TypeError(f"protobuf({message!r}): expected a class of messages, as protoc generates them")
        if write == "latest":
            raise ValueError(
                "write='latest': a Protobuf class writes with its own schema; expected 'register' or 'existing'"
            )
        self.message = message

    def _bind(self, topic: str | None, type: Any, is_key: bool) -> _Protobuf:
        if type not in (Any, None, self.message):
            raise TypeError(
                f"the codec is for {self.message.__name__}: expected that as the topic's type, got {type!r}"
            )
        return _Protobuf(self, topic, is_key)


class _Protobuf(BoundCodec):
    complete = True

    def __init__(self, codec: ProtobufCodec, topic: str | None, is_key: bool) -> None:
        self._codec = codec
        self._topic = topic
        self._is_key = is_key
        self._message: type[Message] = codec.message
        self._start: bytes | None = None

    def __repr__(self) -> str:
        return repr(self._codec)

    def dumps(self, obj: Any, /) -> bytes:
        if not isinstance(obj, self._message):
            raise TypeError(f"it is no {self._message.__name__}")
        payload: bytes = obj.SerializeToString()
        return (self._start or self._first()) + payload

    def _first(self) -> bytes:
        codec = self._codec
        descriptor = self._message.DESCRIPTOR
        subject = subject_name(codec.subject, self._topic, self._is_key, descriptor.full_name)
        source = _source(descriptor.file)
        found = codec.registry.for_writing(subject, source, codec.write, normalize=codec.normalize)
        self._start = header(found.id) + _indexes(descriptor)
        return self._start

    def loads(self, data: bytes, /) -> Any:
        schema_id(data)
        count, place = _varint(data, HEADER)
        for _ in range(count):
            _, place = _varint(data, place)
        message = self._message()
        try:
            message.ParseFromString(data[place:])
        except DecodeError as error:
            raise ValueError(f"no {self._message.__name__}: {error}") from error
        return message


def _source(file: Any) -> Source:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    needs = tuple(
        (needed.name, _source(needed)) for needed in file.dependencies if not needed.name.startswith(BUILT_IN)
    )
    return Source(b64encode(proto.SerializeToString()).decode(), "PROTOBUF", needs)


def _indexes(descriptor: Any) -> bytes:
    """The way to a message from the top of its file, as zigzag varints after their number; the first message is one 0."""
    way: list[int] = []
    inner = descriptor
    while inner is not None:
        outer = inner.containing_type
        siblings = outer.nested_types if outer is not None else list(inner.file.message_types_by_name.values())
        way.insert(0, next(place for place, sibling in enumerate(siblings) if sibling.full_name == inner.full_name))
        inner = outer
    if way == [0]:
        return b"\0"
    return b"".join(_zigzag(number) for number in (len(way), *way))


def _zigzag(number: int) -> bytes:
    """A number that is not negative, as a zigzag varint."""
    rest, out = number << 1, bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The zigzag varint at a place, and the place after it. Raises `ValueError` where there is none."""
    number = 0
    for shift in range(0, 35, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number & 1:
                break
            return number >> 1, place
    raise ValueError("after the schema id: expected the indexes of a Protobuf message")
