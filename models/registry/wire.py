"""Confluent's wire format: a zero byte, the schema's id in four bytes (big-endian), then the payload."""

from __future__ import annotations

__all__ = ["HEADER", "header", "schema_id"]

HEADER = 5  # bytes


def header(schema_id: int) -> bytes:
    """What stands before a payload.

    >>> header(258)
    b'\\x00\\x00\\x00\\x01\\x02'
    """
    return b"\0" + schema_id.to_bytes(4, "big")


def schema_id(data: bytes) -> int:
    """The id of the schema that the data was written with.

    Raises `ValueError` for data in another format.
    """
    if len(data) < HEADER or data[0] != 0:
        raise ValueError(
            f"not in the wire format of a schema registry: expected a byte 0 and 4 bytes of schema id, got {data[:HEADER]!r}"
        )
    return int.from_bytes(data[1:HEADER], "big")
