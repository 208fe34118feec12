"""Graphs that run without Inductor, where compiling would take most of a test's time.

Dynamo, the backend and the passes do all that they do otherwise. In Inductor's place a graph runs as the passes left it
(`as_it_is`), or goes through AOTAutograd first, as Inductor's own graphs do (`through_autograd`). The latter traces the
operators, and finds fault with wrong example values and with operators that do not say what they write.

    python -m tests.helpers.without_inductor SCRIPT ARGUMENTS        # a script in a process of its own
"""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch.fx import GraphModule

from innerq_compile.kernels.internals import inductor
from innerq_compile.kernels.internals.graphs import write_code

#: Makes of a graph and its example inputs what runs in its place.
Runner = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]


def as_it_is(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Run the graph as the passes left it."""
    gm.recompile()
    write_code(gm)
    return gm.forward


def through_autograd(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Trace the graph with AOTAutograd, and run the operators that are found one by one."""
    from torch._dynamo.backends.debugging import aot_eager

    return aot_eager(gm, example_inputs)


@contextlib.contextmanager
def without_inductor(run: Runner = through_autograd) -> Iterator[list[dict[str, Any] | None]]:
    """Within the block graphs run by ``run``.

    Yields:
        The options that Inductor would have got for each graph, less what torch 2.11 needs for every one.
    """
    options: list[dict[str, Any] | None] = []

    def compile_fx(gm, example_inputs, *args, config_patches=None, **kwargs):
        if inductor._CHECKS_OF_INDICES_FAIL and config_patches:
            config_patches = {k: v for k, v in config_patches.items() if k != inductor._CHECKS_OF_INDICES}
        options.append(config_patches)
        return run(gm, example_inputs)

    with mock.patch("torch._inductor.compile_fx.compile_fx", compile_fx):
        yield options


def forget_graphs() -> None:
    """Dynamo has compiled nothing, and there are no reports of graphs."""
    import innerq_compile

    torch._dynamo.reset()
    innerq_compile.clear_reports()


if __name__ == "__main__":
    del sys.argv[0]
    with without_inductor():
        runpy.run_path(sys.argv[0], run_name="__main__")
