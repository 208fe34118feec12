"""A lowering that raises leaves a call of its operator, and hides no mistake."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("triton")

from innerq_compile.kernels.internals import templates
from innerq_compile.kernels.lowering.calls import NotLowered, or_call


@pytest.fixture
def lowering(monkeypatch):
    """A lowering that raises its argument, or returns it; a call is the tuple of the operator and its arguments."""
    monkeypatch.setattr(templates, "fall_back", lambda operator, *args: (operator, *args))

    @or_call(torch.ops.aten.neg.default)
    def lower(x):
        if isinstance(x, Exception):
            raise x
        return x

    return lower


def test_what_is_lowered(lowering):
    assert lowering(3) == 3


def test_not_lowered_is_a_matter_of_course(lowering, caplog):
    reason = NotLowered("symbolic heads")
    with caplog.at_level(logging.DEBUG, "innerq_compile.lowering"):
        assert lowering(reason) == (torch.ops.aten.neg.default, reason)
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG and record.getMessage() == "aten.neg.default stays a call: symbolic heads"


def test_a_failure_is_a_warning_with_its_traceback(lowering, caplog):
    failure = AttributeError("no attribute 'freeze_layout'")
    assert lowering(failure) == (torch.ops.aten.neg.default, failure)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.exc_info[1] is failure
    assert "aten.neg.default stays a call: its lowering failed" in record.getMessage()


def test_an_interruption_goes_through():
    @or_call(torch.ops.aten.neg.default)
    def lower():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lower()
