"""What a Python object is, in words that hold in every process: for classes, functions, code and modules."""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections.abc import Iterable
from typing import Any

#: Constants that are described by their value.
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...), type(NotImplemented))


class Unknown(Exception):
    """An object has no fingerprint."""


def fingerprint(value: Any) -> str:
    """A description of an object that is the same in every process in which the object behaves the same.

    Raises:
        Unknown: if ``value`` is of another kind than classes, functions, code, modules, members of enums and constants.
    """
    if isinstance(value, type):
        return _of_class(value)
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, enum.Enum):
        return f"{_of_class(type(value))}.{value.name}"
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, types.CodeType):
        return f"code {value.co_name} {_digest(_of_code(value))}"
    if isinstance(value, types.FunctionType):
        return f"function {_name(value)} {_digest(_of_function(value, ()))}"
    if isinstance(value, types.BuiltinFunctionType):
        return f"builtin {_name(value)} of {getattr(value.__self__, '__name__', type(value.__self__).__name__)}"
    if isinstance(value, (types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType)):
        return f"builtin {_name(value)}"
    raise Unknown(f"{type(value).__qualname__} has no fingerprint")


def code_digest(code: types.CodeType) -> str:
    """A hash of what a code object does, wherever its file is."""
    return _digest(_of_code(code))


@functools.lru_cache(maxsize=4096)
def _of_code_cached(code: types.CodeType) -> str:
    parts = [code.co_name, str(code.co_flags), str(code.co_argcount), str(code.co_kwonlyargcount), code.co_code.hex()]
    parts += [str(names) for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)]
    parts += map(_of_constant, code.co_consts)
    return _digest(parts)


def _of_code(code: types.CodeType) -> list[str]:
    # code objects compare equal by what they do and where they stand, so that equal ones have the same hash
    return [_of_code_cached(code)]


def _of_constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _of_code_cached(value)
    if isinstance(value, frozenset):  # its order depends on the process
        return f"frozenset {sorted(map(_of_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {list(map(_of_constant, value))}"
    return f"{type(value).__name__} {value!r}"


def _of_function(function: types.FunctionType, inside: tuple[int, ...]) -> list[str]:
    """A function with those that it wraps: what its closure holds."""
    found = _of_code(function.__code__)
    if id(function) in inside:
        return found
    inside = (*inside, id(function))
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not yet assigned
            content = None
        if isinstance(content, types.FunctionType):
            found += _of_function(content, inside)
        elif isinstance(content, _PLAIN):
            found.append(_of_constant(content))
        else:
            found.append(type(content).__qualname__)
    return found


def _of_class(cls: type) -> str:
    return f"class {cls.__module__}.{cls.__qualname__} {_contents(cls, _versions(cls))}"


def _versions(cls: type) -> tuple[int, ...]:
    """Changes when something is assigned to an attribute of a class: the ids of all values."""
    return tuple(id(value) for base in cls.__mro__ for value in vars(base).values())


@functools.lru_cache(maxsize=1024)
def _contents(cls: type, versions: tuple[int, ...]) -> str:
    """A hash of all methods and constants of a class and of its bases, except those written in C."""
    parts: list[str] = []
    for base in cls.__mro__:
        if base.__module__ == "builtins":
            continue
        parts.append(f"{base.__module__}.{base.__qualname__}")
        for name, value in sorted(vars(base).items()):
            parts += [name, *_of_attribute(value)]
    return _digest(parts)


def _of_attribute(value: Any) -> list[str]:
    if isinstance(value, (staticmethod, classmethod)):
        return _of_attribute(value.__func__)
    if isinstance(value, property):
        return [part for function in (value.fget, value.fset) for part in _of_attribute(function)]
    if isinstance(value, functools.cached_property):
        return _of_attribute(value.func)
    if isinstance(value, types.FunctionType):
        return _of_function(value, ())
    if isinstance(value, _PLAIN):
        return [_of_constant(value)]
    return [type(value).__qualname__]


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value)}"


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(b"%d " % len(data) + data)
    return digest.hexdigest()[:24]
