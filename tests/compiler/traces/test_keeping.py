"""A model that was traced is not traced again, in a new process or behind a reset of Dynamo, unless something differs.

Each case of a difference runs the model before and after it, and compares with what the model computes uncompiled.
"""

from __future__ import annotations

import gc
import importlib
import logging
import pickle
import subprocess
import sys
import types
import weakref

import pytest
import sympy
import torch
from torch._dynamo.utils import counters
from torch._inductor import config
from torch.utils._sympy.value_ranges import ValueRanges
from transformers import DynamicCache
from transformers.models.llama import modeling_llama

from innerq_compile import InnerQTensor, compiled_graphs, dump_graphs, innerq
from innerq_compile.compiler import analysis
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.compiler.traces import install, keeping, restored, store
from innerq_compile.compiler.traces.fingerprints import fingerprint
from innerq_compile.kernels.internals import traces
from tests.helpers.models import tiny_llama


@pytest.fixture(autouse=True)
def kept(graphs_as_they_are, monkeypatch):
    monkeypatch.delenv("INNERQ_TRACES", raising=False)
    install(innerq_backend)  # as the import of the package does unless the variable forbids it


def model_of(**options):
    torch.manual_seed(0)
    return tiny_llama(head_dim=16, **options)


@torch.no_grad()
def logits(model, steps: int = 2) -> list[torch.Tensor]:
    """Logits of a prompt and as many steps."""
    cache, ids = DynamicCache(), torch.arange(60)[None] % 50
    found = [
        model(piece, past_key_values=cache, use_cache=True).logits
        for piece in (ids, *(ids[:, step : step + 1].clone() for step in range(steps)))
    ]
    if model._compiled_call_impl is not None:
        assert isinstance(cache.layers[0].keys, InnerQTensor)
    return found


def traced(model, preset: str = "lossless", steps: int = 2, **options) -> int:
    """How many operations Dynamo traces in a new process that runs ``model``; its results are those of eager."""
    expected = logits(model, steps)
    torch._dynamo.reset()
    counters.clear()
    innerq(model, preset=preset, **options)
    found = logits(model, steps)
    model._compiled_call_impl = None
    if preset == "lossless":
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    return counters["stats"]["calls_captured"]


def test_a_model_is_traced_once():
    first = traced(model_of())
    assert first > 100
    reports = len(compiled_graphs())
    assert traced(model_of()) == 0
    assert [report.kind for report in compiled_graphs()[reports:]] == ["prefill", "decode"]
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=["plain", "with a prelude"])
def test_passes_do_not_run_again(options, monkeypatch):
    """What they made of a graph is kept with it, and what was found out about recording it."""
    traced(model_of(), **options)
    first = compiled_graphs()[-2:]

    def passes(*args):
        raise AssertionError("they ran")

    with monkeypatch.context() as patch:
        patch.setattr(analysis.PIPELINE, "rewrite", passes)
        assert traced(model_of(), **options) == 0
    again = compiled_graphs()[-2:]
    assert [graph.index for graph in again] == [graph.index + 2 for graph in first]
    for before, now in zip(first, again, strict=True):
        new = {"index": now.index, "compiled_at": now.compiled_at, "compile_id": now.compile_id}
        assert {**before.to_dict(), **new} == now.to_dict() and now.calls == before.calls
        assert now.compiled_at > before.compiled_at


def test_passes_run_again_for_an_observer(tmp_path):
    traced(model_of(), steps=0)
    with dump_graphs(tmp_path):
        assert traced(model_of(), steps=0) == 0
    assert len(list(tmp_path.rglob("*_match_attention.py"))) == 1


def test_other_weights_need_no_other_trace():
    traced(model_of())
    model = model_of()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.05
    assert traced(model) == 0


def no_rotation(q, k, cos, sin, unsqueeze_dim=1):
    return q, k


class Adapter(torch.nn.Module):
    """As adapters do it: a layer in place of a linear one, which adds something to its result."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.base(x) + self.scale * x.mean(-1, keepdim=True)


def twice(self, x):
    return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


DIFFERENCES = {
    "method of a class": lambda model, patch: patch.setattr(modeling_llama.LlamaMLP, "forward", twice),
    "method of an object": lambda model, patch: setattr(
        model.model.layers[0].mlp, "forward", types.MethodType(twice, model.model.layers[0].mlp)
    ),
    "global function": lambda model, patch: patch.setattr(modeling_llama, "apply_rotary_pos_emb", no_rotation),
    "number of a module": lambda model, patch: setattr(model.model.norm, "variance_epsilon", 0.3),
    "attention": lambda model, patch: model.set_attn_implementation("eager"),
    "activation": lambda model, patch: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
    "module": lambda model, patch: setattr(
        model.model.layers[0].self_attn, "q_proj", Adapter(model.model.layers[0].self_attn.q_proj)
    ),
    "hook": lambda model, patch: model.model.layers[0].mlp.register_forward_hook(lambda *call: 2 * call[-1]),
    "shape of a weight": lambda model, patch: setattr(
        model, "lm_head", torch.nn.Linear(model.config.hidden_size, model.config.vocab_size + 8, bias=False)
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_difference_is_traced_anew(difference, monkeypatch):
    """In the prompt already: steps would make each case twice as long."""
    traced(model_of(), steps=0)
    model = model_of()
    DIFFERENCES[difference](model, monkeypatch)
    assert traced(model, steps=0) > 0


def test_another_number_of_layers_is_traced_anew():
    traced(model_of(), steps=0)
    assert traced(model_of(layers=2), steps=0) > 0


@torch.no_grad()
def test_tensors_of_other_sizes_in_a_dict():
    """Checks skip tensors in dicts that have not changed since they were built, as those of a kept trace just were."""

    def step(tensors):
        q, k, v = tensors["q"], tensors["k"], tensors["v"]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v) * q.shape[0] * k.shape[1]

    for batch, heads in ((1, 2), (2, 2), (2, 4), (1, 4)):
        tensors = {name: torch.randn(batch, heads, 9, 16) for name in ("q", "k", "v")}
        torch._dynamo.reset()
        torch.testing.assert_close(innerq(step, preset="lossless")(tensors), step(tensors))


def test_changes_after_a_trace_was_restored():
    """Guards of a restored trace are those that Dynamo would have made."""
    traced(model_of())
    model = model_of()
    torch._dynamo.reset()
    counters.clear()
    innerq(model, preset="lossless")
    before = logits(model)
    assert counters["stats"]["calls_captured"] == 0
    model.model.norm.variance_epsilon = 0.3
    after = logits(model)
    assert counters["stats"]["calls_captured"] > 0
    model._compiled_call_impl = None
    torch.testing.assert_close(after, logits(model), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(before[0], after[0])
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    expected = logits(model)
    innerq(model, preset="lossless")
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=1e-3)


def test_other_options_of_the_backend():
    traced(model_of(), preset="base")
    assert traced(model_of(), preset="small") > 0
    assert traced(model_of(), preset="base") == 0
    assert traced(model_of(), preset="small") == 0


@pytest.mark.parametrize("way", ["variable", "Inductor's caches", "distributed"])
def test_switched_off(way, monkeypatch):
    if way == "distributed":
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    if way == "variable":
        monkeypatch.setenv("INNERQ_TRACES", "0")
    with config.patch(force_disable_caches=way == "Inductor's caches"):
        assert traced(model_of(), steps=0) == traced(model_of(), steps=0) > 0


def test_damaged_traces(monkeypatch):
    traced(model_of())
    read = store.read
    monkeypatch.setattr(store, "read", lambda key: ((file, data[: len(data) // 2]) for file, data in read(key)))
    assert traced(model_of()) > 0


def test_checks_are_spelled_as_those_that_are_built_from_kept_guards(monkeypatch):
    """Otherwise no trace would be found again."""
    compared = []
    keep = keeping.TraceKeeper.keep

    def compare(self, frame, output, manager, before):
        guards = traces.guards_of(manager, output.tracer_output.output_graph)
        tree = traces.Tree(frame.code, pickle.loads(traces.dump_guards(guards)), frame.locals, frame.globals)
        compared.append(tree.text(fingerprint) == traces.text_of(manager, fingerprint))
        keep(self, frame, output, manager, before)

    monkeypatch.setattr(keeping.TraceKeeper, "keep", compare)
    traced(model_of())
    assert compared == [True, True]


def test_traces_that_do_not_fit_are_silent_and_their_guards_are_not_built(monkeypatch, caplog):
    """The guards of steps are on codes of a cache, which is empty when the prompt is run."""
    monkeypatch.setattr(
        keeping, "_kinds", lambda scope: iter(())
    )  # as under generate, where the cache is further inside
    traced(model_of())
    built = []
    tree = keeping.Tree
    monkeypatch.setattr(keeping, "Tree", lambda *args: built.append(args) or tree(*args))
    before = restored()
    with caplog.at_level(logging.WARNING):
        assert traced(model_of()) == 0
        assert len(built) == restored() - before >= 2  # in one process, guards of a frame before may take one with them
        monkeypatch.setattr(keeping.Outline, "fits", lambda self, scope: True)  # guards have to be built to find out
        assert traced(model_of()) == 0
    assert len(built) > 4
    # torch's own trace of what it compiles is no message, and is written if another test has listened to it
    assert [record for record in caplog.records if record.name != "torch.__trace"] == []


def test_a_filter_of_guards():
    """With guards left out a trace is not kept; and they are left out of those of a trace that was kept."""

    def step(q, k, v, scale):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v) * scale, k, v

    def run(scale: float, **options) -> tuple[int, float]:
        """How much is traced, and the scale that the graph has."""
        counters.clear()
        found = torch.compile(step, backend="innerq", dynamic=False, options=options)(q, k, v, scale)[0]
        return counters["stats"]["calls_captured"], round(float((found / step(q, k, v, 1.0)[0]).mean()), 2)

    def without_values(entries):
        return [entry.guard_type not in ("CONSTANT_MATCH", "EQUALS_MATCH") for entry in entries]

    q = k = v = torch.randn(1, 2, 40, 16)
    assert run(2.0, guard_filter_fn=without_values) == (2, 2.0)
    assert run(3.0, guard_filter_fn=without_values) == (0, 2.0)
    torch._dynamo.reset()
    assert run(2.0) == (2, 2.0)
    assert run(3.0) == (2, 3.0)
    torch._dynamo.reset()
    assert run(2.0, guard_filter_fn=without_values) == (0, 2.0)
    assert run(3.0, guard_filter_fn=without_values) == (0, 2.0)


def test_values_of_a_call_are_not_held():
    """Guarded objects keep the builder of checks alive, which must not keep a cache alive."""
    for batch in (1, 2, 1):  # the traces of one sequence are tried with two
        model = model_of()
        torch._dynamo.reset()
        innerq(model, preset="base")
        cache = DynamicCache()
        with torch.no_grad():
            model(torch.arange(60).expand(batch, -1) % 50, past_key_values=cache, use_cache=True)
            model(torch.zeros(batch, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
        held = weakref.ref(cache)
        del cache
        gc.collect()
        assert held() is None


@pytest.mark.parametrize("guards", ["all", "filtered"])
def test_conditions_on_sizes_that_compiling_adds(guards, monkeypatch):
    """They are checked as those that Dynamo has found: in the call in which a trace is restored, and in later ones."""

    def step(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v), k, v

    options: dict = {"guard_filter_fn": lambda entries: [True for _ in entries]} if guards == "filtered" else {}
    compiled = torch.compile(step, backend="innerq", options=options)

    def run(length: int) -> bool:
        """Whether it is traced."""
        counters.clear()
        q = k = v = torch.randn(1, 2, length, 16)
        torch._dynamo.mark_dynamic(q, 2)
        torch.testing.assert_close(compiled(q, k, v)[0], step(q, k, v)[0])
        return counters["stats"]["calls_captured"] > 0

    def added(env, known):
        return [symbol < 70 for symbol, value in values(env).items() if value in (40, 80)]

    def values(env):
        return getattr(env, "backed_var_to_val", None) or env.var_to_val

    assert run(40)
    torch._dynamo.reset()
    assert not run(40)
    monkeypatch.setattr(traces, "added_conditions", added)
    torch._dynamo.reset()
    assert not run(40)
    assert counters["stats"]["unique_graphs"] == 1
    assert not run(60)
    assert counters["stats"]["unique_graphs"] == 0  # what was compiled serves this one
    assert run(80)
    torch._dynamo.reset()
    assert run(90)  # the kept traces are of 40 and 80


@pytest.mark.parametrize("conditions", [[sympy.Symbol("unknown") < 7], [sympy.false]], ids=["unknown", "false"])
def test_conditions_that_cannot_be_checked_or_do_not_hold(conditions, monkeypatch):
    traced(model_of(), steps=0)
    monkeypatch.setattr(traces, "added_conditions", lambda env, known: conditions)
    assert traced(model_of(), steps=0) > 0


def test_all_conditions_are_checked_again(monkeypatch):
    """Whatever conditions the graphs of a model have, they can be spelled."""
    monkeypatch.setattr(traces, "conditions_of", lambda env: traces.Conditions(frozenset(), {}))
    traced(model_of())
    assert traced(model_of()) == 0


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_are_compared_whatever_the_order_of_their_items(kind):
    """Which depends on the process for strings, and for these numbers on which of them was added first."""

    def step(q, k, v, numbers):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out * (2 if 3 in numbers else 4), k, v

    q = k = v = torch.randn(1, 2, 40, 16)

    def run(*numbers: int) -> bool:
        torch._dynamo.reset()
        counters.clear()
        found = torch.compile(step, backend="innerq")(q, k, v, kind(numbers))[0]
        torch.testing.assert_close(found, step(q, k, v, numbers)[0])
        return counters["stats"]["calls_captured"] > 0

    assert repr(kind((0, 8))) != repr(kind((8, 0)))
    assert run(0, 8)
    assert not run(8, 0)
    assert run(0, 3)
    assert not run(3, 0)


@pytest.mark.parametrize(
    ("conditions", "added"),
    [
        (["a < 9"], []),
        (["9 > a"], []),
        (["a <= 2048", "a - 2048 <= 0", "a >= 2"], []),  # what a range says
        (["a < 8"], ["a < 8"]),  # as many as before, but others
        (["a < 9", "Eq(Mod(a, 8), 0)"], ["Eq(Mod(a, 8), 0)"]),
        (["b < 7"], ["b < 7"]),  # a symbol that was not there
    ],
)
def test_which_conditions_are_new(conditions, added):
    a, b = (sympy.Symbol(name, integer=True, positive=True) for name in "ab")

    def env(*texts: str):
        parsed = [sympy.sympify(text, {"a": a, "b": b}) for text in texts]
        guards = [types.SimpleNamespace(expr=one) for one in parsed]
        return types.SimpleNamespace(guards=guards, var_to_range={a: ValueRanges(2, 2048)})

    known = pickle.loads(pickle.dumps(traces.conditions_of(env("a < 9"))))
    assert [str(one) for one in traces.added_conditions(env(*conditions), known)] == added


@pytest.mark.parametrize("name", ["INNERQ_LOWERING", "INNERQ_KERNELS", "INNERQ_CPU_KERNELS"])
def test_variables_that_change_what_is_compiled(name, monkeypatch):
    before = keeping._environment()
    monkeypatch.setenv(name, "0")
    assert keeping._environment() != before


def test_a_package_that_was_installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    keeping._installed.cache_clear()
    before = keeping._environment()
    (tmp_path / "flash_attn-2.8.dist-info").mkdir()
    assert keeping._environment() == before  # packages are looked for once
    keeping._installed.cache_clear()
    assert keeping._environment() != before
    keeping._installed.cache_clear()


SOURCE = """
import torch

def step(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v) * {factor}, k, v
"""


def test_a_source_that_was_edited(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    q = k = v = torch.randn(1, 2, 40, 16)

    def run(factor: float) -> int:
        (tmp_path / "edited_step.py").write_text(SOURCE.format(factor=factor))
        sys.modules.pop("edited_step", None)
        importlib.invalidate_caches()
        module = importlib.import_module("edited_step")
        torch._dynamo.reset()
        counters.clear()
        found = torch.compile(module.step, backend="innerq")(q, k, v)[0]
        torch.testing.assert_close(found, module.step(q, k, v)[0])
        return counters["stats"]["calls_captured"]

    assert run(2.0) > 0
    assert run(2.0) == 0
    assert run(12.5) > 0


CONSTANTS = """
import functools
import os
import torch

@torch._dynamo.assume_constant_result
def factor(name, kind=float):
    return {result}

@functools.lru_cache
@torch._dynamo.assume_constant_result
def cached(default):
    return float(os.environ.get("FACTOR", default))

class Scale(torch.nn.Module):
    @torch._dynamo.assume_constant_result
    def factor(self):
        return float(os.environ["FACTOR"])

scale = Scale()

def closure():
    @torch._dynamo.assume_constant_result
    def factor():
        return float(os.environ["FACTOR"])
    return factor

inner = closure()

def step(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v) * {call}, k, v
"""


@pytest.mark.parametrize(
    ("call", "result", "kept"),
    [
        ("factor('FACTOR')", "float(os.environ[name])", True),
        ("factor(name='FACTOR')", "float(os.environ[name])", True),
        ("factor('FACTOR')[0]", "(float(os.environ[name]), 'x')", True),
        ("cached(1)", "None", True),
        ("inner()", "None", False),
        ("scale.factor()", "None", False),
    ],
)
def test_a_function_whose_result_is_a_constant(call, result, kept, tmp_path, monkeypatch):
    """No guard says what it returned, and in another process it may return something else."""
    monkeypatch.syspath_prepend(tmp_path)
    q = k = v = torch.randn(1, 2, 40, 16)
    (tmp_path / "constant_step.py").write_text(CONSTANTS.format(call=call, result=result))

    def run(factor: float) -> int:
        monkeypatch.setenv("FACTOR", str(factor))
        sys.modules.pop("constant_step", None)
        importlib.invalidate_caches()
        module = importlib.import_module("constant_step")
        torch._dynamo.reset()
        counters.clear()
        found = torch.compile(module.step, backend="innerq")(q, k, v)[0]
        torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(q, k, v) * factor)
        return counters["stats"]["calls_captured"]

    assert run(2.0) > 0
    assert (run(2.0) == 0) == kept
    assert run(3.0) > 0
    assert (run(2.0) == 0) == kept


def test_a_graph_that_breaks():
    def step(q, k, v):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch._dynamo.graph_break()
        return out, k, v

    q = k = v = torch.randn(1, 2, 40, 16)
    for _ in range(2):
        torch._dynamo.reset()
        found = torch.compile(step, backend="innerq")(q, k, v)[0]
        torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(q, k, v))


SCRIPT = """
import torch
from torch._dynamo.utils import counters
from torch._inductor import config
from transformers import DynamicCache
from innerq_compile import innerq
from tests.helpers.models import tiny_llama

torch.manual_seed(0)
model = innerq(tiny_llama(head_dim=16), preset="base")
ids = torch.arange(60)[None] % 50
print(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False).tolist())
print(counters["stats"]["calls_captured"])
"""


def test_a_new_process(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("INNERQ_CPU_KERNELS", "0")  # the folder is new: each of them would have to be compiled
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "tests.helpers.without_inductor", str(script)]
    done = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(2)]
    assert "Error while creating guard" not in done[1].stderr
    outputs = [process.stdout.split("\n") for process in done]
    assert outputs[0][0] == outputs[1][0]
    assert int(outputs[0][1]) > 100
    assert int(outputs[1][1]) == 0
