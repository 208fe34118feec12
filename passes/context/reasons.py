"""Why something stays as it is."""

from __future__ import annotations

import dataclasses

from torch.fx import Node

from ..graph.locations import module_path, source_line


class GraphError(ValueError):
    """A graph that can be compiled neither rewritten nor as it stands. The message says what to change."""


class NoMatch(Exception):
    """The reason why a place that looks like attention is none that is understood."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a place that looks like attention, or a whole graph, was left as it is.

    Attributes:
        text: the reason in words.
        where: the line of the user's program, or an empty string.
        layer: the module that runs it, as ``layers.0.self_attn``, or an empty string.
    """

    text: str
    where: str = ""
    layer: str = ""

    @classmethod
    def at(cls, node: Node, text: str) -> Reason:
        """A reason that concerns ``node``."""
        return cls(text, source_line(node), module_path(node))

    def __str__(self) -> str:
        return f"{self.text} ({self.where})" if self.where else self.text


@dataclasses.dataclass(frozen=True)
class PassFailure:
    """A pass that raised what it did not foresee.

    Attributes:
        name: the pass.
        error: the exception.
        left_out: the passes that do not run because of it, itself among them.
    """

    name: str
    error: Exception
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        others = ", ".join(name for name in self.left_out if name != self.name)
        return (
            f"the pass {self.name} failed with {type(self.error).__name__}: {self.error}; it is left out"
            f"{', and with it ' + others if others else ''} (the traceback is in the log innerq_compile.passes)"
        )
