"""What a region does, as a value: regions with equal descriptions can share one compiled function.

A description holds, for each node, what it calls, its constant arguments, where its other arguments come from (a node
of the region, counted from its start, or an input, counted by first use), and the type, shape, strides and device of
its value. For each input it holds the same, whether it is a parameter or keeps its address, and which inputs share
memory that the region writes to.

Symbols of sizes are numbered by first use as well: the cache of each layer has a capacity of its own, which is a symbol
of its own. A compiled function takes them as inputs. It may rely on conditions that hold for the symbols that it was
compiled with (see ``guards.py``), and on their ranges, which are part of the description.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from ...kernels.internals.dynamo_graphs import ConstantSource, source_of, static
from ...kernels.internals.graphs import free_unbacked_symbols, range_of
from ..graph.aliases import storage_of
from ..graph.reading import spelling, written
from ..graph.values import example_or_none, tensor_of
from .cuts import is_size, same_sizes


@dataclasses.dataclass(frozen=True)
class Description:
    """A description of a region.

    Attributes:
        value: a number, equal for regions of the same describer that do the same.
        symbols: the symbols of sizes in the region, as numbered by ``value``.
    """

    value: int
    symbols: list[sympy.Symbol]


@dataclasses.dataclass(frozen=True)
class _Size:
    """The expression of a symbolic size, its symbols, and their ranges."""

    expression: sympy.Expr
    symbols: tuple[sympy.Symbol, ...]
    ranges: tuple[str, ...]

    @classmethod
    def of(cls, size: torch.SymInt | torch.SymFloat) -> _Size:
        expression = size.node.expr
        symbols = tuple(sorted(expression.free_symbols, key=str))
        return cls(expression, symbols, tuple(str(range_of(size, symbol)) for symbol in symbols))

    def renamed(self, names: Mapping[sympy.Symbol, sympy.Symbol]) -> _Size:
        """The size with other symbols of the same ranges."""
        return dataclasses.replace(
            self, expression=self.expression.xreplace(names), symbols=tuple(names[symbol] for symbol in self.symbols)
        )


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What is known of a value or of a call: a number, equal for equal facts, and the symbolic sizes apart from it."""

    fixed: int
    sizes: tuple[_Size, ...]


class Describer:
    """Describes nodes and regions of one graph. Remembers what it has found for each node."""

    def __init__(self, graph: Graph) -> None:
        self._same_size = same_sizes(graph)
        self._calls: dict[Node, tuple[_Facts, tuple[Node, ...]]] = {}
        self._values: dict[Node, _Facts] = {}
        self._facts: dict[Hashable, int] = {}
        self._descriptions: dict[Hashable, int] = {}
        self._written: dict[Node, list[int | None]] = {}
        self._numbered: dict[tuple[sympy.Expr, tuple[int, ...]], Hashable] = {}
        self._aliases: dict[sympy.Symbol, sympy.Symbol] = {}

    def call(self, node: Node) -> int:
        """What a node calls and returns, as a number, without symbolic sizes and where its arguments come from."""
        call = "call", self._call(node)[0].fixed, self._value(node).fixed
        return self._facts.setdefault(call, len(self._facts))

    def region(self, nodes: Sequence[Node], outputs: Sequence[Node]) -> Description:
        """The description of a region of these nodes that returns ``outputs``."""
        inside = {node: index for index, node in enumerate(nodes)}
        inputs: dict[Node, int] = {}
        numbers = _Numbers(self._numbered)
        found: list[Hashable] = []
        for node in nodes:
            call, arguments = self._call(node)
            for argument in arguments:
                if argument not in inside and argument not in inputs:
                    inputs[argument] = -1 - len(inputs)
                    found += _input(argument), *numbers.of(self._value(argument))
            places = tuple(inside[argument] if argument in inside else inputs[argument] for argument in arguments)
            found += places, *numbers.of(call), *numbers.of(self._value(node))
        found.append(tuple(inside[node] for node in outputs))
        found.append(self._shared_memory(nodes, list(inputs)))
        number = self._descriptions.setdefault(tuple(found), len(self._descriptions))
        return Description(number, [self._aliases.get(symbol, symbol) for symbol in numbers.symbols])

    def inputs(self, nodes: Sequence[Node]) -> list[Node]:
        """The inputs of a region of these nodes, in the order of first use."""
        inside = set(nodes)
        used = dict.fromkeys(argument for node in nodes for argument in self._call(node)[1])
        return [argument for argument in used if argument not in inside]

    def _shared_memory(self, nodes: Sequence[Node], inputs: Sequence[Node]) -> Hashable:
        """Which inputs share memory that a node writes to, and where in it each begins."""
        changed = {storage for node in nodes for storage in self._writes(node)} - {None}
        sharing: dict[int | None, list[int]] = {}
        for index, node in enumerate(inputs):
            if (storage := storage_of(node)) in changed:
                sharing.setdefault(storage, []).append(index)
        shared = [indices for indices in sharing.values() if len(indices) > 1]
        return tuple((index, _offset(inputs[index])) for indices in shared for index in indices), len(shared)

    def _writes(self, node: Node) -> list[int | None]:
        if node not in self._written:
            self._written[node] = [storage_of(target) for target in written(node)]
        return self._written[node]

    def _call(self, node: Node) -> tuple[_Facts, tuple[Node, ...]]:
        if node not in self._calls:
            arguments: list[Node] = []
            sizes: list[torch.SymInt | torch.SymFloat] = []
            fixed = _literal(spelling(node), arguments, sizes)
            used = tuple(self._same_size.get(argument, argument) for argument in arguments)
            self._calls[node] = self._found(fixed, sizes), used
        return self._calls[node]

    def _value(self, node: Node) -> _Facts:
        if node not in self._values:
            sizes: list[torch.SymInt | torch.SymFloat] = []
            facts = self._found(_described(example_or_none(node), sizes), sizes)
            self._values[node] = self._independent(facts) if _is_own_buffer(node) else facts
        return self._values[node]

    def _independent(self, facts: _Facts) -> _Facts:
        """The facts with other symbols in the place of those of the graph, each of which stands for one of them.

        A mask in a buffer of this package has room for the capacity of the first layer's cache. Layers are alike for
        which that is another symbol than the capacity of their own cache, and one for which it is the same.
        """
        alias = {symbol: sympy.Dummy(symbol.name, integer=True) for size in facts.sizes for symbol in size.symbols}
        self._aliases |= {new: old for old, new in alias.items()}
        return dataclasses.replace(facts, sizes=tuple(size.renamed(alias) for size in facts.sizes))

    def _found(self, fixed: Hashable, sizes: Sequence[torch.SymInt | torch.SymFloat]) -> _Facts:
        return _Facts(self._facts.setdefault(fixed, len(self._facts)), tuple(map(_Size.of, sizes)))


class _Numbers:
    """Numbers the symbols of one region, and writes sizes with these numbers.

    Args:
        known: expressions that were written before, by the expression and the numbers of its symbols.
    """

    def __init__(self, known: dict[tuple[sympy.Expr, tuple[int, ...]], Hashable]) -> None:
        self.symbols: dict[sympy.Symbol, int] = {}
        self._known = known

    def of(self, facts: _Facts) -> Iterator[Hashable]:
        """The facts, with each symbolic size and the range of each new symbol."""
        yield facts.fixed
        for size in facts.sizes:
            for symbol, its_range in zip(size.symbols, size.ranges, strict=True):
                if symbol not in self.symbols:
                    self.symbols[symbol] = len(self.symbols)
                    yield its_range
            key = size.expression, tuple(self.symbols[symbol] for symbol in size.symbols)
            if key not in self._known:
                names = {symbol: sympy.Symbol(f"size{self.symbols[symbol]}", integer=True) for symbol in size.symbols}
                self._known[key] = sympy.srepr(size.expression.xreplace(names))
            yield self._known[key]


def _offset(node: Node) -> str:
    value = tensor_of(node)
    return "" if value is None else str(value.storage_offset())


def _is_own_buffer(node: Node) -> bool:
    """Whether a node is an input that this package adds to the program's, a result of the prelude."""
    return node.op == "placeholder" and isinstance(source_of(node), ConstantSource)


def _input(node: Node) -> Hashable:
    """What an input of a region is, apart from its value."""
    if node.op == "get_attr":
        return ("get_attr", node.target)
    if node.op == "placeholder":
        return (static(node), isinstance(example_or_none(node), torch.nn.Parameter))
    return (None, False)


def _described(value: Any, sizes: list[torch.SymInt | torch.SymFloat]) -> Hashable:
    """A value of the graph: type, dtype, device, shape and strides of a tensor. Appends its symbolic sizes.

    A float may be symbolic like a size: with ``dynamic=True`` the epsilon of each norm is.
    """
    if isinstance(value, torch.Tensor):
        shape = tuple(_size(size, sizes) for size in value.shape)
        strides: tuple[Hashable, ...] = ()
        if value.layout is torch.strided:
            strides = tuple(_size(size, sizes) for size in value.stride())
            if is_size(offset := value.storage_offset()):  # constant ones may differ: they are no part of compiled code
                sizes.append(offset)
                strides += ("offset",)
        flags = value.layout, value.requires_grad, value.is_inference(), value.is_conj(), value.is_neg()
        return type(value).__name__, value.dtype, value.device, shape, strides, flags
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *(_described(item, sizes) for item in value)
    if isinstance(value, torch.SymInt):
        return "SymInt", _size(value, sizes)
    if isinstance(value, torch.SymFloat):
        sizes.append(value)
        return "SymFloat"
    return type(value).__name__, repr(value)


def _size(size: Any, sizes: list[torch.SymInt | torch.SymFloat]) -> Hashable:
    if is_size(size):
        sizes.append(size)
        return None
    if isinstance(size, torch.SymInt) and free_unbacked_symbols(size):
        return str(size)  # known on the device only, and computed in one region
    return int(size)


def _literal(value: Any, arguments: list[Node], sizes: list[torch.SymInt | torch.SymFloat]) -> Hashable:
    """An argument without its nodes and symbolic sizes, which are appended to the lists."""
    if isinstance(value, Node):
        arguments.append(value)
        return Node
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *(_literal(item, arguments, sizes) for item in value)
    if isinstance(value, dict):
        return "dict", *((name, _literal(item, arguments, sizes)) for name, item in value.items())
    if isinstance(value, slice):
        return "slice", *(_literal(item, arguments, sizes) for item in (value.start, value.stop, value.step))
    if isinstance(value, torch.SymInt):
        return "SymInt", _size(value, sizes)
    if isinstance(value, float):
        return "float", value.hex()  # nan is equal to itself here, and 0.0 is not equal to -0.0
    return (type(value).__name__, value) if isinstance(value, Hashable) else id(value)
