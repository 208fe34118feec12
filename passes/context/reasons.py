"""Reasons why attentions and graphs are not rewritten, and the exceptions that carry them."""

from __future__ import annotations

import dataclasses

from torch.fx import Node

from ..graph.locations import module_path, source_line


class GraphError(ValueError):
    """A graph that cannot be compiled at all, rewritten or not. The message says what the user has to change."""


class NoMatch(Exception):
    """Raised by matchers for something that looks like attention but is not supported. The message is the reason."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an attention, or a whole graph, was not rewritten.

    Attributes:
        text: the reason, for the user.
        where: the line of the user's program, or an empty string.
        layer: the module that computes it, as ``layers.0.self_attn``, or an empty string.
    """

    text: str
    where: str = ""
    layer: str = ""

    @classmethod
    def at(cls, node: Node, text: str) -> Reason:
        """A reason with the source line and the module of ``node``."""
        return cls(text, source_line(node), module_path(node))

    def __str__(self) -> str:
        return f"{self.text} ({self.where})" if self.where else self.text


@dataclasses.dataclass(frozen=True)
class PassFailure:
    """A pass that raised an unexpected exception.

    Attributes:
        name: the name of the pass.
        error: the exception.
        left_out: names of the passes that do not run because of it: itself and those that need it.
    """

    name: str
    error: Exception
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        others = ", ".join(name for name in self.left_out if name != self.name)
        return (
            f"the pass {self.name} failed with {type(self.error).__name__}: {self.error}; it is left out"
            f"{', and with it ' + others if others else ''} (the log innerq_compile.passes has the traceback)"
        )
