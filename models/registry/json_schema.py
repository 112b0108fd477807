"""JSON that is checked against a JSON Schema, in Confluent's wire format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.jsonschema import DRAFT7

from ..plain import dump_json
from .client import Found, Registering, SchemaRegistry, Source
from .codec import BoundCodec, RegistryCodec
from .subjects import SubjectNames, subject_name
from .wire import HEADER, header, schema_id

__all__ = ["JsonSchemaCodec"]

Check = Callable[[Any], None]


class JsonSchemaCodec(RegistryCodec["_Json"]):
    """See `SchemaRegistry.json_schema`."""

    format = "jsonschema"

    def __init__(
        self, registry: SchemaRegistry, schema: Any, *, subject: SubjectNames, write: Registering, normalize: bool
    ) -> None:
        super().__init__(registry, subject=subject, write=write, normalize=normalize)
        self.schema: Any = None
        self.check: Check | None = None
        if schema is not None:
            try:
                self.schema = orjson.loads(schema) if isinstance(schema, str | bytes) else schema
                self.check = _checking(self.schema, ())
            except Exception as error:
                raise ValueError(f"json_schema(schema=...): expected a JSON Schema, got {schema!r}: {error}") from error

    def _bind(self, topic: str | None, type: Any, is_key: bool) -> _Json:
        return _Json(self, topic, is_key)


class _Json(BoundCodec):
    def __init__(self, codec: JsonSchemaCodec, topic: str | None, is_key: bool) -> None:
        self._codec = codec
        self._topic = topic
        self._is_key = is_key
        self._start: bytes | None = None
        self._check: Check | None = None

    def __repr__(self) -> str:
        return repr(self._codec)

    def dumps(self, obj: Any, /) -> bytes:
        start = self._start or self._first()
        payload = dump_json(obj)
        if self._check is not None:
            self._check(orjson.loads(payload))
        return start + payload

    def _first(self) -> bytes:
        codec = self._codec
        title = codec.schema.get("title") if isinstance(codec.schema, dict) else None
        source = None
        if codec.write != "latest":
            if codec.schema is None:
                raise ValueError("there is no JSON Schema to write with: give the codec one, json_schema(schema=...)")
            source = Source(orjson.dumps(codec.schema).decode(), "JSON")
        subject = subject_name(codec.subject, self._topic, self._is_key, title)
        found = codec.registry.for_writing(subject, source, codec.write, normalize=codec.normalize)
        self._check = _checking_found(found)
        self._start = header(found.id)
        return self._start

    def loads(self, data: bytes, /) -> Any:
        schema_id(data)
        value = orjson.loads(memoryview(data)[HEADER:])
        if self._codec.check is not None:
            self._codec.check(value)
        return value


def _checking_found(found: Found) -> Check:
    if found.type != "JSON":
        raise ValueError(f"schema {found.id} is no JSON Schema but {found.type}")
    return _checking(orjson.loads(found.text), found.referred)


def _checking(schema: Any, referred: tuple[tuple[str, str], ...]) -> Check:
    """A function that raises `ValueError` for a value that is not of the schema."""
    kind: Any = validator_for(schema, default=Draft7Validator)
    kind.check_schema(schema)
    known: Any = Registry().with_resources(
        (name, DRAFT7.create_resource(orjson.loads(text))) for name, text in referred
    )
    validator = kind(schema, registry=known)

    def check(value: Any) -> None:
        error = best_match(validator.iter_errors(value))
        if error is not None:
            raise ValueError(f"{error.json_path}: {error.message}")

    return check
