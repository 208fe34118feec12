"""The operator that runs a function with a loop, statement by statement, as the program would without a compiler.

    results = run(tensors, numbers, description)

A graph holds the function by its description, a string: where its source is and what its arguments are. So a graph that
was kept on disk can be loaded in another process.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...errors import InnerQError
from ...kernels.internals.dynamo_loops import Refused
from ...kernels.internals.graphs import same_sizes
from ...kernels.internals.tensors import memory_of
from .finding import Place
from .source import Source, function_of, source_of

NAME = "innerq_loops::run"

_lib = torch.library.Library("innerq_loops", "DEF")
_tags = [torch.Tag.needs_fixed_stride_order]
if hasattr(torch.Tag, "cudagraph_unsafe"):
    _tags.append(torch.Tag.cudagraph_unsafe)
_lib.define("run(Tensor[] tensors, SymInt[] numbers, str loop) -> Tensor[]", tags=tuple(_tags))
OPERATOR = torch.ops.innerq_loops.run.default


@dataclasses.dataclass(frozen=True)
class Description:
    """A function with a loop, as a graph holds it.

    Values are described by tuples: ``("tensor", 2)`` is the third tensor, ``("number", 0)`` the first symbolic number,
    ``("value", 64)`` a constant.

    Attributes:
        place: where it is.
        module: the module whose global variables it has.
        digest: a hash of its statements.
        params: its arguments.
        outcome: what it returns, as it was when the graph was captured: ``("new", dtype, device, sizes)`` is a tensor.
            Each of its sizes is a number, or one of an argument: ``(2, 1)`` is the second size of the third tensor,
            ``(None, 0)`` the first symbolic number. ``("tuple", ...)`` holds others, and an argument is described as
            above. None before it was tried.
    """

    place: Place
    module: str
    digest: str
    params: tuple[tuple[str, Any], ...]
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
    """A function that can be run."""

    description: Description
    function: Callable[..., Any]

    def run(self, tensors: Sequence[torch.Tensor], numbers: Sequence[int]) -> Any:
        """What it returns for real tensors."""
        write = _writing(tensors, InnerQError(f"the loop in {self.description.place} writes one of its arguments"))
        return self._call((range, _read, write, lambda *_: None), tensors, numbers)

    def example(self, tensors: Sequence[torch.Tensor], numbers: Sequence[Any], rounds: int | None) -> Any:
        """What it returns for fake tensors. Its loops of symbolic length are run a few times only.

        Args:
            tensors: its arguments.
            numbers: its arguments.
            rounds: how often; None if all sizes are numbers: twice, or less.
        """
        carried: list[torch.Tensor] = []

        def few(*bounds: Any) -> Any:
            carried.clear()
            if rounds is None:
                return range(*bounds)[:2]
            if all(isinstance(bound, int) for bound in bounds):
                return range(*bounds)
            return [0 if len(bounds) == 1 else bounds[0]] * rounds

        def end(*values: Any) -> None:
            if carried and not all(map(_alike, carried, values)):
                raise Refused("the shape or dtype of a tensor changes from one iteration to the next")
            carried[:] = map(_read, values)

        write = _writing(tensors, Refused("it writes one of its arguments"))
        return self._call((few, _read, write, end), tensors, numbers)

    def new(self, returned: Any, tensors: Sequence[torch.Tensor], numbers: Sequence[int]) -> list[torch.Tensor]:
        """The tensors among what a function returns that are no arguments.

        Raises:
            InnerQError: if it returns something else than when the graph was captured.
        """
        found = _Found(tensors, numbers, [], set(map(memory_of, tensors)))
        if not found.matches(self.description.outcome, returned):
            raise InnerQError(f"the loop in {self.description.place} returns something else than when it was compiled")
        return found.new

    def _call(self, watching: tuple[Any, ...], tensors: Sequence[torch.Tensor], numbers: Sequence[Any]) -> Any:
        return self.function(*watching, *(_value(value, tensors, numbers) for _, value in self.description.params))


@dataclasses.dataclass(frozen=True)
class _Found:
    """Compares what a function returns with its description.

    No function that calls itself from within another: that would keep the tensors until the garbage collector runs.

    Attributes:
        tensors, numbers: the arguments.
        new: the tensors that are no arguments.
        places: the memory of arguments and new tensors.
    """

    tensors: Sequence[torch.Tensor]
    numbers: Sequence[int]
    new: list[torch.Tensor]
    places: set[int]

    def matches(self, outcome: Any, value: Any) -> bool:
        kind, *what = outcome
        if kind == "tuple":
            return type(value) is tuple and len(value) == len(what) and all(map(self.matches, what, value))
        if kind == "tensor":
            return value is self.tensors[what[0]]
        if kind != "new":
            return outcome == description_of(value) and type(what[0]) is type(value)
        if not isinstance(value, torch.Tensor) or memory_of(value) in self.places:
            return False
        self.new.append(value)
        self.places.add(memory_of(value))
        sizes = [size_of(size, self.tensors, self.numbers) for size in what[2]]
        kinds = (str(value.dtype), str(value.device))
        return kinds == tuple(what[:2]) and sizes == list(value.shape)


def _read(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise Refused(f"its loop reads, writes or carries on a {type(value).__name__}")
    return value


def _writing(tensors: Sequence[torch.Tensor], error: Exception) -> Callable[..., Any]:
    """What is told of each value that a function writes: the error is raised if it is in the memory of an argument."""
    held = set(map(memory_of, tensors))

    def write(value: Any, element: bool = True) -> Any:
        if isinstance(value, torch.Tensor) and memory_of(value) in held:
            raise error
        return _read(value) if element else value

    return write


def _alike(one: torch.Tensor, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and one.dtype == other.dtype and same_sizes(one.shape, other.shape)


def size_of(size: Any, tensors: Sequence[torch.Tensor], numbers: Sequence[Any]) -> Any:
    """The size of a result, as a description has it, for these arguments."""
    if isinstance(size, int):
        return size
    index, at = size
    return numbers[at] if index is None else tensors[index].shape[at]


def sizes(tensors: Sequence[torch.Tensor], numbers: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """All that may be the size of a result, with its description."""
    for index, tensor in enumerate(tensors):
        for at, size in enumerate(tensor.shape):
            yield size, (index, at)
    for at, number in enumerate(numbers):
        yield number, (None, at)


@functools.lru_cache(maxsize=256)
def runner_of(text: str) -> Runner:
    """The function that a graph describes.

    Raises:
        Refused: if its source is another one by now.
    """
    description = Description.parse(text)
    names = globals_of(description.module)
    source = source_of(description.place, names)
    if digest_of(source) != description.digest:
        raise Refused(f"the loop in {description.place} has changed since it was compiled")
    return Runner(description, function_of(source, names, description.place.file))


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Fake tensors like these."""
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
    return getattr(torch, value) if kind == "dtype" else torch.device(value) if kind == "device" else value


def _version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written, None for those of inference mode, which do not count it."""
    return None if tensor.is_inference() else tensor._version


def _run(tensors: list[torch.Tensor], numbers: list[int], loop: str) -> list[torch.Tensor]:
    versions = list(map(_version, tensors))
    runner = runner_of(loop)
    try:
        returned = runner.run(tensors, numbers)
    except Refused as reason:
        raise InnerQError(
            f"the loop in {runner.description.place} does something else than when it was compiled: {reason}"
        ) from None
    if versions != list(map(_version, tensors)):
        raise InnerQError(f"the loop in {runner.description.place} writes one of its arguments")
    # with the strides that the graph was compiled for
    return [result.contiguous() for result in runner.new(returned, tensors, numbers)]


def _fake(tensors: list[torch.Tensor], numbers: list[Any], loop: str) -> list[torch.Tensor]:
    return [
        tensors[0].new_empty(
            [size_of(size, tensors, numbers) for size in shape],
            dtype=getattr(torch, dtype.removeprefix("torch.")),
            device=torch.device(device),
        )
        for dtype, device, shape in _new(Description.parse(loop).outcome)
    ]


def _new(outcome: Any) -> Iterator[Any]:
    kind, *what = outcome
    if kind == "new":
        yield what
    for item in what if kind == "tuple" else ():
        yield from _new(item)


_lib.impl("run", _run, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, _fake, lib=_lib)
