"""What is computed before a graph that is recorded, see ``hoist_lengths.py``."""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import GraphModule, Node


@dataclasses.dataclass(frozen=True, eq=False)
class Prelude:
    """What is computed before the main graph.

    Attributes:
        graph: its graph module. It takes the original inputs named in ``inputs`` and, behind them, a tensor for each
            result that it writes; it returns the others.
        inputs: names of the placeholders that it takes.
        placeholders: for each result, the placeholder of the main graph that it goes to.
        results: for each result, an example of it.
        masks: for each result, whether it is a mask, which goes to the front of a longer buffer.
        written: for each result, whether the graph writes it where it belongs. The front of a mask with several rows
            has gaps, whose strides no symbol of the graph says; such a mask is returned, and copied.
    """

    graph: GraphModule
    inputs: list[str]
    placeholders: list[Node]
    results: list[torch.Tensor]
    masks: list[bool]
    written: list[bool]

    def places(self) -> list[torch.Tensor]:
        """Examples of the tensors that the graph writes to."""
        written = (result for result, write in zip(self.results, self.written, strict=True) if write)
        return [result.new_empty(result.shape) for result in written]
