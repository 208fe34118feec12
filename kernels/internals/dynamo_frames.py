"""Frames that Dynamo compiles: which module runs one, and where. See ``table/dynamo_frames.py``. Imports Dynamo."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any, TypeVar

import torch
from torch._dynamo import convert_frame

__all__ = ["NO_REGION", "module_of", "region", "region_of", "wrapping"]

#: What :func:`region` says of calls that are not isolated.
NO_REGION = -1

_Wrapper = TypeVar("_Wrapper", bound=Callable[..., Any])


def region() -> int:
    """Which isolated calls (``torch.compile(isolate_recompiles=True)``) a frame is one of. Without: ``NO_REGION``."""
    return getattr(convert_frame, "get_eval_frame_isolate_recompiles_id", lambda: NO_REGION)()


def region_of(entry: Any) -> int:
    """The same of a graph that was compiled: an entry of Dynamo's cache, or what becomes one."""
    return getattr(entry, "isolate_recompiles_id", NO_REGION)


def module_of(frame: Any) -> torch.nn.Module | None:
    """The module that runs a frame which Dynamo compiles: ``self``, or the first one among what it is given.

    That is where wrappers have it that pass on their arguments. Others have closed over a method of it.
    """
    given = frame.f_locals
    values = (given.get("self"), *given.values(), *_contents(frame.closure or ()))
    return next(_modules(values), None)


def _modules(values: Iterable[Any]) -> Iterator[torch.nn.Module]:
    for value in values:
        if isinstance(value, tuple):
            yield from _modules(value)
            continue
        one: Any = value.__self__ if type(value) is MethodType else value
        if issubclass(type(one), torch.nn.Module):  # asks nothing of a proxy, which `isinstance` does
            yield one


def _contents(cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue


def wrapping(original: Any) -> Callable[[_Wrapper], _Wrapper]:
    """Decorator of what is called in place of a function of ``convert_frame.py``, as ``functools.wraps``.

    Dynamo looks for who has called a frame, behind all stack frames of that file, to find out whether
    ``torch._dynamo.disable(recursive=False)`` was applied to it. So those of the wrapper are of that file, too.
    """

    def decorated(wrapper: Any) -> Any:
        wrapper.__code__ = wrapper.__code__.replace(co_filename=convert_frame.__file__)
        return functools.wraps(original)(wrapper)

    return decorated
