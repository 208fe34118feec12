"""How Inductor compiles the operators: lowerings to Triton templates, one file an operator.

Importing this package imports neither Inductor nor Triton; :func:`register` does, for the backend, before it compiles.
"""

from __future__ import annotations

import functools
import logging
import os

from ..ops import reference_only
from ..triton import support

log = logging.getLogger("innerq_compile.lowering")


@functools.cache
def register() -> str:
    """Register the lowerings with Inductor, once.

    Returns:
        A hash of all that generated code is made of, for the key under which Inductor caches a graph; empty where
        nothing could be registered: then the operators stay extern kernels.
    """
    if not support.installed() or os.environ.get("INNERQ_LOWERING", "1") == "0" or reference_only():
        return ""
    try:
        from . import decode_attention, row_linear, source

        decode_attention.register()
        row_linear.register()
    except (ImportError, AttributeError, TypeError) as error:  # an Inductor that is unlike the ones known
        log.debug("operators stay extern kernels: %r", error)
        return ""
    return source.source_hash()
