"""Which file system a path is on, and whether SQLite's write-ahead log works there."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final, Literal

from ..errors import ImproperlyConfigured

__all__ = ["check_filesystem", "filesystem_of", "verdict"]

log = logging.getLogger("famulus.sqlite")

_MOUNTS: Final = Path("/proc/self/mountinfo")

_KNOWN = """
    nfs nfs4 cifs smb smb2 smb3 smbfs ncpfs afs coda ceph glusterfs lustre beegfs gpfs orangefs pvfs2 ocfs2 gfs2 9p davfs
    fuse.sshfs fuse.s3fs fuse.glusterfs fuse.ceph fuse.rclone fuse.gcsfuse fuse.davfs
"""
_NETWORK: Final = frozenset(_KNOWN.split())
_REASON: Final = (
    "its write-ahead log is shared memory, which the processes of one machine have and machines have not: two of them "
    "would destroy the file. Take a directory on a local disk, or kafka:// for several machines"
)


def filesystem_of(path: Path, mounts: str) -> str | None:
    """The type of the file system under an absolute path, as ``/proc/self/mountinfo`` (the text `mounts`) has it.

    >>> filesystem_of(Path("/mnt/a b/file"), r"36 35 98:0 / /mnt/a\\040b rw master:1 - nfs4 server:/x rw")
    'nfs4'
    """
    found: tuple[int, str] | None = None
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if not dash or len(fields) < 5 or not after:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if path.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), after.split()[0]
    return None if found is None else found[1]


def verdict(kind: str | None) -> Literal["fine", "doubtful", "network"]:
    """What is to be thought of a type of file system."""
    if kind is None:
        return "fine"
    if kind in _NETWORK:
        return "network"
    return "doubtful" if kind.startswith("fuse") and kind not in ("fuseblk", "fusectl") else "fine"


def check_filesystem(path: Path, *, mounts: Path = _MOUNTS) -> None:
    """Refuse a file on a network file system, and warn of one that may be; where the system does not tell, do nothing.

    Raises:
        ImproperlyConfigured: it is on one.
    """
    try:
        kind = filesystem_of(path.resolve(), mounts.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return
    what = verdict(kind)
    if what == "network":
        raise ImproperlyConfigured(
            f"{path} is on a network file system ({kind}), where SQLite cannot be a broker: {_REASON}"
        )
    if what == "doubtful":
        log.warning(
            "%s is on %s; if a network is behind that, SQLite cannot be a broker there: %s", path, kind, _REASON
        )
