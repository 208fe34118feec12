"""explain: rows, reasons, recompiles, sizes, its three forms."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from innerq_compile import InnerQError, InnerQTensor, compiled_graphs, explain, innerq
from innerq_compile.inspect.explanation import Explanation
from innerq_compile.runtime.report import RUN_OBSERVERS, CudaGraphs, CudaGraphUse, GraphKind, GraphReport
from tests.helpers.models import prompt, tiny_llama, windowed_model
from tests.helpers.programs import TinyAttention


@pytest.fixture(scope="module", autouse=True)
def cheap(graphs_as_they_are_in_module):
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def llama():
    """A compiled model, its explanation, and the inputs."""
    torch.manual_seed(0)
    model, inputs = innerq(tiny_llama(layers=2)), prompt(1, 160)
    return model, explain(model, **inputs, context_length=4096), inputs


def test_explain_is_the_function():
    import innerq_compile
    import innerq_compile.inspect.explain

    assert callable(innerq_compile.explain) and innerq_compile.explain is explain


def test_a_row_an_attention(llama):
    _, explanation, _ = llama
    assert [row.report.layer for row in explanation.rows] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    report = explanation.rows[0].report
    assert (report.match, report.cache) == ("sdpa", "grows by cat")
    # transformers 5.24 leaves a mask of ones out, 5.17 does not; seen with torch 2.11 and both: a mask, with 2.13: none
    assert report.mask == "none" or (report.mask == "boolean" and torch.__version__ < "2.12")
    assert report.line.startswith("sdpa_attention.py:") and "scaled_dot_product_attention" in report.where
    assert report.kernel and report.key.startswith("key:3:steered") and "query" in str(report.key_norm)
    assert explanation.rows[0].preset == "base" and explanation.rewritten == 2
    assert [(graph.kind, graph.calls) for graph in explanation.graphs] == [("prefill", 1), ("decode", 2)]
    assert not RUN_OBSERVERS.opened


def test_recompiles_have_a_cause(llama):
    _, explanation, _ = llama
    (recompile,) = explanation.recompiles
    assert recompile.graph == explanation.graphs[1].index
    assert "is_initialized == False" in recompile.cause and ".py:" in recompile.function


def test_sizes_are_those_of_the_real_cache(llama):
    model, explanation, inputs = llama
    size = explanation.cache
    out = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    layers = out.past_key_values.layers
    assert size.held == sum(layer.keys.nbytes_held + layer.values.nbytes_held for layer in layers)
    assert (size.tokens, size.batch) == (162, 1)
    assert size.fp16 == 2 * 2 * 2 * 162 * 64 * 2  # layers, sides, heads, tokens, head_dim, bytes
    long = torch.randn(1, 2, 4096, 64)
    assert size.fp16_at_context == 4 * 2 * long.numel()
    needed = sum(InnerQTensor.from_dense(long, role=role).nbytes_held for role in ("key", "value"))
    assert 0.8 * 2 * needed < size.at_context < 2 * needed  # without the spare capacity of what grows


def test_it_prints_as_a_table(llama):
    text = str(llama[1])
    assert text.startswith("2 of 2 attentions work on a quantized cache")
    lines = [line for line in text.splitlines() if line.startswith("model.layers.")]
    assert len(lines) == 2 and all("grows by cat" in line and "3 steered / 3 anchored" in line for line in lines)
    how = "CUDA graphs of decode steps: no: nothing in this graph is on a CUDA device"
    for part in ("recompiled: graph", "cache now:", "cache at 4,096 tokens:", how):
        assert part in text, part


def test_it_says_whether_decode_steps_are_recorded():
    def graph(index: int, use: CudaGraphUse, detail: str = "", kind: GraphKind = GraphKind.DECODE) -> GraphReport:
        return GraphReport(kind, 1, 1, (), index, cuda_graphs=CudaGraphs(use, detail))

    def lines(*graphs: GraphReport) -> list[str]:
        shown = Explanation([], list(graphs), [], [], None, []).summary()
        return [line for line in shown if line.startswith("CUDA graphs")]

    prefill = graph(0, CudaGraphUse.NOT_USED, "a prefill runs once", GraphKind.PREFILL)
    first, second = (graph(index, CudaGraphUse.USED, "by default") for index in (1, 2))
    assert lines(prefill) == []
    assert lines(prefill, first, second) == ["CUDA graphs of decode steps: yes; by default"]
    assert lines(graph(1, CudaGraphUse.OFF)) == ["CUDA graphs of decode steps: switched off"]
    assert lines(first, graph(3, CudaGraphUse.NOT_USED, "it is a DTensor"), second) == [
        "CUDA graphs of decode steps (graph 1, 2): yes; by default",
        "CUDA graphs of decode steps (graph 3): no: it is a DTensor",
    ]


def test_json_and_html(llama, tmp_path):
    explanation = llama[1]
    content = json.loads(explanation.to_json(tmp_path / "e.json"))
    assert content == json.loads((tmp_path / "e.json").read_text())
    assert content["rewritten"] == 2 and content["rows"][0]["report"]["match"] == "sdpa"
    explanation.to_html(tmp_path / "e.html")
    page = (tmp_path / "e.html").read_text()
    assert "model.layers.1.self_attn" in page and "http" not in page
    assert "attn_output = torch.nn.functional.scaled_dot_product_attention(" in page  # the user's line


def test_what_was_compiled_before_is_explained_without_compiling_again(llama):
    model, explanation, inputs = llama
    before = len(compiled_graphs())
    again = explain(model, **inputs)
    assert len(compiled_graphs()) == before
    assert [graph.index for graph in again.graphs] == [graph.index for graph in explanation.graphs]


def test_a_model_that_is_not_compiled_stays_so():
    model = tiny_llama(layers=1)
    explanation = explain(model, **prompt(1, 40))
    assert explanation.rewritten == 1 and model._compiled_call_impl is None
    assert "for this run only" in str(explanation)


class HalfWindow(TinyAttention):
    """A second attention over every other token of the cache: no pass understands it."""

    def forward(self, x, past=None, mask=None):
        out, (k, v) = super().forward(x, past, mask)
        q = out.view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k[:, :, ::2], v[:, :, ::2], enable_gqa=True)
        return out.transpose(1, 2).reshape(x.shape), (k, v)


def test_the_users_own_function_and_what_was_not_rewritten():
    model = innerq(HalfWindow())

    def run(tokens):
        _, cache = model(torch.randn(1, tokens, 32))
        for _ in range(2):
            _, cache = model(torch.randn(1, 1, 32), cache)
        return cache

    explanation = explain(run, 20)
    assert [row.report.rewritten for row in explanation.rows] == [True, False]
    refused = explanation.rows[1].report
    assert (
        refused.reason
        and refused.line.startswith("test_explain.py:")
        and str(refused.kernel).startswith("the program's")
    )
    text = str(explanation)
    assert "1 of 2 attentions" in text and f"not rewritten: {refused.reason}" in text
    assert [graph.kind for graph in explanation.graphs] == ["prefill", "decode"]


class Plain(nn.Module):
    def forward(self, x):
        return x * 2


def test_graphs_that_hold_nothing():
    explanation = explain(innerq(Plain()), torch.randn(2, 4))
    assert explanation.rows == [] and explanation.cache is None
    assert [graph.kind for graph in explanation.graphs] == ["plain"]
    assert "0 of 0 attentions" in str(explanation) and "no decode step ran on a quantized cache" in str(explanation)
    nothing = explain(lambda: 3)
    assert nothing.graphs == [] and "compile the model with innerq(model)" in str(nothing)


def test_graph_breaks_and_cuda_graphs_on_a_cpu():
    model = innerq(TinyAttention(), mode="reduce-overhead")

    def run():
        _, cache = model(torch.randn(1, 20, 32))
        return model(torch.randn(1, 1, 32), cache)

    explanation = explain(run)
    decode = explanation.graphs[-1]
    assert decode.kind == "decode" and str(decode.cuda_graphs) == "no: nothing in this graph is on a CUDA device"
    assert str(explanation.graphs[0].cuda_graphs).startswith("no: a prefill runs once")

    @torch.compile(backend="innerq")
    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    assert explain(broken, torch.ones(3)).graph_breaks


def test_wrong_arguments():
    with pytest.raises(InnerQError, match="cannot be explained: it has to be a model or a function"):
        explain(3)
    with pytest.raises(InnerQError, match="context_length=0 is not allowed"):
        explain(nn.Linear(2, 2), torch.ones(2), context_length=0)


def decorated(forward):
    @functools.wraps(forward)
    def wrapped(*args, **kwargs):
        return forward(*args, **kwargs)

    return wrapped


class DecoratedForward(nn.Module):
    """As models of transformers are from 5.24 on: Dynamo finds the model in the wrapper's arguments."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([TinyAttention()])

    @decorated
    def forward(self, x, past=None):
        return self.layers[0](x, past)


def test_layers_have_the_models_names_behind_a_decorator():
    model = innerq(DecoratedForward())
    explanation = explain(lambda: model(torch.randn(1, 1, 32), model(torch.randn(1, 20, 32))[1]))
    assert [row.report.layer for row in explanation.rows] == ["layers.0"]


def test_it_shows_sliding_windows(tmp_path):
    model = windowed_model("Gemma3Text", 16, head_dim=16, layer_types=["sliding_attention", "full_attention"])
    explanation = explain(innerq(model), **prompt(1, 40))
    assert [row.report.window for row in explanation.rows] == ["last 15, in a ring", ""]
    assert "last 15, in a ring" in str(explanation)
    explanation.to_html(tmp_path / "e.html")
    assert "last 15, in a ring" in (tmp_path / "e.html").read_text()
    model = windowed_model("Mistral", 1030, head_dim=16)
    assert {row.report.window for row in explain(innerq(model), **prompt(1, 1040)).rows} == {"last 1,029"}
