"""How Inductor compiles the operators: lowerings to Triton templates, one file an operator.

Importing this package imports neither Inductor nor Triton; :func:`register` does, for the backend, before it compiles.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os

from ..dispatch import reference_only
from ..internals.table import missing
from ..triton import support
from ..versions import SUPPORTED_TORCH

log = logging.getLogger("innerq_compile.lowering")

#: The undocumented API of Inductor and Triton that lowerings use: keys of ``internals.table.TOPICS``.
TOPICS = ("templates", "launchers")
#: The consequence of having no lowerings, for warnings.
COST = (
    "Attention and linear layers of a decode step stay calls of the operators: the same kernels run, but nothing is "
    "fused with them, and the host launches each call by itself"
)


@dataclasses.dataclass(frozen=True)
class Registration:
    """Whether the lowerings are registered with Inductor: all of them or none.

    Attributes:
        done: True if they are.
        reason: why they are not, as a message; empty if they are.
        missing: names of Inductor or Triton that the installed versions lack.
    """

    done: bool
    reason: str = ""
    missing: tuple[str, ...] = ()


@functools.cache
def register() -> Registration:
    """Register the lowerings with Inductor, once. If one cannot be registered, none is, and a warning says why.

    They are not registered, without a warning, if Triton is not installed, with ``INNERQ_LOWERING=0``, and with
    ``INNERQ_KERNELS=reference``.
    """
    if not support.installed():
        return Registration(False, "Triton is not installed")
    if os.environ.get("INNERQ_LOWERING", "1") == "0":
        return Registration(False, "INNERQ_LOWERING=0")
    if reference_only():
        return Registration(False, "INNERQ_KERNELS=reference")
    lacking = tuple(missing(*TOPICS))
    if lacking:
        return _refused("this torch or Triton lacks, or has otherwise, " + ", ".join(lacking), lacking)
    try:
        from ..internals import templates
        from . import decode_attention, row_linear

        templates.register({module.OPERATOR: module.lowering for module in (decode_attention, row_linear)})
    except (
        ImportError,
        AttributeError,
        TypeError,
        AssertionError,
    ) as error:  # an unknown version
        return _refused(f"this Inductor is unlike the ones that are known: {error!r}")
    return Registration(True)


def _refused(reason: str, lacking: tuple[str, ...] = ()) -> Registration:
    log.warning(
        "no lowering is registered: %s. %s. Install one of torch %s, or set INNERQ_LOWERING=0 to do without",
        reason,
        COST,
        ", ".join(SUPPORTED_TORCH),
    )
    return Registration(False, reason, lacking)
