"""When a lowering leaves an operator a call: no template supports its arguments, or the lowering failed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from ..internals import templates

log = logging.getLogger("innerq_compile.lowering")


class NotLowered(Exception):
    """The call is not lowered. The message says why."""


def or_call(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a lowering emit a call of ``operator`` when it raises.

    :class:`NotLowered` is expected. Any other exception is a bug, or a version of Inductor that differs from the known
    ones. The call computes the same result, so compilation goes on, with a warning.
    """

    def decorate(lower: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(lower)
        def lowering(*args: Any) -> Any:
            try:
                return lower(*args)
            except NotLowered as reason:
                log.debug("%s stays a call: %s", operator, reason)
            except Exception:
                log.warning(
                    "%s stays a call: its lowering failed. Results are the same, and slower; INNERQ_LOWERING=0 leaves "
                    "all lowerings out",
                    operator,
                    exc_info=True,
                )
            return templates.fall_back(operator, *args)

        return lowering

    return decorate
