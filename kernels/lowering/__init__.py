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
from ..internals.table.entry import READ_IN
from ..triton import support

log = logging.getLogger("innerq_compile.lowering")

#: What the lowerings use of the undocumented API of Inductor and Triton: keys of ``internals.table.TOPICS``.
TOPICS = ("templates", "launchers")
#: What it costs to have none.
COST = (
    "Attention and linear layers of a decode step stay calls of the operators: the same kernels run, but nothing is "
    "fused with them, and the host launches each call by itself"
)


@dataclasses.dataclass(frozen=True)
class Registration:
    """Whether Inductor knows the lowerings: all of them, or none.

    Attributes:
        done: True where they are registered.
        reason: why they are not, for people; empty where they are.
        missing: the names of Inductor's or Triton's that are not there as they are needed.
    """

    done: bool
    reason: str = ""
    missing: tuple[str, ...] = ()


@functools.cache
def register() -> Registration:
    """Register the lowerings with Inductor, once. Where one cannot be registered, none is, and a warning says why.

    Not registered, and without a warning, are lowerings that nobody wants: where Triton is not installed, under
    ``INNERQ_LOWERING=0`` and under ``INNERQ_KERNELS=reference``.
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
    except (ImportError, AttributeError, TypeError, AssertionError) as error:  # unlike the Inductors that are known
        return _refused(f"this Inductor is unlike the ones that are known: {error!r}")
    return Registration(True)


def _refused(reason: str, lacking: tuple[str, ...] = ()) -> Registration:
    log.warning(
        "no lowering is registered: %s. %s. Install one of torch %s, or set INNERQ_LOWERING=0 to do without",
        reason,
        COST,
        ", ".join(READ_IN),
    )
    return Registration(False, reason, lacking)
