"""Which Famulus this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

__all__ = ["version"]


def version() -> str:
    """The installed version, or "unknown" in a checkout that is not installed."""
    try:
        return installed_version("famulus")
    except PackageNotFoundError:
        return "unknown"
