"""The context: what passes note in it beside plain fields."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph

from innerq_compile import InnerQConfig
from innerq_compile.passes.context import (
    CacheSource,
    CacheUse,
    GraphError,
    PassContext,
    PassFailure,
    Reason,
)


def test_a_place_that_is_refused_is_told_with_its_line():
    graph, context = Graph(), PassContext(InnerQConfig())
    node = graph.placeholder("x")
    node.meta["stack_trace"] = '  File "model.py", line 3, in forward\n    y = attend(x)\n'
    context.refuse(node, "it is odd")
    assert [str(reason) for reason in context.reasons] == [
        'it is odd (File "model.py", line 3, in forward: y = attend(x))'
    ]
    assert not context.refused and str(Reason("it is odd")) == "it is odd"


def test_what_the_config_cannot_hold_is_for_the_user_to_change():
    context = PassContext(InnerQConfig())
    assert context.format_for("key", 64, torch.float16).role == "key"
    with pytest.raises(GraphError, match="a value cache of head_dim 600 cannot be quantized: allowed are"):
        context.format_for("value", 600, torch.float16)


def test_a_use_without_a_cache_has_none():
    use = CacheUse(CacheSource.FRESH, Graph().placeholder("k"))
    for name in ("cache", "buffer", "new"):
        with pytest.raises(AssertionError):
            getattr(use, name)


def test_a_failure_in_words():
    failure = PassFailure("standard_form", ValueError("no"), ("standard_form", "rewrite_decode"))
    assert str(failure) == (
        "the pass standard_form failed with ValueError: no; it is left out, and with it rewrite_decode "
        "(the log innerq_compile.passes has the traceback)"
    )
