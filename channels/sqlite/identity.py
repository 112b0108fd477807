"""Which file stands under a path: a process goes on writing one that was removed or replaced, where nobody finds it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import TransportError

__all__ = ["Identity"]


class Identity:
    """The file that was opened, told from others that come under its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken: tuple[int, int] | None = None

    def take(self) -> None:
        """It is the one that stands there now."""
        self._taken = self._found()

    def check(self) -> None:
        """Whether it stands there still.

        Raises:
            TransportError: it does not; what is written to it, nobody will find.
        """
        if self._found() != self._taken:
            raise TransportError(
                f"{self._path} was removed or replaced while it was in use: start this process again; before a "
                "broker's file is moved or restored, all that use it must be stopped"
            )

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino
