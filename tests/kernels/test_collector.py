"""The garbage collector spares what existed before a compilation, and nothing for longer than that."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from innerq_compile import innerq
from innerq_compile.kernels import collector
from innerq_compile.kernels.collector import sparing_old_objects


@pytest.fixture(autouse=True)
def nothing_is_frozen(monkeypatch):
    """As in a program; the suite has frozen what was imported."""
    monkeypatch.setattr(collector, "_OPEN", 0)
    monkeypatch.setattr(collector, "_FROZEN", collector._FROZEN)  # restored behind the test
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    yield
    if frozen:
        gc.freeze()


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_old_objects_are_spared_until_the_end():
    old = weakref.ref(Cycle())
    with sparing_old_objects(), sparing_old_objects():
        new = weakref.ref(Cycle())
        gc.collect()
        assert old() is not None and new() is None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert old() is None


def test_what_a_program_has_frozen_stays_so():
    gc.freeze()
    try:
        with sparing_old_objects():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_nothing_stays_frozen_if_compiling_fails():
    with pytest.raises(ZeroDivisionError), sparing_old_objects():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("no_inductor")
def test_compiling_spares_old_objects(monkeypatch):
    model = innerq(lambda x: x + 1)
    found, freeze = [], gc.freeze
    monkeypatch.setattr(gc, "freeze", lambda: found.append(freeze()))
    model(torch.ones(1, 2))
    assert found and gc.get_freeze_count() == 0
