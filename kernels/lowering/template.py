"""The partial kernels of decode attention as Triton templates of Inductor."""

from __future__ import annotations

import functools
import textwrap
from typing import Any

from ..internals.templates import (
    SymbolicGridFn,
    TritonTemplate,
    TritonTemplateKernel,
    call_size_hook,
    pointer_to_output,
    template_options,
)
from . import source


class PartialKernel(TritonTemplateKernel):
    """A template that stores its output itself, with a limit on registers.

    Nothing is fused into it: its output is read by the combination of the splits, which is another template.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        pointer_to_output(self)
        call_size_hook(self)

    def jit_lines(self) -> str:
        lines = textwrap.dedent(super().jit_lines()).strip()
        maxnreg = self.meta["MAXNREG"]
        if not maxnreg:
            return lines
        # the comment is for Inductor, which searches for its decorator in the text when it names a kernel
        imported = "from innerq_compile.kernels.lowering import launch  # for @triton_heuristics.template\n"
        return imported + lines.replace("@triton_heuristics.template(", f"@launch.template(\nmaxnreg={maxnreg},", 1)


class PartialTemplate(TritonTemplate):
    kernel_type = PartialKernel


@SymbolicGridFn
def _grid(sequences, row_tiles, splits, dropped, meta):
    return sequences, row_tiles, splits  # the fourth size is an argument of the kernel, see source.CALL_SIZES


@functools.cache
def template_for(kernel: Any) -> PartialTemplate:
    """The template of ``decode_partial_fields_kernel`` or ``decode_partial_portable_kernel``."""
    name = "innerq_" + kernel.fn.__name__.removesuffix("_kernel")
    return PartialTemplate(name, _grid, source.template_source(kernel), **template_options())
