"""The ``sqlite://`` transport: an embedded broker in one file, shared by the processes of one machine."""

from .transport import SqliteTransport
from .url import SqliteSettings

__all__ = ["SqliteSettings", "SqliteTransport"]
