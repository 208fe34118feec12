"""Programs compiled region by region, whatever that saves, and small stacks of layers to try it with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.fx import GraphModule

from innerq_compile.compiler import regions as compiler
from innerq_compile.kernels.internals import inductor
from innerq_compile.passes.regions import Regions, find, find_regions
from tests.helpers.without_inductor import Runner, as_it_is, without_inductor


def captured(
    program: Callable[..., Any], *inputs: Any, dynamic: bool | None = None, grad: bool = False
) -> tuple[GraphModule, list[Any]]:
    """The graph that Dynamo captures of a call, by default without gradients, and its example inputs."""
    found = []

    def backend(gm: GraphModule, examples: list[Any]) -> Callable[..., Any]:
        found.append((gm, examples))
        return gm.forward

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        torch.compile(program, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    ((gm, examples),) = found
    return gm, examples


@dataclasses.dataclass
class InRegions:
    """A program that is compiled region by region.

    Attributes:
        call: the program.
        found: the regions of each graph that Dynamo captured; whole graphs have none.
        functions: for each graph, how many functions were compiled.
    """

    call: Callable[..., Any]
    found: list[Regions] = dataclasses.field(default_factory=list)
    functions: list[int] = dataclasses.field(default_factory=list)

    @property
    def last(self) -> str:
        return str(self.found[-1]) if self.found[-1].regions else self.found[-1].reason


def in_regions(program: Callable[..., Any], dynamic: bool | None = None) -> InRegions:
    """Compile a program region by region. It fails where the backend would compile the graph as a whole."""
    made = InRegions(program)

    def backend(gm: GraphModule, examples: list[Any]) -> Callable[..., Any]:
        with always_cut():
            found = find_regions(gm.graph)
        made.found.append(found)
        with counted() as count:
            if found.regions:
                compiled = compiler.compile_regions(gm, found, examples, {})
            else:
                compiled = inductor.compile_graph(gm, examples, {})
        made.functions.append(count())
        return compiled

    made.call = torch.compile(program, backend=backend, fullgraph=True, dynamic=dynamic)
    return made


@contextlib.contextmanager
def always_cut() -> Iterator[None]:
    """Graphs are cut however little that saves, which is little for layers as small as those of tests."""
    with mock.patch.multiple(find, _NODES_PER_KIND=0, _WORTHWHILE=2.0):
        yield


@contextlib.contextmanager
def counted(name: str = "") -> Iterator[Callable[[], int]]:
    """Count the graphs that are compiled, or those whose class has this name: regions are of the class ``Region``."""
    graphs: list[GraphModule] = []
    compile_graph = inductor.compile_graph

    def counting(gm: GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
        if name in type(gm).__name__:
            graphs.append(gm)
        return compile_graph(gm, inputs, options)

    with mock.patch.object(inductor, "compile_graph", counting):
        yield lambda: len(graphs)


@contextlib.contextmanager
def uncompiled(run: Runner = as_it_is) -> Iterator[None]:
    """Within the block, regions run as they were extracted."""
    torch._dynamo.reset()
    with torch.no_grad(), without_inductor(run):
        yield
    torch._dynamo.reset()


WIDTH = 16


class Layer(nn.Module):
    """A layer of a decoder without attention: norm, two products, residual."""

    def __init__(self, width: int = WIDTH, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.eps = eps

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        y = self.up(y)
        y = torch.sigmoid(y) * torch.tanh(y) + y.abs() * 0.1
        y = y * 2 - y.pow(3).tanh()
        return x + self.down(y)


class Other(Layer):
    """Another kind of layer."""

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        y = torch.softmax(self.up(x.tanh()), -1)
        return (x + self.down(y * y)).clamp(-3, 3)


class Stack(nn.Module):
    """Layers one after the other, a norm and a head."""

    def __init__(self, layers: Sequence[nn.Module], width: int = WIDTH, head: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.embed = nn.Embedding(11, width)
        self.head = nn.Linear(width, 7) if head else nn.Identity()

    def forward(self, ids: torch.Tensor, *args: Any) -> Any:
        x = self.embed(ids).sin()
        for layer in self.layers:
            x = layer(x, *args)
        return self.head(x.cos())
