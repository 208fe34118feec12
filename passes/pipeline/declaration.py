"""The declaration of a pass, and checks on a list of declarations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch.fx import GraphModule

from ..context import PassContext

#: The fields of the context that are set before the first pass, and that no pass may write.
INPUTS = frozenset({"config", "static_lengths", "uncounted", "left_out", "failures"})
FIELDS = frozenset(field.name for field in dataclasses.fields(PassContext))


class DeclarationError(TypeError):
    """A pass accesses a field that it did not declare, or a list of declarations is inconsistent."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """The declaration of one pass.

    Attributes:
        run: the function. It changes the graph module in place and returns it.
        summary: what it does, in one line.
        reads: the fields of the context that it reads. Each has to be an input or written by an earlier pass.
        writes: the fields that it writes. It may read them, too.
        needs: names of passes that it depends on. If one of them does not run, this one does not either.
        required: whether a graph with a quantized cache cannot be compiled without it.
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
    """Check that a list of declarations is consistent.

    Raises:
        DeclarationError: if two passes have the same name, a declared field does not exist, a field is read before any
            pass writes it, an input is written, or a needed pass does not exist.
    """
    names = [graph_pass.name for graph_pass in passes]
    written: set[str] = set(INPUTS)
    for graph_pass in passes:
        name, reads, writes = graph_pass.name, {*graph_pass.reads}, {*graph_pass.writes}
        if names.count(name) > 1:
            raise DeclarationError(f"two passes are called {name!r}: rename the function of one of them")
        if unknown := (reads | writes) - FIELDS:
            raise DeclarationError(f"{name} declares {_listed(unknown)}, but the context has only {_listed(FIELDS)}")
        if inputs := writes & INPUTS:
            raise DeclarationError(f"{name} declares to write {_listed(inputs)}, an input that no pass may write")
        if early := reads - written:
            raise DeclarationError(
                f"{name} declares to read {_listed(early)}, which no earlier pass writes: move the pass, or let an "
                "earlier one write it"
            )
        if missing := {*graph_pass.needs} - {*names}:
            raise DeclarationError(f"{name} needs {_listed(missing)}, but there is no pass of that name")
        written |= writes


def _listed(names: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))
