"""Finding the App that ``-A`` names, and saying in one line why there is none.

Called by `invocation`. Importing a module runs the user's code, so anything at all may happen here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from ..app.app import App
from ..channels.errors import ImproperlyConfigured

__all__ = ["apps_in", "failure_place", "find_app"]

_OURS = str(Path(__file__).parent.parent) + os.sep
_NOT_THE_USERS = (
    _OURS,
    "<frozen",
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")),
)


def find_app(wanted: str) -> App:
    """Import the App named ``module`` or ``module:attribute``, the current directory being on `sys.path`.

    Without an attribute it is ``app`` in the module, or ``app`` in the module's submodule ``app``.

    Raises:
        ImproperlyConfigured: there is no such module, or its import fails, or what it holds is no App.
    """
    name, _, attribute = wanted.partition(":")
    if not name or name.startswith(".") or name.endswith((".", ".py")) or "/" in name or os.sep in name:
        raise ImproperlyConfigured(
            f"-A {wanted}: expected module or module:attribute, as in `-A shop` or `-A shop.main:app`"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _import(name, wanted)
    found = _follow(module, attribute or "app", wanted)
    if isinstance(found, ModuleType) and not attribute:
        module, found = found, _follow(found, "app", wanted)
    if not isinstance(found, App):
        kind = "a module" if isinstance(found, ModuleType) else f"of type {type(found).__name__}"
        raise ImproperlyConfigured(
            f"-A {wanted}: {module.__name__}:{attribute or 'app'} is {kind}, expected a famulus.App; {_hint(module)}"
        )
    return found


def apps_in(module: ModuleType) -> list[str]:
    """The names of the Apps in a module."""
    return sorted(name for name, value in vars(module).items() if isinstance(value, App))


def failure_place(failure: BaseException) -> str:
    """``file:line`` where the user's code failed: the innermost frame that is neither ours nor Python's."""
    if isinstance(failure, SyntaxError) and failure.filename:
        return f"{failure.filename}:{failure.lineno}"
    frames = traceback.extract_tb(failure.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    if not frames:
        return "an unknown place"
    frame = (theirs or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _import(name: str, wanted: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImproperlyConfigured(
                f"-A {wanted}: there is no module {error.name!r} in {os.getcwd()} or on Python's path; "
                "expected module or module:attribute, and -W DIRECTORY if it is elsewhere"
            ) from error
        raise _failed(wanted, error) from error
    except SystemExit as error:
        raise ImproperlyConfigured(
            f"-A {wanted}: the module ended the process when it was imported, at {failure_place(error)}; "
            "expected `if __name__ == '__main__':` before `app.main()`"
        ) from error
    except Exception as error:
        raise _failed(wanted, error) from error


def _failed(wanted: str, error: Exception) -> ImproperlyConfigured:
    reason = " ".join(str(error).split())
    what = reason if isinstance(error, ImproperlyConfigured) else f"{type(error).__name__}: {reason}"
    return ImproperlyConfigured(f"-A {wanted}: importing it failed at {failure_place(error)}: {what}")


def _follow(module: ModuleType, attribute: str, wanted: str) -> object:
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            if found is module and part == "app" and _has_submodule(module, part):
                return _import(f"{module.__name__}.{part}", wanted)
            raise ImproperlyConfigured(
                f"-A {wanted}: module {module.__name__!r} has no attribute {attribute!r}; {_hint(module)}"
            ) from error
    return found


def _has_submodule(module: ModuleType, name: str) -> bool:
    return hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{name}") is not None


def _hint(module: ModuleType) -> str:
    names = apps_in(module)
    if not names:
        return "the module holds no App: expected `app = famulus.App('name')` in it"
    return "its Apps are " + ", ".join(f"{module.__name__}:{name}" for name in names)
