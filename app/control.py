"""How other programs on this machine look into a running worker: a Unix socket per worker, for its own user only.

A worker listens at ``<directory>/<app id>.<pid>.sock``; the directory is ``$XDG_RUNTIME_DIR/famulus``, or ``famulus-<uid>``
where temporary files go, mode 0700. One question a connection: a line of JSON, ``{"show": "tree"}``; the answer is one
JSON document. The command ``famulus tree`` is its client.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import orjson
import trio

from ..channels.errors import FamulusError
from ..supervision import TreeNode, trap_stop

__all__ = ["WorkerGone", "WorkerReport", "ask_worker", "find_workers", "serve_control"]

log = logging.getLogger("famulus.control")

_LONGEST_NAME = 24  # characters of an app's id in a socket's name: the whole path may have about 100
_LONGEST_QUESTION = 4096  # bytes
_PATIENCE = 5.0  # seconds for a question to arrive and its answer to leave
_PAUSE = 1.0  # seconds after a question could not be taken
_LONGEST_ANSWER = 64 * 1024 * 1024  # bytes
_MOST_CLIENTS = 8  # served at once; others wait in the socket's queue


class WorkerGone(FamulusError):
    """Nobody answers at a worker's socket."""


@attrs.frozen(kw_only=True)
class WorkerReport:
    """What a worker says of itself.

    Attributes:
        app: the App's id.
        pid: of the worker's process.
        tree: its supervision tree.
    """

    app: str
    pid: int
    tree: TreeNode

    def to_json(self) -> bytes:
        """As it goes over the socket."""
        facts = attrs.asdict(self)
        try:
            return orjson.dumps(facts)
        except TypeError:  # half a character in somebody's message
            return json.dumps(facts).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> WorkerReport:
        """What `to_json` wrote.

        Raises:
            WorkerGone: it is something else.
        """
        try:
            found = json.loads(data)
            return cls(app=found["app"], pid=found["pid"], tree=_as_node(found["tree"]))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkerGone(f"the worker's answer cannot be read: {error!r}; is it of another version?") from error


def _as_node(data: Mapping[str, Any]) -> TreeNode:
    return TreeNode(**{**data, "children": tuple(map(_as_node, data["children"]))})


# -- where ---------------------------------------------------------------------------------------------------


def _directories() -> list[Path]:
    """Where sockets may be: a worker takes the first, whoever looks for one looks in all."""
    places = [Path(tempfile.gettempdir()) / f"famulus-{os.getuid()}"]
    for runtime in (f"/run/user/{os.getuid()}", os.environ.get("XDG_RUNTIME_DIR")):
        if runtime and os.path.isdir(runtime):
            places.insert(0, Path(runtime) / "famulus")
    return list(dict.fromkeys(places))


def _is_ours(directory: Path) -> bool:
    """Whether only this user can have put anything into it."""
    facts = directory.lstat()
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not stat.S_IMODE(facts.st_mode) & 0o077


def _socket_name(app: str) -> str:
    name = quote(app, safe="")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 13]}-{hashlib.sha256(app.encode()).hexdigest()[:12]}"


def find_workers(app: str) -> dict[int, Path]:
    """The sockets of the workers of this App on this machine that were run by this user, by process id."""
    found: dict[int, Path] = {}
    prefix = f"{_socket_name(app)}."
    for directory in _directories():
        with suppress(OSError):
            for path in sorted(directory.iterdir()) if _is_ours(directory) else ():
                pid = path.name.removeprefix(prefix).removesuffix(".sock")
                if path.name.startswith(prefix) and path.name.endswith(".sock") and pid.isdecimal():
                    found.setdefault(int(pid), path)
    return found


# -- the worker's side ---------------------------------------------------------------------------------------


async def serve_control(app: str, tree: Callable[[], TreeNode]) -> None:
    """Answer questions about this process until asked to stop. It never fails: a worker shall not end for want of an answer."""
    stop = trap_stop()
    try:
        with _listening(app) as listening:
            async with trio.open_nursery() as nursery:
                answer = partial(_answer, lambda: WorkerReport(app=app, pid=os.getpid(), tree=tree()))
                nursery.start_soon(_serve, listening, answer)
                await stop.wait()
                nursery.cancel_scope.cancel()
    except OSError as error:
        log.warning("`famulus tree` will not find this worker: %s", error)
    except Exception:
        log.exception("`famulus tree` will not find this worker any more")


@contextmanager
def _listening(app: str) -> Iterator[trio.SocketListener]:
    directory = _directories()[0]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(directory):
        raise PermissionError(f"{directory} is not a directory of this user alone (mode 0700)")
    path = directory / f"{_socket_name(app)}.{os.getpid()}.sock"
    path.unlink(missing_ok=True)  # of a killed process that had our id
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bare:
        bare.bind(str(path))
        try:
            bare.listen()
            bare.setblocking(False)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(bare))
        finally:
            path.unlink(missing_ok=True)


async def _serve(listener: trio.SocketListener, answer: Callable[[trio.SocketStream], Any]) -> None:
    room = trio.CapacityLimiter(_MOST_CLIENTS)

    async def serve_one(stream: trio.SocketStream, client: object) -> None:
        try:
            async with stream:
                with trio.move_on_after(_PATIENCE):
                    await answer(stream)
        except Exception:
            log.debug("a question at the worker's socket was not answered", exc_info=True)
        finally:
            room.release_on_behalf_of(client)

    async with trio.open_nursery() as nursery:
        while True:
            client = object()
            await room.acquire_on_behalf_of(client)
            try:
                stream = await listener.accept()
            except OSError:  # no file descriptor is left: others need the next one more
                log.debug("no question can be taken at the worker's socket", exc_info=True)
                room.release_on_behalf_of(client)
                await trio.sleep(_PAUSE)
                continue
            nursery.start_soon(serve_one, stream, client)


async def _answer(report: Callable[[], WorkerReport], stream: trio.SocketStream) -> None:
    question = b""
    while not question.endswith(b"\n") and len(question) <= _LONGEST_QUESTION:
        some = await stream.receive_some(_LONGEST_QUESTION)
        if not some:
            return
        question += some
    try:
        wanted = orjson.loads(question)
    except ValueError:
        wanted = None
    if wanted == {"show": "tree"}:
        await stream.send_all(report().to_json())
    else:
        await stream.send_all(orjson.dumps({"error": 'expected {"show": "tree"}'}))


# -- the client's side ---------------------------------------------------------------------------------------


async def ask_worker(path: Path) -> WorkerReport:
    """What the worker at this socket says. A socket that nobody listens at any more is removed.

    Raises:
        WorkerGone: no answer, or none that can be read.
    """
    try:
        stream = await trio.open_unix_socket(str(path))
    except ConnectionRefusedError:  # its process was killed
        path.unlink(missing_ok=True)  # noqa: ASYNC240  # a client has nothing else to do meanwhile
        raise WorkerGone(f"the worker at {path} has gone") from None
    except OSError as error:
        raise WorkerGone(f"the worker at {path} does not answer: {error}") from error
    answer = b""
    with trio.move_on_after(_PATIENCE):
        async with stream:
            try:
                await stream.send_all(b'{"show": "tree"}\n')
                while len(answer) < _LONGEST_ANSWER and (some := await stream.receive_some()):
                    answer += some
            except (OSError, trio.BrokenResourceError) as error:
                raise WorkerGone(f"the worker at {path} does not answer: {error}") from error
            return WorkerReport.from_json(answer)
    raise WorkerGone(f"the worker at {path} did not answer within {_PATIENCE:g} s: is an agent blocking its loop?")
