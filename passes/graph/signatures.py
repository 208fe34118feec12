"""Signatures of operations, written as in torch's documentation, and the binding of a call's arguments to them.

    transpose(input, dim0, dim1)              x.transpose(1, 2)   torch.transpose(input=x, dim0=1, dim1=2)
    permute(input, *dims)                     x.permute(0, 2, 1)   x.permute((0, 2, 1))   x.permute(dims=(0, 2, 1))
    add(input, other, *, alpha=1)             x + y   torch.add(x, y)   x.add(other=y, alpha=2)
    exp(...)                                  any arguments, which no pass reads

A parameter without a default is required. A parameter with a star takes the remaining positional arguments, or one
tuple or list of them, and is always bound as a tuple. Parameters after a lone star are keyword-only. Keywords may be
other names that torch accepts (`_OTHER_NAMES`), such as numpy's ``axis`` for ``dim``.

Binding never raises. Arguments that do not fit bind to None, and the call is then not recognized.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

#: Other names that torch accepts for parameters: those of numpy, of aten operators, and of similar functions.
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "axis": ("dim",),
    "axis0": ("dim0",),
    "axis1": ("dim1",),
    "keepdims": ("keepdim",),
    "self": ("input",),
    "a": ("input",),
    "x": ("input",),
    "x1": ("input",),
    "x2": ("other",),
    "tensor": ("input",),
    "arrays": ("tensors",),
    "tensors": ("operands",),
    "train": ("training",),
    "size": ("shape",),
    "dims": ("repeats",),
    "split_size": ("split_size_or_sections",),
    "split_sizes": ("split_size_or_sections",),
    "indices": ("indices_or_sections",),
    "sections": ("indices_or_sections",),
    "src": ("source",),
}

#: Types of parameters that distinguish overloads with the same number of arguments.
_TYPES: dict[str, tuple[type, ...]] = {
    "dtype": (torch.dtype, type(None)),
    "device": (torch.device, str, int, type(None)),
    "dim": (int, str, tuple, list, type(None)),  # torch.max(x, y) has a second tensor in its place
}

_REQUIRED = object()


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
    """The parameters of one spelling of an operation.

    Attributes:
        name: name of the function, method, attribute or operator, with the prefix of its module if it has one.
        positional: the parameters that positional arguments bind to, in order.
        star: the parameter that takes the remaining positional arguments, or None.
        defaults: the default of each parameter; ``_REQUIRED`` if it has none.
        anything: whether all arguments are accepted; they have no names then.
        exact: whether it is the schema of an operator, so that types of arguments need no check.
    """

    name: str
    positional: tuple[str, ...]
    star: str | None
    defaults: Mapping[str, Any]
    anything: bool = False
    exact: bool = False

    @staticmethod
    def parse(text: str) -> Signature:
        """Parse ``name(parameter, *rest, named=default)``; defaults are Python literals."""
        name, _, inside = text.strip().removesuffix(")").partition("(")
        if inside == "...":
            return Signature(name, (), None, {}, anything=True)
        positional: list[str] = []
        star: str | None = None
        defaults: dict[str, Any] = {}
        named_only = False
        for part in inside.split(", ") if inside else ():
            parameter, given, default = part.partition("=")
            if parameter == "*":
                named_only = True
                continue
            if parameter.startswith("*"):
                parameter = star = parameter[1:]
                named_only = True
            elif not named_only:
                positional.append(parameter)
            defaults[parameter] = ast.literal_eval(default) if given else _REQUIRED
        return Signature(name, tuple(positional), star, defaults)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The arguments by name, defaults included; None if they do not fit."""
        if not self.exact and kwargs.get("out") is not None:  # the result is written to another tensor
            return None
        if self.anything:
            return {}
        values = dict(zip(self.positional, args, strict=False))
        rest = tuple(args[len(self.positional) :])
        if rest and self.star is None:
            return None
        if rest and self.star is not None:
            alone = len(rest) == 1 and isinstance(rest[0], (tuple, list))
            values[self.star] = tuple(rest[0]) if alone else rest
        for keyword, value in kwargs.items():
            name = self._named(keyword)
            if name is None and keyword == "out":
                continue
            if name is None or name in values:
                return None
            if name == self.star:
                value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            values[name] = value
        for name, default in self.defaults.items():
            if name not in values:
                if default is _REQUIRED:
                    return None
                values[name] = default
        return values if self._fit(values) else None

    def index(self, name: str) -> int | None:
        """The index of a parameter among the positional arguments; None if it is keyword-only or has a star."""
        return self.positional.index(name) if name in self.positional else None

    def spelled(self, name: str, kwargs: Mapping[str, Any]) -> str:
        """The keyword that a call with ``kwargs`` uses for the parameter ``name``."""
        return next((keyword for keyword in kwargs if self._named(keyword) == name), name)

    def _named(self, keyword: str) -> str | None:
        if keyword in self.defaults:
            return keyword
        return next((name for name in _OTHER_NAMES.get(keyword, ()) if name in self.defaults), None)

    def _fit(self, values: Mapping[str, Any]) -> bool:
        if not self.exact and any(
            not isinstance(values[name], kinds) for name, kinds in _TYPES.items() if name in values
        ):
            return False
        # x.view(torch.int16) reinterprets the bits and is not a reshape
        return self.star is None or not any(isinstance(item, torch.dtype) for item in values[self.star])


def of_schema(schema: torch.FunctionSchema) -> Signature:
    """The signature of an operator's schema."""
    arguments = schema.arguments
    defaults = {argument.name: argument.default_value for argument in arguments}
    for argument in arguments:
        if not argument.has_default_value():
            defaults[argument.name] = _REQUIRED
    positional = tuple(argument.name for argument in arguments if not argument.kwarg_only)
    return Signature(schema.name, positional, None, defaults, exact=True)
