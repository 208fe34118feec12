"""Loops over a symbolic number of tokens or chunks become one operator, and compute what the program computes."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from innerq_compile.compiler.loops.operator import OPERATOR
from innerq_compile.kernels.internals.dynamo_calls import counters

pytestmark = pytest.mark.usefixtures("no_inductor")

WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


def recurrent(x, w, out=None):
    """A state that each token changes, and an output that each token writes."""
    out = torch.zeros_like(x)
    state = x.new_zeros(x.shape[0], x.shape[2])
    for i in range(x.shape[1]):
        out[:, i] = torch.tanh(x[:, i] @ w) + state
        state = state * 0.5 + x[:, i]
    return out * 2, state + 1


def stacked(x, w):
    """A list with an output of each token."""
    outputs = []
    state = x.new_zeros(x.shape[0], x.shape[2])
    for i in range(x.shape[1]):
        state = state * 0.5 + x[:, i]
        outputs.append(state @ w)
    y = torch.stack(outputs, dim=1)
    return y.sum(-1) + 1, state


def chunks(x, w, chunk: int = 3, *, final: bool = True):
    """As linear attention does it: the prompt is padded to whole chunks."""
    length = x.shape[1]
    pad = (chunk - length % chunk) % chunk
    parts = [F.pad(value, (0, 0, 0, pad)).reshape(x.shape[0], -1, chunk, 4) for value in (x, x @ w)]
    state = x.new_zeros(x.shape[0], 4, 4)
    out = torch.zeros_like(parts[0])
    for i in range((length + pad) // chunk):
        out[:, i] = parts[1][:, i] @ state + parts[0][:, i]
        state = state * 0.5 + parts[0][:, i].transpose(-1, -2) @ parts[1][:, i]
    out = out.reshape(x.shape[0], -1, 4)[:, :length]
    return out.contiguous(), state if final else None


def calls_chunks(x, w):
    out, state = chunks(x * 2, w)
    return out + 1, state


def calls_chunks_without_state(x, w):
    out, nothing = chunks(x, w, chunk=2, final=False)
    return out + 1 if nothing is None else out


def writes_argument(x, w):
    """A function that writes to what it is given."""
    buffer = x * 1
    fill(buffer, w)
    return buffer + 1


def fill(buffer, w):
    for i in range(buffer.shape[1]):
        buffer[:, i] = buffer[:, i] @ w
    return buffer


class Module(nn.Module):
    """A loop that reads attributes of its module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())
        self.factor = 0.5

    def forward(self, x, w):
        state = torch.zeros_like(x[:, 0])
        for i in range(x.shape[1]):
            state = state * self.factor + x[:, i] @ self.weight
        self.last = state
        return state @ w


PROGRAMS = [recurrent, stacked, calls_chunks, calls_chunks_without_state, writes_argument, Module()]


def check(program, *, lengths=(5, 12, 2), batches=(2, 3)) -> None:
    compiled = torch.compile(program, backend=innerq_backend())
    with torch.no_grad():
        for batch in batches:
            for length in lengths:
                x = torch.randn(batch, length, 4)
                torch.testing.assert_close(compiled(x, WEIGHT), program(x, WEIGHT))


def innerq_backend():
    from innerq_compile.compiler.backend import innerq_backend as backend

    return backend


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that the backend gets."""
    from innerq_compile.compiler import backend

    found, original = [], backend.analyse
    monkeypatch.setattr(backend, "analyse", lambda gm, *rest: found.append(gm) or original(gm, *rest))
    return found


def operators(gm) -> int:
    return len(gm.graph.find_nodes(op="call_function", target=OPERATOR))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: getattr(program, "__name__", "module"))
def test_one_graph_with_one_operator_serves_all_lengths(program, graphs):
    check(program)
    assert [operators(gm) for gm in graphs] == [1]
    assert not counters["graph_break"]


def test_a_function_is_one_operator_with_all_that_it_computes_for_its_loop(graphs):
    check(calls_chunks)
    assert not [node for node in graphs[0].graph.nodes if "pad" in str(node.target)]


@pytest.mark.parametrize("program", [recurrent, calls_chunks, writes_argument])
def test_in_inference_mode(program, graphs):
    with torch.inference_mode():
        check(program, batches=(2,))
    assert [operators(gm) for gm in graphs] == [1]


def test_constant_loops_are_traced(graphs):
    def program(x, w):
        for _ in range(3):
            x = x @ w
        return x

    check(program)
    assert operators(graphs[0]) == 0


def test_other_backends_unroll():
    seen = []

    def backend(gm, _):
        seen.append(gm)
        return gm.forward

    with torch.no_grad():
        torch.compile(recurrent, backend=backend, dynamic=True)(torch.randn(2, 5, 4), WEIGHT)
    assert operators(seen[0]) == 0


# --- loops that stay as they are --------------------------------------------------------------------------------------


def branches(x, w):
    state = x[:, 0]
    for i in range(x.shape[1]):
        if i % 2:
            state = state @ w
    return state


def grows(x, w):
    state = x[:, :1]
    for i in range(x.shape[1]):
        state = torch.cat([state, x[:, i : i + 1]], 1)
    return state @ w


def keeps_list(x, w):
    outputs = []
    for i in range(x.shape[1]):
        outputs.append(x[:, i] @ w)
    return outputs[0] + outputs[1]


def reads_view(x, w):
    buffer = x @ w
    shifted = buffer[:, 1:]
    for i in range(shifted.shape[1]):
        buffer[:, i] = shifted[:, i] * 2
    return buffer


@pytest.mark.parametrize("program", [branches, grows, keeps_list, reads_view])
def test_other_loops_are_unrolled_with_a_reason(program, graphs, caplog):
    with caplog.at_level(logging.WARNING, "innerq_compile"):
        check(program, lengths=(5, 7), batches=(2,))
    assert [operators(gm) for gm in graphs] == [0, 0]
    texts = [record.message for record in caplog.records if "is unrolled" in record.message]
    assert len(texts) == 1 and program.__name__ in texts[0]


def test_gradients_are_those_of_the_program(graphs):
    x = torch.randn(2, 5, 4, requires_grad=True)
    compiled = torch.compile(recurrent, backend=innerq_backend())
    (expected,) = torch.autograd.grad(recurrent(x, WEIGHT)[0].sum(), x)
    (found,) = torch.autograd.grad(compiled(x, WEIGHT)[0].sum(), x)
    torch.testing.assert_close(found, expected)
    assert operators(graphs[0]) == 0


# --- a model ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_a_model_with_linear_attention():
    """Its prompts of all lengths are one graph, whose attention is rewritten, and so is its decode step."""
    transformers = pytest.importorskip("transformers", minversion="5.24")
    config = transformers.Qwen3NextConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3NextForCausalLM(config).eval()
    prompts = [torch.randint(1, 61, (1, length)) for length in (70, 64, 300)]

    def run(tokens):
        options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
        return model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)

    expected = [run(tokens).sequences for tokens in prompts]
    innerq(model, preset="lossless")
    for tokens, want in zip(prompts, expected, strict=True):
        found = run(tokens)
        assert torch.equal(found.sequences, want)
        assert isinstance(found.past_key_values.layers[3].keys, InnerQTensor)
    assert [(report.kind, report.rewritten) for report in compiled_graphs()] == [("prefill", 1), ("decode", 1)]
