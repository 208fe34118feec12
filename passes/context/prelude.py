"""The prelude: a graph that runs before a recorded one, see ``hoist_lengths.py``."""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import GraphModule, Node


@dataclasses.dataclass(frozen=True, eq=False)
class Prelude:
    """A graph that computes, before each call of the main graph, what depends on the length of the cache.

    Its results are copied into buffers that keep their address. The prelude writes a result directly into its buffer if
    it can; otherwise it returns it, and the caller copies it.

    Attributes:
        graph: its graph module. It takes the original inputs named in ``inputs``, and after them a buffer for each
            result that it writes itself. It returns the other results.
        inputs: names of the original placeholders that it takes.
        placeholders: for each result, the placeholder of the main graph that takes its buffer.
        results: for each result, its example value.
        masks: for each result, whether it is a mask. A mask fills the first columns of a longer buffer.
        written: for each result, whether the graph writes it itself. It does not write a mask of several rows: the
            first columns of its buffer have strides that no symbol of the graph describes.
    """

    graph: GraphModule
    inputs: list[str]
    placeholders: list[Node]
    results: list[torch.Tensor]
    masks: list[bool]
    written: list[bool]

    def buffers(self) -> list[torch.Tensor]:
        """Example values of the buffers that the graph takes as inputs."""
        written = (result for result, write in zip(self.results, self.written, strict=True) if write)
        return [result.new_empty(result.shape) for result in written]
