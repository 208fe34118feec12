"""A pass, and what it declares of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch.fx import GraphModule

from ..context import PassContext

#: What the context has before the first pass.
GIVEN = frozenset({"config", "static_lengths", "left_out", "failures"})
FIELDS = frozenset(field.name for field in dataclasses.fields(PassContext))


class DeclarationError(TypeError):
    """A pass that reads or writes what it did not declare, or a list of passes that cannot be right."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of the pipeline.

    Attributes:
        run: the function, which changes the graph module that it gets and returns it.
        summary: what it does, in one line.
        reads: the fields of the context that it looks at. Each is given, or written by a pass in front of it.
        writes: the fields that it changes. It may look at them, too.
        needs: the passes that it takes for granted, by name. Without them it is left out.
        required: whether a graph with a quantized cache cannot run without it.
    """

    run: Callable[[GraphModule, PassContext], GraphModule]
    summary: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    required: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


def check(passes: Sequence[Pass]) -> None:
    """Whether a list of passes can be right.

    Raises:
        DeclarationError: for a field that there is not, a field that is read before any pass writes it, a field that is
            given and written, a pass that needs one that there is not, and two passes of one name.
    """
    names = [graph_pass.name for graph_pass in passes]
    written: set[str] = set(GIVEN)
    for graph_pass in passes:
        name, reads, writes = graph_pass.name, {*graph_pass.reads}, {*graph_pass.writes}
        if names.count(name) > 1:
            raise DeclarationError(f"two passes are called {name!r}: a pass goes by the name of its function")
        if unknown := (reads | writes) - FIELDS:
            raise DeclarationError(f"{name} declares {_listed(unknown)}, and the context has {_listed(FIELDS)}")
        if given := writes & GIVEN:
            raise DeclarationError(f"{name} declares to write {_listed(given)}, which is given and stays as it is")
        if early := reads - written:
            raise DeclarationError(
                f"{name} declares to read {_listed(early)}, which no pass in front of it writes: move the pass, or let "
                "one in front of it write that"
            )
        if missing := {*graph_pass.needs} - {*names}:
            raise DeclarationError(f"{name} needs {_listed(missing)}: there is no pass of that name")
        written |= writes


def _listed(names: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))
