"""What to do about a program that was written for asyncio, said in the traceback of its failure."""

from __future__ import annotations

from typing import Final

__all__ = ["explained"]

_NOTE: Final = (
    "Famulus runs on trio, and this was asyncio's: call trio.sleep for asyncio.sleep, trio.open_nursery or @app.task for "
    "asyncio.create_task, trio.fail_after for asyncio.wait_for; see docs/faust.md"
)


def explained(error: Exception) -> Exception:
    """The same error, with a note about trio where asyncio found no event loop of its own."""
    if isinstance(error, RuntimeError) and str(error) == "no running event loop":
        error.add_note(_NOTE)
    return error
