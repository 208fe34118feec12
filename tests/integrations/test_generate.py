"""``generate`` of models that ``torch.compile`` has wrapped, where several calls of it overlap."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import innerq_compile.integrations.entry_point  # noqa: F401  (what torch imports when it looks the backend up)


class Decoder(nn.Module):
    """A model whose ``generate`` runs it ``calls`` times, and calls ``then`` behind each run."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[str] = []

    def forward(self, x):
        return x + 1

    def generate(self, calls: int = 1, then=lambda: None):
        for _ in range(calls):
            self(torch.ones(1))
            then()


@pytest.fixture
def forms(monkeypatch):
    """A model, a function that makes compiled forms of it, and a list of the forms that ran, with their threads."""
    model = Decoder()
    ran: list[tuple[str, str]] = []

    def form(name):
        def call(x):
            ran.append((threading.current_thread().name, name))
            return x

        return call

    def compiled(name):
        module = torch.compile(model, backend="innerq")
        vars(module)["_innerq_call"] = form(name)
        return module

    monkeypatch.setattr(Decoder, "_call_impl", lambda self, x: form("plain")(x))
    return model, compiled, ran


def in_thread(name, work) -> threading.Thread:
    thread = threading.Thread(target=work, name=name)
    thread.start()
    return thread


def test_calls_that_overlap_in_threads_each_run_their_own_form(forms):
    """The call that begins first ends first; it leaves the other call's form in place, and none stays behind."""
    model, compiled, ran = forms
    a_runs, b_runs, a_is_done = threading.Event(), threading.Event(), threading.Event()

    def first_step_of_a():
        a_runs.set()
        assert b_runs.wait(60)

    def step_of_b():
        b_runs.set()
        assert a_is_done.wait(60)

    a = in_thread("a", lambda: compiled("A").generate(2, first_step_of_a))
    assert a_runs.wait(60)
    b = in_thread("b", lambda: compiled("B").generate(2, step_of_b))
    a.join(60)
    a_is_done.set()
    b.join(60)
    assert sorted(ran) == [("a", "A"), ("a", "A"), ("b", "B"), ("b", "B")]
    assert model._compiled_call_impl is None
    model(torch.ones(1))
    assert ran[-1][1] == "plain"


def test_a_thread_without_generate_calls_what_it_called_before(forms):
    model, compiled, ran = forms
    compiled("A").generate(1, lambda: in_thread("other", lambda: model(torch.ones(1))).join(60))
    assert ran == [("MainThread", "A"), ("other", "plain")]


def test_nested_calls(forms):
    """A model may assist itself with another preset."""
    model, compiled, ran = forms
    outer, inner = compiled("outer"), compiled("inner")
    outer.generate(2, inner.generate)
    assert [form for _, form in ran] == ["outer", "inner", "outer", "inner"]
    assert model._compiled_call_impl is None


def test_a_nested_call_that_fails(forms):
    model, compiled, ran = forms

    def fails():
        with pytest.raises(RuntimeError, match="on purpose"):
            compiled("inner").generate(1, lambda: exec("raise RuntimeError('on purpose')"))

    compiled("outer").generate(2, fails)
    assert [form for _, form in ran] == ["outer", "inner", "outer", "inner"]
    assert model._compiled_call_impl is None


def test_a_model_that_is_compiled_in_the_meantime_stays_so(forms):
    model, compiled, ran = forms
    compiled("A").generate(1, lambda: model.compile(backend="eager"))
    assert model._compiled_call_impl is not None and ran == [("MainThread", "A")]
    before = model._compiled_call_impl
    compiled("B").generate()
    assert model._compiled_call_impl is before
