"""Programs that are compiled with other backends have the symbols that Dynamo gives them."""

from __future__ import annotations

import pytest
import torch

import innerq_compile.compiler.backend  # noqa: F401  makes sizes of programs that are compiled with it symbols


class Backend:
    """A backend that cannot be hashed, as that of Inductor cannot: it defines equality."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: list[object]):
        self.graphs.append(gm)
        return gm.forward


def program(tokens: torch.Tensor) -> torch.Tensor:
    return tokens + 1


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_sizes_of_other_backends_are_constants_at_first():
    backend = Backend()
    assert torch.compile(program, backend=backend)(torch.zeros(2, 7, dtype=torch.long)).shape == (2, 7)
    (graph,) = backend.graphs
    assert [node.meta["example_value"].shape for node in graph.graph.find_nodes(op="placeholder")] == [(2, 7)]


def test_inductor_itself_compiles():
    assert torch.equal(torch.compile(program)(torch.zeros(2, 7, dtype=torch.long)), torch.ones(2, 7, dtype=torch.long))
