"""Attention over a buffer that is written in place reads a quantized shadow of it."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig, compiled_graphs, empty_cache
from innerq_compile.passes import PIPELINE
from tests.helpers.buffer_loop import BufferDecoder
from tests.helpers.programs import BufferAttention, brief_code_of, capture, changes_by_pass
from tests.helpers.without_inductor import as_it_is, without_inductor

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


def graph_of_a_step(mask) -> torch.fx.GraphModule:
    buffers = [torch.zeros(1, 1, 64, 16) for _ in range(2)]
    ((gm, _),) = capture(
        BufferAttention(), lambda _: (torch.randn(1, 1, 32), torch.tensor([7]), *buffers, mask), config=PLAIN
    )
    return gm


class TestRewriteBuffer(expecttest.TestCase):
    def test_a_step(self):
        changes = changes_by_pass(graph_of_a_step((torch.arange(64) <= 7)[None]), PLAIN, read=brief_code_of)
        assert [*changes] == ["captured", "rewrite_buffer"]
        self.assertExpectedInline(
            changes["rewrite_buffer"],
            """\
- scaled_dot_product_attention = scaled_dot_product_attention(q, l_keys_, l_values_, attn_mask = l_mask_, enable_gqa = True)
- return (scaled_dot_product_attention,)
+ getitem = l_position_[slice(0, 1, None)]
+ rewind__default = rewind_(l_keys__shadow..., l_values__shadow..., getitem)
+ append__default = append_(l_keys__shadow..., None, l_values__shadow..., k, v)
+ open_from_default = open_from(l_mask_, l_keys__shadow_state, 1)
+ decode_attention_default = decode_attention(q, l_keys__shadow..., l_values__shadow..., l_mask_, open_from_default, None, 0.25, 0.0, False)
+ arange = torch.arange(64, device = device(type='cpu'))
+ add = getitem + 1
+ ge = arange >= add
+ and_ = l_mask_ & ge
+ any_1 = and_.any()
+ logical_not = torch.logical_not(any_1)
+ _assert_async = torch._assert_async(logical_not, 'innerq: the mask shows tokens of a static cache that have not been written')
+ return (decode_attention_default,)""",
        )


class TestFullBuffer(expecttest.TestCase):
    def test_a_step(self):
        """As transformers does behind a sliding window. All that is in the buffers has been written."""

        def step(q, k, v, keys, values, mask):
            for buffer, new in ((keys, k), (values, v)):
                full = buffer.roll(-1, dims=-2)
                full[:, :, torch.tensor([-1])] = new
                buffer.copy_(full)
            return (torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask),)

        tokens = [torch.randn(1, 1, 1, 16) for _ in range(3)]
        buffers = [torch.zeros(1, 1, 64, 16) for _ in range(2)]
        ((gm, _),) = capture(step, lambda _: (*tokens, *buffers, (torch.arange(64) > 3)[None]), config=PLAIN)
        changes = changes_by_pass(gm, PLAIN, read=brief_code_of)
        assert [*changes] == ["captured", "rewrite_buffer"]
        self.assertExpectedInline(
            changes["rewrite_buffer"],
            """\
- scaled_dot_product_attention = scaled_dot_product_attention(l_q_, l_keys_, l_values_, attn_mask = l_mask_)
- return (scaled_dot_product_attention,)
+ append__default = append_(l_keys__shadow..., None, l_values__shadow..., l_k_, l_v_, 1)
+ open_from_default = open_from(l_mask_, l_keys__shadow_state, 1)
+ decode_attention_default = decode_attention(l_q_, l_keys__shadow..., l_values__shadow..., l_mask_, open_from_default, None, 0.25, 0.0, False)
+ return (decode_attention_default,)""",
        )


def test_the_shadow_is_an_input_that_follows_both_buffers():
    result = PIPELINE.rewrite(graph_of_a_step((torch.arange(64) <= 7)[None]), PLAIN)
    ((buffers, shadow),) = result.context.shadows.items()
    assert [buffer.name for buffer in buffers] == ["l_keys_", "l_values_"]
    assert (shadow.key_use.buffer, shadow.value_use.buffer) == buffers
    assert shadow.key.format.role == "key" and shadow.value.format.role == "value"
    names = [node.name for node in result.gm.graph.find_nodes(op="placeholder")]
    assert [name for name in names if "shadow" in name] == [
        f"l_{side}__shadow_{inner}" for side in ("keys", "values") for inner in ("codes", "scales", "window", "state")
    ]


def test_a_mask_that_does_not_hide_what_is_not_written():
    result = PIPELINE.rewrite(graph_of_a_step(None), PLAIN)
    (reason,) = result.context.reasons
    assert reason.text == (
        "the attention reads the whole buffer without a mask, including tokens that have not been written"
    )
    assert not result.context.shadows and not result.context.rewritten


@pytest.mark.parametrize("moved", [-1, 1])
def test_a_position_that_the_program_changes_is_looked_at_before(moved):
    """The check of the mask reads the position of the write, which the program advances, or takes back, later."""

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.position = torch.tensor([7])
            self.shown = 0

        def forward(self, q, k, v, keys, values):
            keys.index_copy_(2, self.position, k)
            values.index_copy_(2, self.position, v)
            mask = torch.arange(64)[None] <= self.position[:, None] + self.shown
            out = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            self.position.add_(moved)
            return out

    def call(shown: int) -> torch.Tensor:
        torch._dynamo.reset()
        program, inputs = Counting(), [torch.randn(1, 1, 1, 16) for _ in range(3)]
        program.shown = shown
        buffers = [torch.randn(1, 1, 64, 16) for _ in range(2)]
        return torch.compile(program, backend="innerq", dynamic=False)(*inputs, *buffers)

    with torch.no_grad():
        call(0)
        assert compiled_graphs()[-1].rewritten
        with pytest.raises(RuntimeError, match="have not been written"):
            call(1)


class TestPromptInQuantizedBuffers(expecttest.TestCase):
    def test_its_length_is_a_symbol(self):
        buffers = [empty_cache(1, 1, 64, 16, role=role, config=PLAIN) for role in ("key", "value")]
        at = torch.arange(40)
        x, mask = torch.randn(1, 40, 32), torch.arange(64) <= at[:, None]
        for tensor, dim in ((x, 1), (at, 0), (mask, 0)):
            torch._dynamo.mark_dynamic(tensor, dim)
        ((gm, _),) = capture(BufferAttention(), lambda _: (x, at, *buffers, mask), config=PLAIN)
        self.assertExpectedInline(
            changes_by_pass(gm, PLAIN, read=brief_code_of)["rewrite_buffer"],
            """\
- index_copy_ = l_keys_.index_copy_(2, l_position_, k)
- index_copy__1 = l_values_.index_copy_(2, l_position_, v)
- scaled_dot_product_attention = scaled_dot_product_attention(q, l_keys_, l_values_, attn_mask = l_mask_, enable_gqa = True)
- return (scaled_dot_product_attention,)
+ getitem = l_position_[slice(0, 1, None)]
+ size = k.size(2)
+ arange = torch.arange(size, device = device(type='cpu'))
+ add = getitem + arange
+ eq = torch.eq(l_position_, add)
+ all_1 = eq.all()
+ _assert_async = torch._assert_async(all_1, 'innerq: tokens are written to a static cache at positions that are not consecutive')
+ write__default = write_(l_keys_..., None, None, None, k, getitem)
+ write__default_1 = write_(l_values_..., None, None, None, v, getitem)
+ size_1 = q.size(2)
+ open_from_default = open_from(l_mask_, l_keys__state, size_1)
+ decode_attention_default = decode_attention(q, l_keys_..., l_values_..., l_mask_, open_from_default, None, 0.25, 0.0, False)
+ transpose = decode_attention_default.transpose(1, 2)
+ contiguous = transpose.contiguous()
+ transpose_1 = contiguous.transpose(1, 2)
+ size_2 = k.size(2)
+ arange_1 = torch.arange(64, device = device(type='cpu'))
+ add_1 = getitem + size_2
+ ge = arange_1 >= add_1
+ and_ = l_mask_ & ge
+ any_1 = and_.any()
+ logical_not = torch.logical_not(any_1)
+ _assert_async_1 = torch._assert_async(logical_not, 'innerq: the mask shows tokens of a static cache that have not been written')
+ return (transpose_1,)""",
        )


#: The place of the first token and the number of tokens: a prompt in three chunks, and steps; then another text.
CHUNKS = ((0, 150), (150, 20), (170, 1), (171, 5), (0, 60), (60, 3), (63, 1))


def in_chunks(program, where, batches, quantized="base", chunks=CHUNKS):
    """The outputs, and what the buffers hold in the end, of each batch size in turn."""
    generator = torch.Generator().manual_seed(1)
    results = []
    for batch in batches:
        buffers = [torch.zeros(batch, 2, 200, 32) for _ in range(4)]
        if quantized:
            buffers = [empty_cache(batch, 2, 200, 32, role=role, config=quantized) for role in ("key", "value") * 2]
        for first, count in chunks:
            at = torch.arange(first, first + count) if where == "tensor" else first
            results.append(program(torch.randn(batch, count, 64, generator=generator), at, *buffers))
        results += [buffer.dequantize() if quantized else buffer for buffer in buffers]
    return results


@pytest.fixture
def decoder(request):
    torch.manual_seed(3)
    return BufferDecoder(2, heads=2, head_dim=32, where=request.param)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("decoder", "batches"),
    [
        pytest.param("number", (1,), id="number-one"),
        pytest.param("number", (3, 5), id="number-batches", marks=pytest.mark.slow),
        pytest.param("tensor", (1,), id="tensor-one", marks=pytest.mark.slow),
        pytest.param("tensor", (3, 5), id="tensor-batches"),
    ],
    indirect=["decoder"],
)
@torch.no_grad()
def test_prompts_of_all_lengths_are_those_of_graphs_of_one_length(decoder, batches):
    """Also a prompt in chunks, and steps of several tokens. Their graph is the same."""
    results = in_chunks(torch.compile(decoder, backend="innerq", options={"strict": True}), decoder.where, batches)
    graphs = compiled_graphs()
    assert [graph.rewritten for graph in graphs] == [2, 2]  # many tokens, and one
    torch._dynamo.reset()
    # a graph for each length, which AOTAutograd need not trace: what it makes of the passes' graphs is above
    with torch._dynamo.config.patch(recompile_limit=64), without_inductor(as_it_is):
        fixed = torch.compile(decoder, backend="innerq", dynamic=False)
        expected = in_chunks(fixed, decoder.where, batches)
    lengths = {count for _, count in CHUNKS}
    assert len(compiled_graphs()) >= 2 + len(lengths) * len(batches)
    torch.testing.assert_close(results, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("error:Raw SymInt")
@pytest.mark.parametrize("decoder", ["number", "tensor"], indirect=True)
@torch.no_grad()
def test_prompts_of_all_lengths_attend_to_what_the_buffers_hold(decoder):
    read = []
    for rewrite in (True, False):
        torch._dynamo.reset()
        compiled = torch.compile(decoder, backend="innerq", options={"strict": True, "rewrite": rewrite})
        read.append(in_chunks(compiled, decoder.where, (2,)))
    torch.testing.assert_close(*read, atol=1e-5, rtol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("decoder", ["number", "tensor"], indirect=True)
@torch.no_grad()
def test_prompts_of_all_lengths_are_right(decoder):
    chunks = (*CHUNKS, (0, 2), (2, 1), (3, 2), (0, 200))
    compiled = torch.compile(decoder, backend="innerq", options={"strict": True, "preset": "lossless"})
    results = in_chunks(compiled, decoder.where, (2, 4), "lossless", chunks)
    expected = in_chunks(decoder, decoder.where, (2, 4), None, chunks)
    outputs = len(chunks)
    for start in (0, outputs + 4):
        torch.testing.assert_close(
            results[start : start + outputs], expected[start : start + outputs], atol=2e-4, rtol=2e-4
        )


@pytest.mark.parametrize("decoder", ["tensor"], indirect=True)
@torch.no_grad()
def test_prompts_of_a_symbolic_length_are_checked(decoder):
    """Positions that are not consecutive, and a mask that shows what has not been written."""
    compiled = torch.compile(decoder, backend="innerq")
    buffers = [empty_cache(1, 2, 200, 32, role=role) for role in ("key", "value") * 2]
    compiled(torch.randn(1, 40, 64), torch.arange(40), *buffers)
    with pytest.raises(RuntimeError, match="not consecutive"):
        compiled(torch.randn(1, 30, 64), torch.arange(30) * 2, *buffers)
    attention = torch.compile(BufferAttention(), backend="innerq")
    buffers = [empty_cache(1, 1, 256, 16, role=role) for role in ("key", "value")]
    for tokens in (40, 30):
        at = torch.arange(tokens)
        hides = torch.arange(256) <= at[:, None]
        attention(torch.randn(1, tokens, 32), at, *buffers, hides)
        with pytest.raises(RuntimeError, match="have not been written"):
            attention(torch.randn(1, tokens, 32), at, *buffers, torch.ones_like(hides))


@pytest.mark.parametrize("decoder", ["number", "tensor"], indirect=True)
@torch.no_grad()
def test_a_dense_buffer_is_read_by_prompts_of_any_length(decoder):
    compiled = torch.compile(decoder, backend="innerq", options={"preset": "lossless"})
    results = in_chunks(compiled, decoder.where, (1,), None)
    torch.testing.assert_close(results, in_chunks(decoder, decoder.where, (1,), None), atol=2e-4, rtol=2e-4)
    reasons = {str(reason.text) for graph in compiled_graphs() for reason in graph.reasons}
    assert reasons == {
        "keys: different numbers of tokens are written at once, as in a prefill, whose attention stays exact"
    }
