"""Lowerings are registered all together, or none, with a warning that says what is missing and what it costs."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("triton")

from torch._inductor import lowering as inductor_lowering
from torch._inductor import select_algorithm

import innerq_compile.kernels.ops  # noqa: F401 defines the operators
from innerq_compile.kernels import lowering
from innerq_compile.kernels.internals import templates

OURS = (torch.ops.innerq.decode_attention.default, torch.ops.innerq.row_linear.default)
register = lowering.register.__wrapped__


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    """Inductor's table without our lowerings, for the time of a test."""
    monkeypatch.delenv("INNERQ_LOWERING", raising=False)
    monkeypatch.setattr(lowering, "reference_only", lambda: False)
    before = dict(inductor_lowering.lowerings)
    for op in OURS:
        inductor_lowering.lowerings.pop(op, None)
    yield
    inductor_lowering.lowerings.clear()
    inductor_lowering.lowerings.update(before)


def registered() -> list[bool]:
    return [op in inductor_lowering.lowerings for op in OURS]


def warning(caplog) -> str:
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    return record.getMessage()


def test_both_are_registered(caplog):
    assert register() == lowering.Registration(True)
    assert registered() == [True, True] and not caplog.records


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (select_algorithm, "SymbolicGridFn"),
        (select_algorithm.AlgorithmSelectorCache, "benchmark_example_value"),
        (select_algorithm.TritonTemplateKernel, "_register_extra_template_env_fns"),
        (inductor_lowering, "view"),
    ],
)
def test_without_a_name_none_is_registered(monkeypatch, caplog, owner, name):
    monkeypatch.delattr(owner, name)
    result = register()
    assert not result.done and registered() == [False, False]
    assert [missing for missing in result.missing if missing.split("(")[0].endswith(f".{name}")]
    text = warning(caplog)
    assert name in text and lowering.COST in text and "INNERQ_LOWERING=0" in text


def test_without_a_parameter_none_is_registered(monkeypatch, caplog):
    monkeypatch.setattr(select_algorithm.TritonTemplate, "__init__", lambda self: None)
    result = register()
    assert not result.done and registered() == [False, False]
    assert "TritonTemplate.__init__(name, grid, source)" in warning(caplog)


@pytest.mark.parametrize("fails_at", [0, 1])
def test_what_is_registered_before_a_failure_is_taken_back(monkeypatch, caplog, fails_at):
    calls = []
    whole = templates.register_lowering

    def failing(op, **options):
        calls.append(op)
        if len(calls) > fails_at:
            raise TypeError("register_lowering() wants another argument")
        return whole(op, **options)

    monkeypatch.setattr(templates, "register_lowering", failing)
    others = set(inductor_lowering.lowerings)
    result = register()
    assert not result.done and "wants another argument" in result.reason and result.missing == ()
    assert len(calls) == fails_at + 1 and registered() == [False, False]
    assert set(inductor_lowering.lowerings) == others
    assert "wants another argument" in warning(caplog)


def test_no_warning_where_nobody_wants_them(monkeypatch, caplog):
    monkeypatch.setenv("INNERQ_LOWERING", "0")
    assert register() == lowering.Registration(False, "INNERQ_LOWERING=0")
    assert registered() == [False, False] and not caplog.records
