"""The operator that runs a loop of the program, statement by statement, as the program would without a compiler.

    [*written, *results] = run(written, read, numbers, description)

Tensors that the loop writes are copied first, and the graph copies them back, of which Inductor makes no copy.

A graph holds the loop by its description, a string: where its source is and what its variables are. So a graph that
was kept on disk can be loaded in another process.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import InnerQError
from ...kernels.internals.dynamo_loops import Refused, remembered, tried
from .source import Place, Source, function_of, function_source_of, source_of

NAME = "innerq_loops::run"

_lib = torch.library.Library("innerq_loops", "DEF")
_tags = [torch.Tag.needs_fixed_stride_order]
if hasattr(torch.Tag, "cudagraph_unsafe"):
    _tags.append(torch.Tag.cudagraph_unsafe)
_lib.define("run(Tensor[] written, Tensor[] read, SymInt[] numbers, str loop) -> Tensor[]", tags=tuple(_tags))
OPERATOR = torch.ops.innerq_loops.run.default


@dataclasses.dataclass(frozen=True)
class Description:
    """A loop, as a graph holds it.

    Variables are described by nested tuples: ``("tensor", 2)`` is the third tensor, those that are written first;
    ``("number", 0)`` the first symbolic number, ``("value", 64)`` a constant, ``("list", (...))`` what is in a list.

    Attributes:
        place: where it is; the line is 0 if the operator runs the whole function.
        module: the module whose global variables it has.
        digest: a hash of its statements.
        range: start, stop and step, if it is a loop.
        params: the variables that it reads, by name.
        results: the names whose values a loop returns, as a list.
        outcome: what it returns, as it was when the graph was captured: ``("new", ("float32", 4))`` is a tensor of this
            dtype and number of dimensions, and an argument is described as above. None before it was tried.
        fills: the names of lists that it fills, and that nothing else reads.
    """

    place: Place
    module: str
    digest: str
    range: tuple[Any, ...]
    params: tuple[tuple[str, Any], ...]
    results: tuple[str, ...]
    fills: tuple[str, ...]
    outcome: Any = None

    def text(self) -> str:
        place, *others = (getattr(self, field.name) for field in dataclasses.fields(self))
        return repr((dataclasses.astuple(place), *others))

    @staticmethod
    def parse(text: str) -> Description:
        place, *others = ast.literal_eval(text)
        return Description(Place(*place), *others)


def digest_of(source: Source) -> str:
    return hashlib.sha256(source.text.encode()).hexdigest()


def globals_of(module: str) -> dict[str, Any]:
    """The global variables of a module, which is imported if it has not been."""
    found = sys.modules.get(module)
    return vars(importlib.import_module(module) if found is None else found)


@dataclasses.dataclass(frozen=True)
class Runner:
    """A loop that can be run."""

    description: Description
    function: Callable[..., list[Any]]

    def run(self, tensors: Sequence[torch.Tensor], numbers: Sequence[int]) -> Any:
        """What a loop returns for real tensors, some of which it writes."""
        bounds = [_value(bound, tensors, numbers) for bound in self.description.range]
        return self._call((lambda: range(*bounds)) if bounds else range, torch.stack, tensors, numbers)[0]

    def example(self, tensors: Sequence[torch.Tensor], numbers: Sequence[Any], rounds: int = 1) -> Any:
        """What a loop returns for fake tensors. It is run a few times only."""
        bounds = [_value(bound, tensors, numbers) for bound in self.description.range]

        def few(*others: Any) -> Any:
            if others and all(isinstance(bound, int) for bound in others):
                return range(*others)
            return [(bounds or [0, *others])[0 if bounds else len(others) > 1]] * rounds

        def stack(items: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
            if any(item.shape != items[0].shape or item.dtype != items[0].dtype for item in items):
                raise Refused("it stacks tensors of several shapes")
            if len(items) != rounds:
                raise Refused("it does not append one tensor in each iteration")
            size = list(items[0].shape)
            size.insert(dim if dim >= 0 else dim + len(size) + 1, bounds[1] - bounds[0])
            return items[0].new_empty(size)

        results, values = self._call(few, stack, tensors, numbers)
        for (name, described), value in zip(self.description.params, values, strict=True):
            if name not in self.description.fills and not _same(value, _value(described, tensors, numbers)):
                raise Refused(f"it changes the list {name}")
        return results

    def new(self, returned: Any, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors among what a loop returns that are no arguments.

        Raises:
            InnerQError: if it returns something else than when the graph was captured.
        """
        found: list[torch.Tensor] = []
        if not _matches(self.description.outcome, returned, tensors, found):
            raise InnerQError(f"the loop in {self.description.place} returns something else than when it was compiled")
        return found

    def _call(self, range_: Any, stack: Any, tensors: Sequence[torch.Tensor], numbers: Sequence[Any]) -> Any:
        values = [_value(described, tensors, numbers) for _, described in self.description.params]
        return self.function(range_, stack, *values), values


def _matches(outcome: Any, returned: Any, tensors: Sequence[torch.Tensor], found: list[torch.Tensor]) -> bool:
    kind, what = outcome
    if kind == "new":
        found.append(returned)
        return isinstance(returned, torch.Tensor) and what == metadata(returned)
    if kind == "tensor":
        return returned is tensors[what]
    if kind in ("list", "tuple"):
        same = type(returned).__name__ == kind and len(returned) == len(what)
        return same and all(_matches(item, value, tensors, found) for item, value in zip(what, returned, strict=True))
    return outcome == description_of(returned)


def metadata(tensor: torch.Tensor) -> tuple[str, int]:
    """The dtype and the number of dimensions of a tensor, as a description has them."""
    return str(tensor.dtype), tensor.dim()


@functools.lru_cache(maxsize=256)
def runner_of(text: str) -> Runner:
    """The loop that a graph describes.

    Raises:
        Refused: if its source is another one by now.
    """
    description = Description.parse(text)
    names = globals_of(description.module)
    source = (source_of if description.place.line else function_source_of)(description.place, names)
    if digest_of(source) != description.digest:
        raise Refused(f"the loop in {description.place} has changed since it was compiled")
    params = [name for name, _ in description.params]
    return Runner(description, function_of(source, names, description.place.file, params, description.results))


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Fake tensors like these, which a loop may write."""
    return [tensor.new_empty_strided(tensor.size(), tensor.stride()) for tensor in tensors]


def description_of(value: Any) -> Any:
    """The description of a constant."""
    if isinstance(value, (torch.dtype, torch.device)):
        return (type(value).__name__, str(value).removeprefix("torch."))
    return ("value", value)


def _value(described: Any, tensors: Sequence[torch.Tensor], numbers: Sequence[Any]) -> Any:
    kind, value = described
    if kind == "tensor":
        return tensors[value]
    if kind == "number":
        return numbers[value]
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_value(item, tensors, numbers) for item in value)
    if kind == "dict":
        return {name: _value(item, tensors, numbers) for name, item in value}
    return getattr(torch, value) if kind == "dtype" else torch.device(value) if kind == "device" else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or not isinstance(one, torch.Tensor)


def _version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written, None for those of inference mode, which do not count it."""
    return None if tensor.is_inference() else tensor._version


def _run(written: list[torch.Tensor], read: list[torch.Tensor], numbers: list[int], loop: str) -> list[torch.Tensor]:
    copied = [tensor.clone() for tensor in written]
    tensors = [*copied, *read]
    versions = list(map(_version, read))
    results, held = [], {tensor.untyped_storage().data_ptr() for tensor in tensors}
    runner = runner_of(loop)
    returned = runner.run(tensors, numbers)
    if versions != list(map(_version, read)):
        raise InnerQError(
            f"the loop in {Description.parse(loop).place} writes a tensor that it did not write when it was compiled"
        )
    for result in runner.new(returned, tensors):
        place = result.untyped_storage().data_ptr()
        # an operator returns tensors of their own, with the strides that the graph was compiled for
        results.append(result.clone(memory_format=torch.contiguous_format) if place in held else result.contiguous())
        held.add(results[-1].untyped_storage().data_ptr())
    return [*copied, *results]


def _fake(written: list[torch.Tensor], read: list[torch.Tensor], numbers: list[Any], loop: str) -> list[torch.Tensor]:
    tensors = [*written, *read]
    found = remembered(loop, tensors, numbers, lambda: _examples(tensors, numbers, loop))
    others = [tensors[0].new_empty(shape, dtype=dtype, device=device) for shape, dtype, device in found]
    return [*(tensor.clone() for tensor in written), *others]


def _examples(tensors: list[torch.Tensor], numbers: list[Any], loop: str) -> list[Any]:
    """Shapes, dtypes and devices of what a loop returns."""
    with tried(tensors):
        examples = copies(tensors)
        new = runner_of(loop).new(runner_of(loop).example(examples, numbers), examples)
    return [(tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in new]


_lib.impl("run", _run, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, _fake, lib=_lib)
