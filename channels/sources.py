"""`app.stream(...)`: a stream over whatever can be iterated."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Any

from .channel import Channel
from .iterables import IterableChannel
from .runs import Declaration, current_run
from .steps import Processor
from .stream import Stream

__all__ = ["StreamSource", "stream_over"]

StreamSource = Channel[Any] | Stream[Any] | Iterable[Any] | AsyncIterable[Any]
"""What streams can be made over."""


def stream_over(app: Declaration, sources: tuple[StreamSource, ...], processors: Iterable[Processor]) -> Stream[Any]:
    """See `App.stream`."""
    if not sources:
        raise TypeError("stream(): expected at least one channel, stream, iterable or async iterable")
    streams = [_stream(app, source) for source in sources]
    stream = streams[0] if len(streams) == 1 else streams[0].combine(*streams[1:])
    for processor in processors:
        stream = stream.map(processor)
    return stream


def _stream(app: Declaration, source: StreamSource) -> Stream[Any]:
    if isinstance(source, Stream):
        return source
    if isinstance(source, Channel):
        return source.stream()
    if isinstance(source, Iterable | AsyncIterable):
        return IterableChannel(current_run(app), source).stream()
    raise TypeError(f"stream({source!r}): expected a channel, a stream, an iterable or an async iterable")
