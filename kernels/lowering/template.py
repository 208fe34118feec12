"""The partial kernels of decode attention as Triton templates of Inductor."""

from __future__ import annotations

import functools
import textwrap
from typing import Any

from ..internals.templates import (
    SymbolicGridFn,
    TritonTemplate,
    TritonTemplateKernel,
    pointer_to_output,
    template_options,
)
from . import source


class PartialKernel(TritonTemplateKernel):
    """A template that writes its output itself and may have fewer registers than it asks for.

    Nothing is fused behind it: what reads the output is the combination of the splits, a template of its own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        pointer_to_output(self)

    def jit_lines(self) -> str:
        lines = textwrap.dedent(super().jit_lines()).strip()
        maxnreg = self.meta["MAXNREG"]
        if not maxnreg:
            return lines
        # Inductor looks for its own decorator in the text when it names a kernel, hence the comment
        imported = "from innerq_compile.kernels.lowering import launch  # for @triton_heuristics.template\n"
        return imported + lines.replace("@triton_heuristics.template(", f"@launch.template(\nmaxnreg={maxnreg},", 1)


class PartialTemplate(TritonTemplate):
    kernel_type = PartialKernel


@SymbolicGridFn
def _grid(sequences, row_tiles, splits, meta):
    return sequences, row_tiles, splits


@functools.cache
def template_for(kernel: Any) -> PartialTemplate:
    """The template of ``decode_partial_fields_kernel`` or ``decode_partial_portable_kernel``."""
    name = "innerq_" + kernel.fn.__name__.removesuffix("_kernel")
    return PartialTemplate(name, _grid, source.template_source(kernel), **template_options())
