"""Avro by fastavro, in Confluent's wire format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import fastavro
import orjson

from ..classes import is_class_like
from ..hints import type_name
from .avro_values import preparing
from .client import Found, Registering, SchemaRegistry, Source, bounded
from .codec import BoundCodec, RegistryCodec
from .derive import avro_schema
from .subjects import SubjectNames, subject_name
from .wire import HEADER, header, schema_id

__all__ = ["AvroCodec"]

Write = Callable[[Any], bytes]
Read = Callable[[bytes], Any]


class AvroCodec(RegistryCodec["_Avro"]):
    """See `SchemaRegistry.avro`."""

    format = "avro"

    def __init__(
        self,
        registry: SchemaRegistry,
        schema: Any,
        *,
        subject: SubjectNames,
        write: Registering,
        namespace: str,
        normalize: bool,
    ) -> None:
        super().__init__(registry, subject=subject, write=write, normalize=normalize)
        self.namespace = namespace
        self.schema: Any = None
        if isinstance(schema, type):
            schema = avro_schema(schema, namespace=namespace)
        if schema is not None:
            self.schema = _given(schema)

    def _bind(self, topic: str | None, type: Any, is_key: bool) -> _Avro:
        return _Avro(self, topic, type, is_key)


class _Avro(BoundCodec):
    """The codec of one topic. What it has worked out for a schema stays in two dicts, so a message costs a look-up."""

    def __init__(self, codec: AvroCodec, topic: str | None, type: Any, is_key: bool) -> None:
        self._codec = codec
        self._topic = topic
        self._type = type
        self._is_key = is_key
        # One schema for all values; or one for each class, where types share the topic or the type says nothing.
        self._by_class = codec.schema is None and (codec.subject != "topic" or not _says_something(type))
        self._write: Write | None = None
        self._writes: dict[type, Write] = {}
        self._reads: dict[int, Read] = {}

    def __repr__(self) -> str:
        return repr(self._codec)

    # -- encoding ------------------------------------------------------------------------------------------

    def dumps(self, obj: Any, /) -> bytes:
        write = self._writes.get(obj.__class__) if self._by_class else self._write
        if write is None:
            write = self._first_write(obj.__class__)
        return write(obj)

    def _first_write(self, cls: type) -> Write:
        codec = self._codec
        schema = codec.schema
        if codec.write == "latest" and codec.subject == "topic":
            subject, source = subject_name("topic", self._topic, self._is_key, None), None
        else:
            if schema is None:
                schema = self._derived(cls)
            subject = subject_name(codec.subject, self._topic, self._is_key, _full_name(schema))
            source = None if codec.write == "latest" else Source(orjson.dumps(schema).decode(), "AVRO")
        found = codec.registry.for_writing(subject, source, codec.write, normalize=codec.normalize)
        write = self._write = _writer(found)
        if self._by_class:
            bounded(self._writes)[cls] = write
        return write

    def _derived(self, cls: type) -> Any:
        if not self._by_class:
            return avro_schema(self._type, namespace=self._codec.namespace)
        if not is_class_like(cls):
            raise ValueError(
                f"there is no schema for {type_name(cls)}: give the topic a value_type, or the codec one, avro(schema=...)"
            )
        return avro_schema(cls, namespace=self._codec.namespace)

    # -- decoding ------------------------------------------------------------------------------------------

    def loads(self, data: bytes, /) -> Any:
        id = schema_id(data)
        read = self._reads.get(id)
        if read is None:
            found = self._codec.registry.schema(id)
            read = bounded(self._reads)[id] = _reader(found, self._codec.schema, self._codec.registry.where)
        return read(data)


def _says_something(tp: Any) -> bool:
    return tp is not Any and tp is not None


def _given(schema: Any) -> Any:
    """A schema that was given, as plain data. Raises `ValueError` for one that is none."""
    try:
        plain = orjson.loads(schema) if isinstance(schema, str | bytes) else schema
        _parse(plain, ())
    except Exception as error:
        raise ValueError(f"avro(schema=...): expected an Avro schema, got {schema!r}: {error}") from error
    return plain


def _full_name(schema: Any) -> str | None:
    """The name of a record, with its namespace."""
    if not isinstance(schema, dict) or "name" not in schema:
        return None
    name, namespace = schema["name"], schema.get("namespace")
    return f"{namespace}.{name}" if namespace and "." not in name else str(name)


def _parse(schema: Any, referred: tuple[tuple[str, str], ...]) -> tuple[Any, Mapping[str, Any]]:
    named: dict[str, Any] = {}
    for _, text in referred:
        fastavro.parse_schema(orjson.loads(text), named)
    parsed = fastavro.parse_schema(schema, named)
    if referred:
        # fastavro would forget them wherever the whole is no record: define each where it first stands.
        parsed, named = _whole(parsed, named, set()), {}
        parsed = fastavro.parse_schema(parsed, named)
    return parsed, named


def _whole(schema: Any, named: Mapping[str, Any], defined: set[str]) -> Any:
    """A parsed schema with all that it refers to inside."""
    if isinstance(schema, list):
        return [_whole(branch, named, defined) for branch in schema]
    if isinstance(schema, str):
        return schema if schema in defined else _whole(named[schema], named, defined) if schema in named else schema
    schema = {key: value for key, value in schema.items() if not key.startswith("__")}
    if "name" in schema:
        if schema["name"] in defined:
            return schema["name"]
        defined.add(schema["name"])
    for part in ("items", "values"):
        if part in schema:
            schema[part] = _whole(schema[part], named, defined)
    if "fields" in schema:
        schema["fields"] = [{**field, "type": _whole(field["type"], named, defined)} for field in schema["fields"]]
    return schema


def _parse_found(found: Found) -> tuple[Any, Mapping[str, Any]]:
    try:
        return _parse(orjson.loads(found.text), found.referred)
    except Exception as error:
        raise ValueError(f"schema {found.id} is no Avro schema that fastavro takes: {error}") from error


def _writer(found: Found) -> Write:
    schema, named = _parse_found(found)
    prepare, start, encode = preparing(schema, named), header(found.id), fastavro.schemaless_writer

    def write(value: Any) -> bytes:
        out = BytesIO()
        out.write(start)
        encode(out, schema, prepare(value))
        return out.getvalue()

    return write


def _reader(found: Found, wanted: Any, where: str) -> Read:
    if found.type != "AVRO":
        return _failing(f"schema {found.id} of {where} is not Avro but {found.type}")
    try:
        schema, _ = _parse_found(found)
    except ValueError as error:
        return _failing(str(error))
    reader = None if wanted is None else _parse(wanted, ())[0]
    decode = fastavro.schemaless_reader

    def read(data: bytes) -> Any:
        source = BytesIO(data)
        source.seek(HEADER)
        try:
            value = decode(source, schema, reader)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"not what schema {found.id} of {where} says: {reason}") from error
        if source.tell() != len(data):
            raise ValueError(f"{len(data) - source.tell()} bytes too many for schema {found.id} of {where}")
        return value

    return read


def _failing(reason: str) -> Read:
    def read(data: bytes) -> Any:
        raise ValueError(reason)

    return read
