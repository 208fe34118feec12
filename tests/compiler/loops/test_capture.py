"""Functions with a loop over a symbolic number of chunks become one operator, and compute what they did."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
import torch.nn.functional as F

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


def normalized(x, dim: int = -1, eps: float = 1e-6):
    return x * torch.rsqrt((x * x).sum(dim=dim, keepdim=True) + eps)


def chunks(x, w, chunk: int = 64, state=None, *, final: bool = True, **others):
    """As linear attention does it: the prompt is padded to whole chunks."""
    batch, length, size = x.shape
    if size != w.shape[0]:
        x = x.repeat_interleave(2, dim=2)
    pad = (chunk - length % chunk) % chunk
    keys, values = (F.pad(value, (0, 0, 0, pad)) for value in (normalized(x, eps=1e-3), x @ w))
    keys, values = [value.reshape(batch, -1, chunk, 4) for value in (keys, values)]
    system = torch.eye(chunk, dtype=x.dtype, device=x.device) + (keys @ keys.transpose(-1, -2)).tril(-1)
    for i in range(1, 3):
        system[..., i, :i] = system[..., i, :i].clone() * 0.5
    values = torch.linalg.solve_triangular(system, values, upper=False, unitriangular=True)
    if state is None:  # noqa: SIM108
        state = torch.zeros((batch, 4, 4), dtype=x.dtype, device=x.device)
    else:
        state = state.to(values)
    out = torch.zeros_like(values)
    for i in range((length + pad) // chunk):
        new = values[:, i] @ state
        out[:, i] = new + keys[:, i]
        state = state * 0.5 + keys[:, i].transpose(-1, -2) @ values[:, i] * 0.01
    state = state if final else None
    out = out.reshape(batch, -1, 4)[:, :length]
    return out.to(x.dtype, memory_format=torch.contiguous_format), state


def calls_recurrent(x, w):
    return recurrent(x * 2, w)


def calls_chunks(x, w):
    out, state = chunks(x @ w, w, other=None)
    return out + 1, state


def calls_chunks_with_state(x, w):
    out, state = chunks(x @ w, w, state=x[:, 0, :, None] * w)
    return chunks(out, w, state=state)


def calls_chunks_without_state(x, w):
    out, nothing = chunks(x @ w, w, chunk=8, final=False)
    return out + 1 if nothing is None else out


PROGRAMS = [calls_recurrent, calls_chunks, calls_chunks_with_state, calls_chunks_without_state]


def check(program, *, lengths=(70, 130, 200), batches=(2, 3)) -> None:
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

    counters.clear()  # of graph breaks in other tests
    found, original = [], backend.analyse
    monkeypatch.setattr(backend, "analyse", lambda gm, *rest: found.append(gm) or original(gm, *rest))
    return found


def operators(gm) -> int:
    return len(gm.graph.find_nodes(op="call_function", target=OPERATOR))


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_graph_serves_all_lengths(program, graphs, caplog):
    check(program)
    assert [operators(gm) for gm in graphs] == [2 if program is calls_chunks_with_state else 1]
    assert not counters["graph_break"]
    assert not [record for record in caplog.records if "is unrolled" in record.message]


def test_a_function_is_one_operator_with_all_that_it_computes_for_its_loop(graphs):
    check(calls_chunks)
    assert not [node for node in graphs[0].graph.nodes if "pad" in str(node.target)]


@pytest.mark.parametrize("program", [calls_recurrent, calls_chunks])
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
        torch.compile(calls_recurrent, backend=backend, dynamic=True)(torch.randn(2, 5, 4), WEIGHT)
    assert operators(seen[0]) == 0


# --- loops that stay as they are --------------------------------------------------------------------------------------

COUNTS = {"calls": 0}
SEEN: list[int] = []


@functools.lru_cache
def eye(size):
    return torch.eye(size)


def counted(state, value):
    COUNTS["calls"] += 1
    return state * 0.5 + value


def either(state, value, i):
    return state + value * 2 if i > 3 else state - value


def in_dict(x, w, values):
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        values["state"] = values["state"] * 0.5 + x[:, i]
        out[:, i] = values["state"]
    return out


def writes_list(x, values):
    out = torch.zeros_like(x)
    values[0] = 7
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] * 2
    return out


def reads_behind(x):
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] * 2
    return out[:, :i]


def keeps_last(x):
    last = 0
    for i in range(x.shape[1]):
        x = x * 1.0
        last = i
    return x * last


def pads(x):
    if x.shape[1] % 2:
        x = F.pad(x, (0, 0, 0, 1))
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] * 2
    return out


def flags(x):
    big = False
    if x.shape[1] > 6:
        big = True
    for i in range(x.shape[1]):
        x = x + x[:, i : i + 1]
    return x, big


def flags_simple(x):
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] * 2
    return out, x.shape[1] > 6


def appends(x):
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] * 2
        SEEN.append(1)
    return out


def cached(x):
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] @ eye(4)
    return out


def side_effect(x, state):
    for i in range(x.shape[1]):
        state = counted(state, x[:, i])
    return state


def branch_in_helper(x, state):
    for i in range(x.shape[1]):
        state = either(state, x[:, i], i)
    return state


def branches(x, state):
    for i in range(x.shape[1]):
        if i % 2:
            state = state + x[:, i]
    return state


def with_else(x, state):
    for i in range(x.shape[1]):
        state = state + x[:, i]
    else:
        state = state * 2
    return state


def grows(x, state):
    state = state[:, None]
    for i in range(x.shape[1]):
        state = torch.cat([state, x[:, i][:, None]], 1)
    return state


def fills(buffer):
    for i in range(buffer.shape[1]):
        buffer[:, i] = buffer[:, i] * 3
    return buffer


def adds_in_place(x, state):
    for i in range(x.shape[1]):
        state += x[:, i]
    return state


def shorter(x, state):
    for i in range(x.shape[1] - 5):
        state = state + x[:, i]
    return state


def counts_up(x):
    out, at = torch.zeros_like(x), 0
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] * at
        at = min(at + 1, 2)
    return out


def by_size(x, state):
    for i in range(x.shape[1]):
        state = state * 0.5 + x[:, i]
    return state[:, : min(x.shape[1], 7) - 4]


def random(x):
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i] + torch.rand_like(x[:, i]) * 0
    return out


def mutable_default(x, values=[2]):  # noqa: B006
    for i in range(x.shape[1]):
        x = x + x[:, i][:, None] * 0.1
    values[0] = 3
    return x * values[0]


def p_dict(x, w):
    values = {"state": x[:, 0]}
    out = in_dict(x, w, values)
    return out, values["state"]


def p_list(x, w):
    values = [3]
    return writes_list(x, values) * values[0]


def p_flags(x, w):
    out, big = flags_simple(x)
    return out * 3 if big else out


def p_fills(x, w):
    buffer = x * 1
    fills(buffer)
    return buffer + 1


def p_in_place(x, w):
    state = x[:, 0] * 1
    return adds_in_place(x, state), state + 1


def of(function):
    """A program that calls a function with a prompt, and with a state if it takes one."""
    if function.__code__.co_argcount == 2 and function is not mutable_default:

        def program(x, w):
            return function(x, x[:, 0] @ w)
    else:

        def program(x, w):
            return function(x @ w)

    program.__name__ = function.__name__
    return program


REFUSED = {
    "it uses values": p_dict,
    "uses values, which": p_list,
    "a symbolic size": of(pads),
    "the loop variable i is read": of(reads_behind),
    "plain number": of(keeps_last),
    "returns a SymBool": p_flags,
    "a symbolic size, or": of(flags),
    "call whose result it drops": of(appends),
    "calls eye, which is no plain function": of(cached),
    "counted, which has a loop or writes": of(side_effect),
    "it has a condition": of(branch_in_helper),
    "condition on a symbolic": of(branches),
    "an else": of(with_else),
    "or makes it a plain number": of(grows),
    "writes one of its arguments": p_fills,
    "one of its arguments": p_in_place,
    "sizes of its results": of(shorter),
    "carries on a int": of(counts_up),
    "size, or makes": of(by_size),
    "calls torch.rand_like": of(random),
    "values, which is no tensor": of(mutable_default),
}


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("reason", REFUSED, ids=[program.__name__ for program in REFUSED.values()])
def test_other_functions_are_unrolled_with_a_reason(reason, graphs, caplog):
    with caplog.at_level(logging.WARNING, "innerq_compile"):
        check(REFUSED[reason], lengths=(6, 7, 5), batches=(2,))
    assert {operators(gm) for gm in graphs} == {0}
    texts = [record.message for record in caplog.records if "is unrolled" in record.message]
    assert len(texts) == 1 and reason in texts[0]


def test_a_loop_of_the_program_itself(graphs, caplog):
    with caplog.at_level(logging.WARNING, "innerq_compile"):
        check(recurrent, lengths=(5, 7), batches=(2,))
    assert {operators(gm) for gm in graphs} == {0}
    assert "recurrent" in caplog.text and "not in a plain function that the program calls" in caplog.text


def test_refused_functions_keep_no_fake_tensor():
    eye.cache_clear()
    SEEN.clear()
    COUNTS["calls"] = 0
    check(of(cached), lengths=(5,), batches=(2,))
    assert type(eye(4)) is torch.Tensor
    check(of(appends), lengths=(5,), batches=(2,))
    check(of(side_effect), lengths=(5,), batches=(2,))
    assert (SEEN, COUNTS["calls"]) == ([1] * 10, 10)


def test_gradients_are_those_of_the_program(graphs):
    x = torch.randn(2, 5, 4, requires_grad=True)
    compiled = torch.compile(calls_recurrent, backend=innerq_backend())
    (expected,) = torch.autograd.grad(calls_recurrent(x, WEIGHT)[0].sum(), x)
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
