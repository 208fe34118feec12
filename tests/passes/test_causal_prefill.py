"""Attention of a prompt whose mask is causal, but for padding: what the graph holds then, and that it says the same."""

from __future__ import annotations

import expecttest
import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQConfig
from innerq_compile.kernels.internals.dynamo_graphs import copy_graph
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.graph.values import tensor_of
from tests.helpers.programs import TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


class Padded(TinyAttention):
    """An attention that makes its mask as transformers does."""

    window, added, in_front = 0, False, True

    def forward(self, x, padding):
        return super().forward(x, None, self.mask(x, padding))

    def mask(self, x, padding):
        count = torch.arange(x.shape[1])
        rows, columns = count[None, None, :, None], count[None, None, None, :]
        mask = columns <= rows
        if self.window:
            mask = mask & (columns > rows - self.window)
        if self.in_front:
            mask = mask & padding[:, None, None]
        mask = mask.expand(x.shape[0], -1, x.shape[1], x.shape[1])
        return torch.where(mask, 0.0, torch.finfo(x.dtype).min) if self.added else mask


class Sinks(Padded):
    """An attention in single operations, with a logit a head that has no value."""

    def __init__(self, **options):
        super().__init__(**options)
        self.sinks = torch.nn.Parameter(torch.randn(self.heads))

    def forward(self, x, padding):
        batch, tokens, _ = x.shape
        q, k, v = (
            f(x).view(batch, tokens, n, self.head_dim).transpose(1, 2)
            for f, n in ((self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads))
        )
        keys, values = (torch.repeat_interleave(side, self.heads // self.kv_heads, 1) for side in (k, v))
        scores = q @ keys.mT * self.head_dim**-0.5 + self.mask(x, padding)
        logits = torch.cat([scores, self.sinks.reshape(1, -1, 1, 1).expand(batch, -1, tokens, -1)], -1)
        logits = logits - logits.max(-1, keepdim=True).values
        out = logits.softmax(-1)[..., :-1] @ values
        return out.transpose(1, 2).reshape(batch, tokens, -1), (k, v)


class Cast(Padded):
    """Attends in a wider dtype."""

    def forward(self, x, padding):
        q, k, v = (f(x).view(2, -1, n, 16).transpose(1, 2) for f, n in ((self.q, 2), (self.k, 1), (self.v, 1)))
        mask = self.mask(x, padding)
        out = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask, enable_gqa=True)
        return out, (k, v)


class OfHalf(Padded):
    """All heads of keys meet those of one half of the values."""

    def forward(self, x, padding):
        q, k, v = (f(x).view(2, -1, n, 16).transpose(1, 2) for f, n in ((self.q, 4), (self.k, 2), (self.v, 2)))
        half = v[:, 1:].repeat(1, 2, 1, 1)
        return F.scaled_dot_product_attention(q, k, half, self.mask(x, padding), enable_gqa=True), (k, v)


class OfLatent(Padded):
    """Keys and values are computed from a latent, which is what the cache holds."""

    def __init__(self):
        super().__init__()
        self.down, self.rotary = torch.nn.Linear(32, 16, bias=False), torch.nn.Linear(32, 8, bias=False)
        self.up = torch.nn.Linear(16, 2 * (8 + 16), bias=False)

    def forward(self, x, padding):
        batch, tokens, _ = x.shape
        latent, rotary = self.down(x)[:, None], self.rotary(x)[:, None]
        up = self.up(latent).view(batch, tokens, 2, 24).transpose(1, 2)
        keys, values = up.split([8, 16], -1)
        keys = torch.cat([keys, rotary.expand(-1, 2, -1, -1)], -1)
        q = self.q(x).view(batch, tokens, 2, 16).transpose(1, 2)
        return F.scaled_dot_product_attention(q, keys, values, self.mask(x, padding)), (rotary, latent)


def graph_of(module):
    width = module.heads * module.head_dim
    arguments = torch.randn(2, 9, width), torch.ones(2, 9, dtype=torch.bool)
    ((gm, _),) = capture(module, lambda _: arguments, config=PLAIN)
    return gm


def rewritten(module) -> bool:
    return "causal_attention" in PIPELINE.rewrite(graph_of(module), PLAIN).gm.code


class TestCausalPrefill(expecttest.TestCase):
    def test_a_prompt(self):
        changes = changes_by_pass(graph_of(Padded()), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["causal_prefill"],
            """\
- count = torch.arange(9)
- rows = count[(None, None, slice(None, None, None), None)]
- columns = count[(None, None, None, slice(None, None, None))]
- mask = columns <= rows
- mask_1 = mask & getitem_2
- mask_2 = mask_1.expand(2, -1, 9, 9)
+ getitem_11 = getitem_2[(slice(None, None, None), 0, 0)]
+ all_1 = getitem_11.all()
- out = scaled_dot_product_attention(q, k, v, attn_mask = mask_2, is_causal = False, enable_gqa = True)
+ causal_attention_default = causal_attention(q, k, v, getitem_11, all_1, None, None, 0.25)
- transpose_3 = out.transpose(1, 2)
+ transpose_3 = causal_attention_default.transpose(1, 2)""",
        )

    def test_a_prompt_with_a_window(self):
        module = Padded()
        module.window = 5
        changes = changes_by_pass(graph_of(module), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["causal_prefill"],
            """\
- count = torch.arange(9)
- rows = count[(None, None, slice(None, None, None), None)]
- columns = count[(None, None, None, slice(None, None, None))]
- mask = columns <= rows
- sub = rows - 5
- gt = columns > sub
- mask_1 = mask & gt
- mask_2 = mask_1 & getitem_2
- mask_3 = mask_2.expand(2, -1, 9, 9)
+ getitem_11 = getitem_2[(slice(None, None, None), 0, 0)]
+ all_1 = getitem_11.all()
- out = scaled_dot_product_attention(q, k, v, attn_mask = mask_3, is_causal = False, enable_gqa = True)
+ causal_attention_default = causal_attention(q, k, v, getitem_11, all_1, 5, None, 0.25)
- transpose_3 = out.transpose(1, 2)
+ transpose_3 = causal_attention_default.transpose(1, 2)""",
        )


def with_(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("window", [0, 5, 9, 30])
@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize(
    "module",
    [
        Padded(heads=4, kv_heads=2),
        with_(Padded(heads=4, kv_heads=2, form="eager"), added=True, in_front=False),
        with_(Padded(heads=4, kv_heads=2), added=True, in_front=False),
        with_(Sinks(heads=4, kv_heads=2), added=True),
    ],
    ids=["sdpa", "eager", "added", "sinks"],
)
def test_outputs_stay(module, window, hidden):
    with_(module, window=window)
    assert rewritten(module)
    x, padding = torch.randn(2, 9, 64), torch.arange(9).expand(2, -1) >= torch.tensor([[hidden], [0]])
    with torch.no_grad():
        wanted = module(x, padding)[0]
        out = torch.compile(module, backend="innerq", options={"preset": "lossless"})(x, padding)[0]
    rows = (padding if module.in_front else padding | True)[..., None].expand_as(out)
    torch.testing.assert_close(out[rows], wanted[rows])


def test_a_half_of_the_value_heads():
    module = OfHalf(heads=4, kv_heads=2)
    graph = PIPELINE.rewrite(graph_of(module), PLAIN).gm.graph
    operators = [node for node in graph.nodes if str(node.target) == "innerq.causal_attention.default"]
    assert len(operators) == 1
    x, padding = torch.randn(2, 9, 64), torch.arange(9).expand(2, -1) >= torch.tensor([[3], [0]])
    with torch.no_grad():
        wanted = module(x, padding)[0]
        out = torch.compile(module, backend="innerq", options={"preset": "lossless"})(x, padding)[0]
    rows = padding[:, None, :, None].expand_as(out)
    torch.testing.assert_close(out[rows], wanted[rows])


def test_what_is_attended_to_is_not_what_a_latent_cache_holds():
    rewritten = PIPELINE.rewrite(graph_of(OfLatent()), PLAIN)
    (match,) = rewritten.context.rewritten
    assert match.latent is not None and "causal_attention" not in rewritten.gm.code


class Moved(torch.nn.Module):
    """Two layers on two devices, the second of which has its inputs moved, as accelerate's hooks do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Padded(), Padded().to("meta")

    def forward(self, x, padding):
        mask = self.first.mask(x, padding)
        x, first = TinyAttention.forward(self.first, x, None, mask)
        x, second = TinyAttention.forward(self.second, x.to("meta"), None, mask.to("meta"))
        return x, first, second


def test_each_layer_reads_tensors_of_its_own_device():
    captured = []

    def backend(gm, _):
        captured.append(copy_graph(gm))
        return gm.forward

    with torch.no_grad():
        torch.compile(Moved(), backend=backend)(torch.randn(2, 9, 32), torch.ones(2, 9, dtype=torch.bool))
    graph = PIPELINE.rewrite(captured[0], PLAIN).gm.graph
    operators = [node for node in graph.nodes if str(node.target).startswith("innerq.")]
    assert [str(node.target) for node in operators].count("innerq.causal_attention.default") == 1
    for node in operators:
        inputs = [tensor_of(each) for each in node.all_input_nodes]
        assert len({each.device for each in inputs if each is not None}) == 1, node


@pytest.mark.parametrize(
    "module",
    [with_(Padded(form="eager"), added=True), with_(Padded(), added=True), Cast()],
    ids=["eager", "added", "cast"],
)
def test_programs_that_it_leaves_alone(module):
    """The first two give the mean of all values in a row from which all keys are hidden."""
    assert not rewritten(module)
