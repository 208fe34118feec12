"""Functions that are asked at each compilation: each is registered once, whoever registers it at the same time."""

from __future__ import annotations

import time

import pytest

from innerq_compile.compiler import observers
from tests.helpers.threads import at_once


class SlowList(list):
    """Lets other threads run between a look into it and what is done about that."""

    def __contains__(self, item: object) -> bool:
        found = super().__contains__(item)
        time.sleep(0.02)
        return found


def test_threads_that_register_the_same_function(monkeypatch: pytest.MonkeyPatch):
    installed = SlowList()
    monkeypatch.setattr(observers, "_INSTALLED", installed)

    def begin(*args):
        return None

    at_once(*[lambda: observers.install(begin)] * 3)
    assert installed == [begin]
