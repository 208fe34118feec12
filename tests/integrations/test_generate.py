"""``generate`` of models that ``torch.compile`` has wrapped, where several calls of it overlap."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

import innerq_compile.integrations.entry_point  # noqa: F401  (what torch imports when it looks the backend up)
from innerq_compile import InnerQTensor, innerq
from innerq_compile.integrations.generate import called_by_generate
from tests.helpers.generation import assert_quantized, run, tokens_of
from tests.helpers.models import prompt, tiny_llama
from tests.helpers.threads import at_once


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
        vars(module)["_innerq_calls"] = {model: form(name)}
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


def test_threads_that_begin_together_have_one_form(forms, monkeypatch):
    """Each form has graphs of its own."""
    model, compiled, _ = forms
    module, made = compiled("A"), []

    def form(module, model):
        time.sleep(0.01)
        made.append(model)
        return lambda x: x

    monkeypatch.setattr("innerq_compile.integrations.generate.compiled_form", form)
    vars(module)["_innerq_calls"] = {}
    at_once(*[module.generate for _ in range(4)])
    assert made == [model]


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


# --- wrappers around models of transformers -------------------------------------------------------------------------


class Adapted(nn.Module):
    """A linear layer to which the active adapter adds something, unless it is merged into the weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.adapters, self.active, self.merged = base, nn.ModuleDict(), "", False

    def forward(self, x):
        out = self.base(x)
        return out + self.adapters[self.active](x) if self.active and not self.merged else out


class Wrapper(nn.Module):
    """Hands ``generate`` on to a model whose queries have adapters, as libraries of adapters do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList([model])
        for layer in model.model.layers:
            layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)

    def forward(self, **inputs):
        return self.inner[0](**inputs)

    def generate(self, **inputs):
        return self.inner[0].generate(**inputs)

    def add(self, name: str, scale: float) -> None:
        for layer in (part for part in self.modules() if isinstance(part, Adapted)):
            layer.adapters[name] = nn.Linear(64, 64, bias=False)
            nn.init.constant_(layer.adapters[name].weight, scale)
            layer.active = name

    def merge(self) -> None:
        for layer in (part for part in self.modules() if isinstance(part, Adapted)):
            layer.base.weight.data += layer.adapters[layer.active].weight
            layer.merged = True


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("way", ["innerq", pytest.param("by name", marks=pytest.mark.slow)])
def test_a_model_in_a_wrapper(way):
    """Also behind changes of its adapters: what is compiled has them."""

    def story(model) -> list[torch.Tensor]:
        wrapper = getattr(model, "_orig_mod", model)
        found = [tokens_of(model, inputs, 4)]
        wrapper.add("late", 0.05)
        found.append(tokens_of(model, inputs, 4))
        wrapper.merge()
        results = run(model, inputs, 4)
        caches.append(results.past_key_values)
        with torch.no_grad():
            caches.append(model(**inputs).past_key_values)
        return [*found, results.sequences]

    caches, inputs = [], prompt(1, 140)
    expected = story(Wrapper(tiny_llama(head_dim=16)))
    wrapper = Wrapper(tiny_llama(head_dim=16))
    by_name = way == "by name"
    options = {"preset": "lossless"}
    model = torch.compile(wrapper, backend="innerq", options=options) if by_name else innerq(wrapper, **options)
    found = story(model)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(expected[0], expected[1])
    for cache in caches[2:]:
        assert_quantized(cache)
    plain = wrapper(**inputs).past_key_values if by_name else None
    assert plain is None or not isinstance(plain.layers[0].keys, InnerQTensor), "nothing stays behind"


def test_a_model_that_is_compiled_keeps_its_options_in_a_wrapper():
    model = innerq(tiny_llama(layers=1), preset="small")
    before = model._compiled_call_impl
    wrapper = innerq(Wrapper(model), preset="base")
    assert model._compiled_call_impl is before and wrapper._compiled_call_impl is not None


def test_who_is_called_by_generate():
    model = tiny_llama(head_dim=16)
    wrapper = Wrapper(model)
    assert called_by_generate(model) == called_by_generate(wrapper) == [model]
    assert called_by_generate(nn.ModuleList([wrapper])) == [model]
    layer = model.model.layers[0]
    assert called_by_generate(layer) == [layer]
