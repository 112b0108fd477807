"""`SchemaRegistry`: which registry, and what is known of its schemas.

Codecs ask it without waiting: what it does not know yet is a `NotReady`, whose work is one of the blocking calls below.
The calls are made by Confluent's own client, with one HTTP session each, so nothing stays open between them.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import attrs

from ..errors import NotReady, Unavailable
from .subjects import SubjectNames

if TYPE_CHECKING:
    from .avro import AvroCodec
    from .json_schema import JsonSchemaCodec
    from .protobuf import ProtobufCodec

__all__ = ["Found", "Registering", "SchemaRegistry", "Source", "bounded", "need"]

V = TypeVar("V")
Registering = Literal["register", "existing", "latest"]

KEPT = 1000  # schemas and refusals that are remembered
REFUSED_FOR = 30.0  # seconds until what was refused is asked for again
UNKNOWN = (40401, 40402, 40403)  # error codes: no such subject, version, schema


def need(module: str, extra: str) -> Any:
    """A library that only some users have.

    Raises `ModuleNotFoundError` that says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = module if module.startswith(f"{error.name}.") else error.name
        raise ModuleNotFoundError(f"{missing} is not installed: pip install 'famulus[{extra}]'") from error


@attrs.frozen
class Source:
    """A schema as it is registered.

    Attributes:
        type: AVRO, JSON or PROTOBUF.
        needs: what it refers to, by name, to be registered before it under that name.
    """

    text: str
    type: str
    needs: tuple[tuple[str, Source], ...] = ()


@attrs.frozen
class Found:
    """A schema at the registry, and (name, text) of all that it refers to, those first that others refer to."""

    id: int
    text: str
    type: str
    referred: tuple[tuple[str, str], ...] = ()


class _Refused(ValueError):
    """A final answer, which asking again does not change."""


class _Memory(Generic[V]):
    """Answers by question: what was found for good, what was refused for a while. Both bounded."""

    def __init__(self) -> None:
        self._found: dict[Any, V] = {}
        self._refused: dict[Any, tuple[float, str]] = {}

    def get(self, question: Any) -> V | None:
        """The answer, or None when nothing is known. Raises `ValueError` with a refusal."""
        found = self._found.get(question)
        if found is None and (refused := self._refused.get(question)) is not None:
            until, reason = refused
            if time.monotonic() < until:
                raise ValueError(reason)
        return found

    def learn(self, question: Any, ask: Callable[[], V]) -> None:
        """Ask, and keep the answer. Raises what is no final answer."""
        try:
            answer = ask()
        except _Refused as refused:
            bounded(self._refused)[question] = (time.monotonic() + REFUSED_FOR, str(refused))
        else:
            bounded(self._found)[question] = answer
            self._refused.pop(question, None)


def bounded(answers: dict[Any, V]) -> dict[Any, V]:
    """The dict, with room for one more: the oldest go when it is full (law 3)."""
    while len(answers) >= KEPT:
        del answers[next(iter(answers))]
    return answers


class SchemaRegistry:
    """A Confluent-compatible schema registry, and the maker of codecs that keep their schemas there.

    A declaration: nothing is asked before the first message that needs it. A codec is given to topics as `value_serializer` or
    `key_serializer`, and one codec may serve many.

    Args:
        url: `http://host:port`, or `https://`; several with commas between them are tried in turn. A path (such as that of a
            context) is kept. Credentials may stand in it, percent-encoded.
        username, password: for basic authentication.
        timeout: seconds for each step of a request (connecting, sending, receiving).
        ca: file or directory of the certificate authorities that are trusted; certifi's by default.
        certificate, key, key_password: files with the client's own certificate and key (PEM), for mutual TLS.
        config: further properties of `confluent_kafka.schema_registry.SchemaRegistryClient`, such as
            ``{"bearer.auth.credentials.source": "OAUTHBEARER", ...}``.

    Raises `ValueError` for a URL of another kind, or half of the credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        timeout: float = 5.0,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        key_password: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        urls = [_checked(part.strip()) for part in url.split(",")]
        self.where = ",".join(where for where, _ in urls)
        in_url = next((credentials for _, credentials in urls if credentials), None)
        if timeout <= 0:
            raise ValueError(f"SchemaRegistry timeout={timeout!r}: expected seconds, more than 0")
        if (username is None) != (password is None):
            raise ValueError("SchemaRegistry: expected username and password, or neither")
        if username is not None and in_url:
            raise ValueError("SchemaRegistry: expected credentials in the URL or as arguments, not both")
        given = {
            "basic.auth.user.info": in_url if username is None else f"{username}:{password}",
            "ssl.ca.location": ca,
            "ssl.certificate.location": certificate,
            "ssl.key.location": key,
            "ssl.key.password": key_password,
        }
        self._config: dict[str, Any] = {
            "url": self.where,  # without credentials: the HTTP library logs it
            "timeout": timeout,
            "max.retries": 0,  # waiting between attempts is `channels.retry`'s, which can be cancelled
            **{name: value for name, value in given.items() if value is not None},
            **(config or {}),
        }
        self._schemas: _Memory[Found] = _Memory()
        self._subjects: _Memory[Found] = _Memory()

    def __repr__(self) -> str:
        return f"<SchemaRegistry {self.where}>"

    # -- codecs --------------------------------------------------------------------------------------------

    def avro(
        self,
        schema: Any = None,
        *,
        subject: SubjectNames = "topic",
        write: Registering = "register",
        namespace: str = "",
        normalize: bool = False,
    ) -> AvroCodec:
        """A codec for Avro.

        Args:
            schema: as a dict, list or JSON text, for writing and for reading (what was written with another one is resolved by
                Avro's rules); or a class to derive it from. Without one it is derived from the topic's type when
                something is written, and what is read is judged by that type alone.
            subject: how subjects are named; see `SubjectNames`.
            write: `"register"` a schema that is new; write only with one that is `"existing"`; or write with the subject's
                `"latest"`, whatever that is.
            namespace: of derived schemas.
            normalize: have the registry compare schemas in their normal form.

        Raises `ModuleNotFoundError` without the extra, `ValueError` for a schema that is none.
        """
        need("fastavro", "avro")
        need("confluent_kafka.schema_registry", "avro")
        from .avro import AvroCodec

        return AvroCodec(self, schema, subject=subject, write=write, namespace=namespace, normalize=normalize)

    def json_schema(
        self,
        schema: Any = None,
        *,
        subject: SubjectNames = "topic",
        write: Registering = "register",
        normalize: bool = False,
    ) -> JsonSchemaCodec:
        """A codec for JSON that is checked against a JSON Schema, when written and (with `schema`) when read.

        Args:
            schema: as a dict or JSON text. Needed for writing, unless that is with the `"latest"`.
            subject, write, normalize: as for `avro`. The record's name is the schema's `title`.

        Raises `ModuleNotFoundError` without the extra, `ValueError` for a schema that is none.
        """
        need("jsonschema", "jsonschema")
        need("confluent_kafka.schema_registry", "jsonschema")
        from .json_schema import JsonSchemaCodec

        return JsonSchemaCodec(self, schema, subject=subject, write=write, normalize=normalize)

    def protobuf(
        self,
        message: Any,
        *,
        subject: SubjectNames = "topic",
        write: Registering = "register",
        normalize: bool = False,
    ) -> ProtobufCodec:
        """A codec for messages of one generated Protobuf class.

        What others wrote is read by field numbers, as Protobuf does, so reading asks nothing of the registry.

        Args:
            message: the class that protoc generated.
            subject, write, normalize: as for `avro`; `"latest"` is not for Protobuf.

        Raises `ModuleNotFoundError` without the extra, `TypeError` for another class.
        """
        need("google.protobuf", "protobuf")
        need("confluent_kafka.schema_registry", "protobuf")
        from .protobuf import ProtobufCodec

        return ProtobufCodec(self, message, subject=subject, write=write, normalize=normalize)

    # -- what codecs ask -----------------------------------------------------------------------------------

    def schema(self, id: int) -> Found:
        """The schema of this id.

        Raises:
            NotReady: it is not known yet.
            ValueError: the registry has none.
        """
        found = self._schemas.get(id)
        if found is None:
            ask = partial(self._fetch, id)
            raise NotReady(f"schema {id} of {self.where}", partial(self._schemas.learn, id, ask))
        return found

    def for_writing(self, subject: str, source: Source | None, write: Registering, *, normalize: bool) -> Found:
        """The schema to write with under a subject; `source` is ours, which `"latest"` does without.

        Raises:
            NotReady: it is not known yet.
            ValueError: the registry refuses it, or has none.
        """
        question = (subject, source, write, normalize)
        found = self._subjects.get(question)
        if found is None:
            ask = partial(self._settle, subject, source, write, normalize)
            wanted = "latest schema" if source is None else "id of the schema"
            what = f"the {wanted} of subject {subject!r} at {self.where}"
            raise NotReady(what, partial(self._subjects.learn, question, ask))
        return found

    # -- blocking, in threads ------------------------------------------------------------------------------

    def _fetch(self, id: int) -> Found:
        with _Calls(self._config, f"schema {id} of {self.where}", reading=True) as client:
            return _found(client, id, client.get_schema(id))

    def _settle(self, subject: str, source: Source | None, write: Registering, normalize: bool) -> Found:
        with _Calls(self._config, f"subject {subject!r} at {self.where}", reading=False) as client:
            if source is None:
                latest = client.get_latest_version(subject)
                return _found(client, latest.schema_id, latest.schema)
            schema = _schema(client, source, write, normalize)
            if write == "register":
                return Found(client.register_schema(subject, schema, normalize), source.text, source.type)
            return Found(client.lookup_schema(subject, schema, normalize).schema_id, source.text, source.type)


def _schema(client: Any, source: Source, write: Registering, normalize: bool) -> Any:
    """A schema for the client, after what it needs has been registered or found."""
    from confluent_kafka.schema_registry import Schema, SchemaReference

    references = []
    for name, needed in source.needs:
        schema = _schema(client, needed, write, normalize)
        if write == "register":
            client.register_schema(name, schema, normalize)
        references.append(SchemaReference(name, name, client.lookup_schema(name, schema, normalize).version))
    return Schema(source.text, source.type, references)


def _found(client: Any, id: int, schema: Any) -> Found:
    """A schema of the client, with all that it refers to, also by what is referred to, each once and before those that
    need it.
    """
    referred: dict[str, str] = {}

    def visit(references: Any) -> None:
        for reference in references or ():
            if reference.name not in referred:
                needed = client.get_version(reference.subject, reference.version).schema
                visit(needed.references)
                referred[reference.name] = needed.schema_str

    visit(schema.references)
    return Found(id, schema.schema_str, schema.schema_type or "AVRO", tuple(referred.items()))


class _Calls:
    """A session with the registry, whose errors come out as `Unavailable` or `_Refused`, once, here.

    `reading`: answers that a wrong configuration would give, too, are waited out, since a message that is refused is skipped.
    """

    def __init__(self, config: Mapping[str, Any], what: str, *, reading: bool) -> None:
        self._config = config
        self._what = what
        self._reading = reading
        self._client: Any = None

    def __enter__(self) -> Any:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        try:
            self._client = SchemaRegistryClient(dict(self._config))
        except Exception as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        return self._client

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._client.__exit__(None, None, None)
        if not isinstance(error, Exception):
            return
        status = getattr(error, "http_status_code", 0)
        text = str(error) or type(error).__name__
        if self._reading:
            final = getattr(error, "error_code", None) in UNKNOWN
        else:
            final = 400 <= status < 500 and status not in (408, 429)
        if final:
            raise _Refused(f"{self._what}: the registry answers: {text}") from error
        raise Unavailable(text) from error


def _checked(url: str) -> tuple[str, str | None]:
    """The URL without credentials, and these as `username:password`."""
    parts = urlsplit(url)
    credentials, _, address = parts.netloc.rpartition("@")
    where = urlunsplit(parts._replace(netloc=address)).rstrip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"SchemaRegistry url={where!r}: expected http://host:port or https://host:port")
    if not credentials:
        return where, None
    username, colon, password = credentials.partition(":")
    if not colon:
        raise ValueError(f"SchemaRegistry url={where!r}: expected username:password before the @")
    return where, f"{unquote(username)}:{unquote(password)}"
