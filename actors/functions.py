"""What an agent's function is: whether it answers, what it is called, and what its stream carries.

Functions come in many forms: plain, bound methods, `functools.partial`, objects with an async `__call__`, what other
decorators have made of them.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, ForwardRef, TypeVar, get_args, get_origin

from ..channels.errors import ImproperlyConfigured
from ..channels.stream import Stream

__all__ = ["agent_name", "answer_type", "answers", "needs_scope", "stream_value_type"]


def answers(fun: Any, name: str) -> bool:
    """Whether this is an async generator function, whose yields are answers, and not an async function, which gives none.

    Raises:
        ImproperlyConfigured: it is neither, or does not take a stream and nothing else.
    """
    if not callable(fun):
        raise ImproperlyConfigured(
            f"agent {name}: expected an async function or async generator function over a stream, got {fun!r}"
            + (": declare it below the class, app.agent(...)(Class.method)" if isinstance(fun, classmethod) else "")
        )
    _check_parameters(fun, name)
    for candidate in (fun, _called(fun), inspect.unwrap(_called(fun))):
        if inspect.isasyncgenfunction(candidate):
            return True
        if inspect.iscoroutinefunction(candidate):
            return False
    raise ImproperlyConfigured(
        f"agent {name}: expected an async function or async generator function over a stream, got {fun!r}: write `async def`"
    )


def agent_name(fun: Callable[..., Any]) -> str:
    """An agent's name: its module and function. In a script, the script's own name stands for `__main__`."""
    named: Any = fun
    while isinstance(named, functools.partial | staticmethod):
        named = named.func if isinstance(named, functools.partial) else named.__func__
    if not hasattr(named, "__qualname__"):  # an object that can be called
        named = type(named)
    module = named.__module__
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(file).stem if file else "main"
    return f"{module}.{named.__qualname__.replace('<locals>.', '').replace('<lambda>', 'lambda')}"


def stream_value_type(fun: Callable[..., Any], *, agent: str, scope: Mapping[str, Any] | None = None) -> Any:
    """The `T` of a function's `Stream[T]` parameter, or None where it is not annotated, or any.

    Args:
        agent: its name, for reports.
        scope: names that are known where the agent is declared, for annotations that are strings.

    Raises:
        ImproperlyConfigured: the annotation is a string with names that do not exist at run time.
    """
    function = _function(fun)
    parameter = _stream_parameter(fun)
    annotation = None if parameter is None else parameter.annotation
    if isinstance(annotation, str):
        annotation = _evaluated(annotation, function, scope or {}, agent)
    if get_origin(annotation) is not Stream:
        return None
    found = get_args(annotation)[0]
    if isinstance(found, ForwardRef):
        found = _evaluated(found.__forward_arg__, function, scope or {}, agent)
    elif isinstance(found, str):
        found = _evaluated(found, function, scope or {}, agent)
    while isinstance(found, TypeVar):  # of a generic function: what it is bound to is all that is known
        found = found.__bound__
    return None if found is Any or found is object else found


def answer_type(fun: Callable[..., Any], scope: Mapping[str, Any]) -> Any:
    """The `R` of a function that is annotated to return an async iterator of `R`; `Any` where it is not, or not readably.

    Args:
        scope: names that are known where the agent is declared, for annotations that are strings.
    """
    signature = _signature(fun)
    annotation = None if signature is None else signature.return_annotation
    try:
        if isinstance(annotation, str):
            annotation = _evaluated(annotation, _function(fun), scope, "")
    except ImproperlyConfigured:  # what answers are is needed only between processes, where Any does too
        return Any
    if get_origin(annotation) in (AsyncIterator, AsyncGenerator, AsyncIterable):
        found = get_args(annotation)[0]
        return Any if isinstance(found, TypeVar) else found
    return Any


def needs_scope(fun: Any) -> bool:
    """Whether an annotation of it is a string, or has one in it. A frame that is asked for its names keeps what they mean."""
    signature = _signature(fun)
    if signature is None:
        return False
    annotations = [*(each.annotation for each in signature.parameters.values()), signature.return_annotation]
    return any(isinstance(part, str | ForwardRef) for each in annotations for part in (each, *get_args(each)))


def _evaluated(annotation: str, function: Any, scope: Mapping[str, Any], agent: str) -> Any:
    """What an annotation means, by the names of the function's module, of what is around it, and `Stream` itself and its like."""
    known = {**getattr(function, "__globals__", {}), **scope}
    closure = getattr(function, "__closure__", None) or ()
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, closure, strict=False):
        try:
            known[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for usual in (Stream, AsyncIterator, AsyncGenerator, AsyncIterable):  # they may be imported for type checkers only
        known.setdefault(usual.__name__, usual)
    try:
        return eval(annotation, known)
    except NameError as error:
        raise ImproperlyConfigured(
            f"agent {agent}: its stream is annotated {annotation!r}, and there is no {error.name!r} at run time; it may be "
            "imported under TYPE_CHECKING, or defined further down: import or define it before the agent, or say "
            "value_type=... (value_type=None leaves the values as their bytes say)"
        ) from None
    except Exception as error:
        raise ImproperlyConfigured(
            f"agent {agent}: its stream is annotated {annotation!r}, which does not work at run time: {error}; write it "
            "otherwise, or say value_type=..."
        ) from error


def _function(fun: Any) -> Any:
    """The plain function that is called in the end."""
    while True:
        if isinstance(fun, functools.partial):
            fun = fun.func
        elif isinstance(fun, staticmethod) or inspect.ismethod(fun):
            fun = fun.__func__
        elif hasattr(fun, "__wrapped__"):
            fun = fun.__wrapped__
        elif inspect.isroutine(fun):
            return fun
        else:
            fun = type(fun).__call__


def _called(fun: Any) -> Any:
    """The function, or the method of an object that can be called."""
    while isinstance(fun, functools.partial | staticmethod):
        fun = fun.func if isinstance(fun, functools.partial) else fun.__func__
    return fun if inspect.isroutine(fun) else type(fun).__call__


def _signature(fun: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(fun)
    except (TypeError, ValueError):
        return None


def _stream_parameter(fun: Any) -> inspect.Parameter | None:
    """What it is given its stream as."""
    signature = _signature(fun)
    return None if signature is None else next(iter(signature.parameters.values()), None)


def _check_parameters(fun: Any, name: str) -> None:
    signature = _signature(fun)
    if signature is None:
        return
    try:
        signature.bind(None)
    except TypeError:
        parameters = list(signature.parameters)
        hint = ""
        if parameters[:1] in (["self"], ["cls"]):
            hint = (
                ": a method is an agent of one instance, declared where that is made, as in "
                "`self.total = app.agent(topic)(self._total)`"
            )
        raise ImproperlyConfigured(
            f"agent {name}: expected a function of one argument, the stream, but it takes ({', '.join(parameters)}){hint}"
        ) from None
