"""Warns when Dynamo stops compiling a program, so that its caches are dense from then on."""

from __future__ import annotations

import logging

from ..kernels.internals.dynamo_limits import Limit
from .reports import compiled_graphs

log = logging.getLogger(__name__)


def warn_of_limit(limit: Limit) -> None:
    """Say which program is not compiled any more and what that means, if programs of this process have attentions."""
    if not any(report.attentions for report in compiled_graphs()):
        return
    log.warning(
        "%s (%s:%d) runs uncompiled wherever none of its graphs fits, and caches that it makes then are dense: Dynamo "
        "has reached its limit of %d graphs; TORCH_LOGS=recompiles says what differs between calls; if so many graphs "
        "are needed, raise torch._dynamo.config.%s",
        limit.code.co_name,
        limit.code.co_filename,
        limit.code.co_firstlineno,
        limit.value,
        limit.setting,
    )
