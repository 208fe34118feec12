"""The sweep over all families: what hangs, crashes or cannot be made is a result as well, and results are kept."""

from __future__ import annotations

import os
import time

import pytest

from tests.helpers import sweep as module
from tests.helpers.families import Family, Result
from tests.helpers.sweep import sweep


class Unbuildable(Family):
    def build(self, *args, **kwargs):
        raise ValueError("no such thing\n in detail")


class Crashing(Family):
    def build(self, *args, **kwargs):
        os._exit(3)


class Hanging(Family):
    def build(self, *args, **kwargs):
        time.sleep(100)


@pytest.mark.slow
def test_results(tmp_path, monkeypatch):
    kept, done = tmp_path / "results.json", []
    wanted = [cls("GPT2LMHeadModel", variant=cls.__name__) for cls in (Unbuildable, Crashing)]
    found = sweep(wanted, kept, done=done.append)
    assert found == {
        "GPT2LMHeadModel, Unbuildable": {"sdpa": Result(problem="ValueError: no such thing")},
        "GPT2LMHeadModel, Crashing": {"sdpa": Result(failure="the process ended with 3")},
    }
    monkeypatch.setattr(module, "LIMIT", 1)
    again = sweep([*wanted, Hanging("GPT2LMHeadModel", variant="Hanging")], kept, done=done.append)
    assert again == {**found, "GPT2LMHeadModel, Hanging": {"sdpa": Result(failure="takes more than 1 seconds")}}
    assert len(done) == 3
