"""Every call of programs that are rewritten, spelled in any other way, is rewritten all the same."""

from __future__ import annotations

import functools
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule

from innerq_compile import InnerQConfig, compiled_graphs
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.kernels.internals.dynamo_graphs import copy_graph
from innerq_compile.passes import PIPELINE, PassContext
from tests.helpers.buffer_loop import BufferDecoder
from tests.helpers.programs import LateTransposing, TinyAttention, capture
from tests.helpers.respelling import respell
from tests.helpers.spellings import SPELLINGS, Decoder

CONFIG = InnerQConfig.preset("base")


def _tiny(program, form):
    return program(form=form), [
        lambda _: (torch.randn(1, 5, 32), None, torch.ones(1, 1, 5, 5).tril().log()),
        lambda last: (torch.randn(1, 1, 32), last[1]),
        lambda last: (torch.randn(1, 1, 32), last[1], torch.zeros(1, 1, 1, 7)),
    ]


def _spelled(name):
    def step(last, tokens):
        past = None if last is None else last[1]
        length = tokens if past is None else past[0].shape[2] + tokens
        return (
            torch.randn(2, tokens, 32),
            past,
            torch.ones(2, 1, tokens, length, dtype=torch.bool).tril(length - tokens),
        )

    return Decoder(SPELLINGS[name]), [functools.partial(step, tokens=tokens) for tokens in (5, 1, 1)]


def _buffers(where):
    buffers = [torch.zeros(1, 2, 48, 16) for _ in range(2)]
    steps = [(5, 0), (1, 5), (1, 6)]
    place = (lambda count, first: torch.arange(first, first + count)) if where == "tensor" else (lambda _, first: first)
    calls = [lambda _, n=n, at=at: (torch.randn(1, n, 32), place(n, at), *buffers) for n, at in steps]
    return BufferDecoder(1, 2, 16, where), calls


PROGRAMS = {
    "sdpa": lambda: _tiny(TinyAttention, "sdpa"),
    "eager": lambda: _tiny(TinyAttention, "eager"),
    "cache [B, S, H, D]": lambda: _tiny(LateTransposing, "sdpa"),
    "buffer at a tensor": lambda: _buffers("tensor"),
    "buffer at a number": lambda: _buffers("number"),
    **{
        name: functools.partial(_spelled, name)
        for name in (
            "bmm_with_flat_mask",
            "baddbmm_alibi",
            "bshd_einsum",
            "fill_and_bias",
            "masked_fill_in_place_statement",
            "permuted_key",
            "scale_as_constant_tensors",
            "sinks",
            "softcapped",
            "sdpa_on_five_dimensions",
            "where_fill_first",
            "tiled_heads",
        )
    },
}


@functools.cache
def graphs(program: str) -> list[GraphModule]:
    torch.manual_seed(0)
    model, calls = PROGRAMS[program]()
    return [gm for gm, _ in capture(model, *calls, config=CONFIG)]


def rewritten(gm: GraphModule) -> tuple[Counter, int, list[str], list[str]]:
    """What the passes make of a graph: operators ``innerq::*``, attentions, reasons, where normalizations stand."""
    context = PassContext(CONFIG)
    gm = PIPELINE.run(copy_graph(gm), context)
    ours = Counter(str(node.target) for node in gm.graph.nodes if str(node.target).startswith("innerq."))
    norms = [str(places) for places in context.norm_places.values()]
    return ours, len(context.rewritten), [reason.text for reason in context.reasons], norms


@pytest.mark.sampled(2)
@pytest.mark.parametrize("program", PROGRAMS)
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # without shrinking, which takes minutes: the graph shows what is wrong
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(random=st.randoms(use_true_random=False))
def test_the_same_rewrite(program, random):
    for gm in graphs(program):
        wanted = rewritten(gm)
        assert wanted[1] > 0 or wanted[2]
        copy = copy_graph(gm)
        respell(copy, random)
        copy.recompile()
        assert rewritten(copy) == wanted, copy.code


@torch.no_grad()
def outputs(program: str, compile_model) -> list[torch.Tensor]:
    """What a program gives in each of its calls, once ``compile_model`` has been applied to its model."""
    torch.manual_seed(0)
    model, calls = PROGRAMS[program]()
    model, last, found = compile_model(model), None, []
    for call in calls:
        last = model(*call(last))
        found.append(last if isinstance(last, torch.Tensor) else last[0])
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_same_numbers(program, graphs_as_they_are, one_thread):
    random, changed = Random(1), set()

    def backend(gm, example_inputs):
        changed.update(respell(gm, random))
        gm.recompile()
        return innerq_backend(gm, example_inputs, options={"preset": "lossless"})

    expected = outputs(program, lambda model: model)
    found = outputs(program, lambda model: torch.compile(model, backend=backend))
    for out, want in zip(found, expected, strict=True):
        torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    assert len(changed) >= 4, changed
    assert compiled_graphs()[-1].rewritten == compiled_graphs()[-1].attentions == 1
