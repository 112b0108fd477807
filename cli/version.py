"""Which versions these are."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

__all__ = ["version"]


def version(package: str) -> str:
    """The installed version of a package, or "unknown" where it is used without being installed."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "unknown"
