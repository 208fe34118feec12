"""Where an operator stays a call: no template takes its arguments, or its lowering failed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from ..internals import templates

log = logging.getLogger("innerq_compile.lowering")


class NotLowered(Exception):
    """Why a call stays one of the operator, in words."""


def or_call(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a lowering give the call of ``operator`` as it stands where it raises.

    :class:`NotLowered` is a matter of course. Any other exception is a mistake of ours, or an Inductor that is unlike
    the ones that are known; a call computes the same, so it does not stop the user's program, and a warning shows it.
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
