"""Dynamo's traces of models on disk: a new process that runs the same model does not trace it again.

    store.py          files of traces, by a key of everything that is known before a call
    fingerprints.py   what a class, function or module is, in words that hold in every process
    work.py           what the backend has found out about a graph, kept with it
    keeping.py        keeps what Dynamo has found, and restores it where Dynamo would find the same

A kept trace is the graph as Dynamo captured it, the bytecode that calls it, and the guards under which both are valid.
It is used only if Dynamo's guards, built anew from the values of the call, state word for word what they stated when it
was kept. An object that a guard identifies by its address (a class, a function, a module) is compared by its
fingerprint, which covers the code of a function and of all methods of a class: a library that was updated, or a method
that was replaced, is another object. The backend compiles the graph as one of Dynamo's own, so that options and caches
of compiled code work as ever. What the passes made of the graph is kept with it, so that they need not run again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ...kernels.versions import is_supported
from . import store
from .work import take_work

__all__ = ["captured", "folder", "install", "restored", "take_work", "why_off"]

log = logging.getLogger(__name__)

#: The keeper that is told of captured graphs, a ``keeping.TraceKeeper``.
_KEEPERS: list[Any] = []


def install(backend: Any) -> None:
    """Let traces of what ``backend``, the backend of this package, compiles be kept and restored.

    Does nothing with ``INNERQ_TRACES=0``, and with a version of torch whose Dynamo is not known.
    """
    if _KEEPERS or os.environ.get("INNERQ_TRACES") == "0" or not is_supported(torch.__version__):
        return
    try:
        from .keeping import TraceKeeper
    except (ImportError, AttributeError) as error:
        log.info("traces are not kept: %s", error)
        return
    keeper = TraceKeeper(backend)
    keeper.install()
    _KEEPERS.append(keeper)


def captured(gm: GraphModule, example_inputs: list[Any], graphs: Sequence[GraphModule] = (), work: Any = None) -> None:
    """To be called by the backend with each graph that Dynamo gives it, before it is compiled.

    Args:
        gm: the graph.
        example_inputs: its inputs.
        graphs: the graphs that passes have made of it.
        work: what else passes have found out about it, for :func:`take_work`. May hold these graphs and nodes of them.
    """
    for keeper in _KEEPERS:
        keeper.captured(gm, example_inputs, graphs, work)


def restored() -> int:
    """How many graphs this process has not traced, because an earlier one had."""
    return sum(keeper.restored for keeper in _KEEPERS)


def why_off() -> str | None:
    """Why traces are neither kept nor restored in this process. None if they are."""
    if not is_supported(torch.__version__):
        return f"torch {torch.__version__} is not known"
    try:
        from . import keeping
    except (ImportError, AttributeError) as error:
        return f"this torch lacks what they need: {error}"
    return keeping.why_off() or ("their folder cannot be made" if folder() is None else None)


def folder() -> str | None:
    """The folder of traces. None if it cannot be made."""
    try:
        return str(store.root())
    except OSError:
        return None
