"""How processes that share a broker's file notice each other: one named pipe each, in a directory beside the file.

- A pipe that nobody reads belongs to nobody: the kernel closed it when its process died. Who is dead is known at once.
- Its time of modification, which its owner renews, is the sign of life of an owner that is not suspended or stuck. It needs
  no transaction, so a slow disk or a long write of somebody else keeps no one from renewing it.
- A byte in it wakes its owner: `NEWS` that there are new records, `CHANGE` that something changed in a group.

Where a file system has no named pipes a plain file takes their place: then a death is noticed by silence, and news by
looking (`Peers.pipes` tells). A byte may get lost when its sender is killed before it is written: owners look now and then.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["CHANGE", "NEWS", "Peers"]

NEWS: Final = b"n"
CHANGE: Final = b"c"
_MOST: Final = 65536


class Peers:
    """This process's (more exactly, this transport's) pipe among the others of one file.

    Attributes:
        name: of its own, which no other ever had.
        pipes: whether there are named pipes here.
        fd: its readable end; -1 without pipes.
    """

    def __init__(self, path: Path) -> None:
        self._directory = path.with_name(f"{path.name}-peers")
        self.name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.pipes = True
        self.fd = -1
        self._own = -1
        self._others: dict[str, int] = {}

    def open(self) -> None:
        """Appear. The pipe is there under its name when it is readable, never before.

        Raises:
            OSError: the directory is not writable.
        """
        for _ in range(10):  # the last one to go removes the directory, perhaps just now
            self._directory.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                self._appear()
                return
        raise FileNotFoundError(f"{self._directory} vanishes all the time")

    def _appear(self) -> None:
        path, hidden = self._path(self.name), self._path(f".{self.name}")
        try:
            os.mkfifo(hidden, 0o660)
        except FileNotFoundError:
            raise
        except (AttributeError, OSError):
            self.pipes = False
            path.touch()
            return
        try:
            self.fd = os.open(hidden, os.O_RDONLY | os.O_NONBLOCK)
            self._own = os.open(hidden, os.O_WRONLY | os.O_NONBLOCK)  # without a writer it would always be readable
            hidden.rename(path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            self._close_ends()
            raise

    def close(self) -> None:
        """Vanish, and take the directory along if that was the last."""
        with suppress(OSError):  # it may never have appeared
            self._path(self.name).unlink(missing_ok=True)
        for fd in self._others.values():
            os.close(fd)
        self._others.clear()
        self._close_ends()
        with suppress(OSError):
            self._directory.rmdir()

    def _close_ends(self) -> None:
        for fd in (self.fd, self._own):
            if fd >= 0:
                os.close(fd)
        self.fd = self._own = -1

    def _path(self, name: str) -> Path:
        return self._directory / name

    # -- signs of life -------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Give a sign of life.

        Raises:
            FileNotFoundError: somebody has removed the file.
        """
        os.utime(self._path(self.name))

    def sign_of(self, name: str) -> int | None:
        """The newest sign of life of somebody; None: it is dead."""
        path = self._path(name)
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        if stat.S_ISFIFO(found.st_mode) and not self._reached(name):
            return None
        return found.st_mtime_ns

    def _reached(self, name: str) -> bool:
        """Whether somebody reads that pipe, as far as can be seen: that we have no descriptor left tells nothing of others."""
        try:
            os.close(os.open(self._path(name), os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            return error.errno not in (errno.ENXIO, errno.ENOENT)
        return True

    def clear_dead(self) -> None:
        """Remove what the dead have left."""
        for name in self._names():
            if name != self.name and self.sign_of(name) is None:
                self._path(name).unlink(missing_ok=True)

    # -- waking ----------------------------------------------------------------------------------------------

    def poke(self, what: bytes) -> None:
        """Wake all others. Called from one thread at a time."""
        if not self.pipes:
            return
        names = self._names()
        for gone in self._others.keys() - set(names):
            os.close(self._others.pop(gone))
        for name in names:
            if name != self.name:
                self._poke(name, what)

    def _poke(self, name: str, what: bytes) -> None:
        try:
            fd = self._others.get(name)
            if fd is None:
                fd = self._others[name] = os.open(self._path(name), os.O_WRONLY | os.O_NONBLOCK)
            os.write(fd, what)
        except BlockingIOError:
            return  # it has not read the last thousands
        except OSError:  # it is dead or going
            fd = self._others.pop(name, None)
            if fd is not None:
                os.close(fd)

    def read(self) -> bytes:
        """What others have poked with since the last time, each kind once."""
        with suppress(BlockingIOError):
            found = os.read(self.fd, _MOST)
            full = len(found) == _MOST  # what came later found no room
            return b"".join(kind for kind in (NEWS, CHANGE) if full or kind in found)
        return b""

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._directory) if not name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError:  # no descriptor left: those we know of have to do
            return list(self._others)

    def __repr__(self) -> str:
        return f"<Peers {self.name} in {self._directory}>"
