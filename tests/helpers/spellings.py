"""Spellings of an attention that are understood, and a tiny decoder for them.

A spelling is a function of query ``[B, Hq, N, D]``, keys and values ``[B, H, S, D]`` and a boolean mask
``[B, 1, N, S]`` that computes ``[B, Hq, N, D]``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

B, HEADS, KV_HEADS, D = 2, 4, 2, 16
GROUP = HEADS // KV_HEADS
SCALE = D**-0.5
MIN = torch.finfo(torch.float32).min

#: All of them, by name.
SPELLINGS = {}


def spelling(fn):
    """Add a function to `SPELLINGS`."""
    SPELLINGS[fn.__name__] = fn
    return fn


def repeat(x):
    """Keys or values for each query head."""
    batch, heads, tokens, dim = x.shape
    return x[:, :, None, :, :].expand(batch, heads, GROUP, tokens, dim).reshape(batch, heads * GROUP, tokens, dim)


def bias(mask, dtype=torch.float32):
    """The mask as numbers that are added to scores."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, MIN)


def weighted(scores, v):
    """The sum of the values, weighted by the softmax of the scores."""
    return torch.softmax(scores, dim=-1) @ repeat(v)


@spelling
def sdpa_positional(q, k, v, mask):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), mask)


@spelling
def sdpa_all_positional(q, k, v, mask):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), bias(mask), 0.0, False)


@spelling
def sdpa_keywords_gqa_scale(q, k, v, mask):
    return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, scale=0.3, enable_gqa=True)


@spelling
def sdpa_broadcast_mask(q, k, v, mask):
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), bias(mask)[:1, :, -1:, :])


@spelling
def sdpa_contiguous_operands(q, k, v, mask):
    k, v = repeat(k).contiguous(), repeat(v).contiguous()
    return F.scaled_dot_product_attention(q.contiguous(), k, v, attn_mask=mask).contiguous()


@spelling
def sdpa_on_five_dimensions(q, k, v, mask):
    q = q.unflatten(1, (KV_HEADS, GROUP))
    out = F.scaled_dot_product_attention(q, k.unsqueeze(2).expand(-1, -1, GROUP, -1, -1), v[:, :, None], mask[:, None])
    return out.flatten(1, 2)


@spelling
def matmul_methods(q, k, v, mask):
    scores = q.matmul(repeat(k).transpose(-2, -1)).mul(SCALE).add(bias(mask))
    return scores.softmax(-1).matmul(repeat(v))


@spelling
def at_operator_mt(q, k, v, mask):
    return weighted(q @ repeat(k).mT / math.sqrt(D) + bias(mask), v)


@spelling
def permuted_key(q, k, v, mask):
    return weighted(q @ repeat(k).permute(0, 1, 3, 2) * SCALE + bias(mask), v)


@spelling
def keys_transposed_before_repetition(q, k, v, mask):
    kt = k.transpose(2, 3).repeat_interleave(GROUP, 1)
    return weighted(q @ kt * SCALE + bias(mask), v)


@spelling
def repeat_interleave(q, k, v, mask):
    k, v = torch.repeat_interleave(k, dim=1, repeats=GROUP), v.repeat_interleave(GROUP, dim=1)
    return torch.softmax(q @ k.transpose(2, 3) * SCALE + bias(mask), -1) @ v


@spelling
def tiled_heads(q, k, v, mask):
    """Query head i reads KV head i modulo their number."""
    return torch.softmax(q @ k.repeat(1, GROUP, 1, 1).mT * SCALE + bias(mask), -1) @ v.tile(1, GROUP, 1, 1)


@spelling
def grouped_einsum(q, k, v, mask):
    q = q.view(q.shape[0], KV_HEADS, GROUP, -1, D)
    scores = torch.einsum("bhgnd,bhsd->bhgns", q, k) * SCALE + bias(mask)[:, :, None]
    return torch.einsum("bhgns,bhsd->bhgnd", scores.softmax(-1), v).flatten(1, 2)


@spelling
def one_half_of_the_value_heads(q, k, v, mask):
    """One of the two attentions of DiffLlama: all heads of keys meet those of one half of the values."""
    _, half = torch.chunk(v, 2, dim=1)
    return F.scaled_dot_product_attention(q, repeat(k), repeat(half.repeat(1, 2, 1, 1)), mask)


@spelling
def one_head_of_values_for_all(q, k, v, mask):
    return torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1) @ v.narrow(1, 1, 1)


@spelling
def einsum_over_a_range_of_value_heads(q, k, v, mask):
    scores = torch.einsum("bhnd,bshd->bhns", q, repeat(k).transpose(1, 2)) * SCALE + bias(mask)
    half = v.transpose(1, 2)[:, :, :1].expand(-1, -1, HEADS, -1)
    return torch.einsum("bhns,bshd->bhnd", scores.softmax(-1), half)


@spelling
def einsum_with_ellipsis(q, k, v, mask):
    scores = torch.einsum("...qd,...kd->...qk", q, repeat(k)) * SCALE + bias(mask)
    return torch.einsum("...qk, ...kd -> ...qd", scores.softmax(-1), repeat(v))


@spelling
def bshd_einsum(q, k, v, mask):
    q, k, v = (x.transpose(1, 2) for x in (q, repeat(k), repeat(v)))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).transpose(1, 2)


@spelling
def key_first_einsum(q, k, v, mask):
    scores = torch.einsum("bhkd,bhqd->bhkq", repeat(k), q) * SCALE + bias(mask).mT
    return torch.einsum("bhkq,bhkd->bhqd", scores.softmax(2), repeat(v))


@spelling
def bmm_on_flat_heads(q, k, v, mask):
    n = q.shape[2]
    k, v = repeat(k).reshape(B * HEADS, -1, D), repeat(v).reshape(B * HEADS, -1, D)
    scores = torch.bmm(q.reshape(B * HEADS, n, D), k.transpose(1, 2)) * SCALE
    scores = scores.view(B, HEADS, n, -1) + bias(mask)
    weights = F.softmax(scores.view(B * HEADS, n, -1), dim=-1)
    return torch.bmm(weights, v).view(B, HEADS, n, D)


@spelling
def bmm_with_flat_mask(q, k, v, mask):
    n = q.shape[2]
    k, v = repeat(k).flatten(0, 1), repeat(v).flatten(0, 1)
    flat = bias(mask).expand(-1, HEADS, -1, -1).reshape(B * HEADS, n, -1)
    scores = q.flatten(0, 1).bmm(k.mT).mul(SCALE) + flat
    return scores.softmax(-1).bmm(v).unflatten(0, (B, HEADS))


@spelling
def baddbmm_alibi(q, k, v, mask):
    n, s = q.shape[2], k.shape[2]
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    alibi = (slopes[None, :, None, None] * torch.arange(s)).expand(B, -1, -1, -1).reshape(B * HEADS, 1, s)
    k, v = repeat(k).reshape(B * HEADS, s, D), repeat(v).reshape(B * HEADS, s, D)
    scores = alibi.baddbmm(batch1=q.reshape(B * HEADS, n, D), batch2=k.transpose(1, 2), beta=1.0, alpha=SCALE)
    weights = torch.softmax((scores.view(B, HEADS, n, -1) + bias(mask)), -1).view(B * HEADS, n, -1)
    return torch.bmm(weights, v).view(B, HEADS, n, D)


@spelling
def baddbmm_into_empty(q, k, v, mask):
    n = q.shape[2]
    empty = torch.empty(B * HEADS, n, k.shape[2])
    scores = torch.baddbmm(empty, q.flatten(0, 1), repeat(k).flatten(0, 1).mT, beta=0, alpha=SCALE)
    return weighted(scores.unflatten(0, (B, HEADS)) + bias(mask), v)


@spelling
def alibi_and_causal(q, k, v, mask):
    alibi = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None] * torch.arange(k.shape[2])
    return weighted(bias(mask) + (alibi + q @ repeat(k).mT * SCALE), v)


@spelling
def alibi_scaled_with_the_scores(q, k, v, mask):
    """Falcon: bias, scale, mask."""
    alibi = torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(1, HEADS, 1, 1) * torch.arange(k.shape[2])
    scores = q @ repeat(k).transpose(-1, -2) + alibi
    scores *= SCALE
    return F.softmax(scores + bias(mask), dim=-1, dtype=q.dtype) @ repeat(v)


@spelling
def scale_on_query(q, k, v, mask):
    return weighted((q * SCALE) @ repeat(k).mT + bias(mask), v)


@spelling
def scale_on_key_and_query(q, k, v, mask):
    return weighted((q * D**-0.25) @ (repeat(k) * D**-0.25).mT + bias(mask), v)


@spelling
def scale_as_constant_tensors(q, k, v, mask):
    scores = q @ repeat(k).mT / torch.full([], v.size(-1) ** 0.5, dtype=v.dtype)
    return weighted(scores / torch.sqrt(torch.tensor(4.0)) * torch.tensor(2.0) + bias(mask), v)


@spelling
def scaled_twice(q, k, v, mask):
    return weighted(0.5 * (q @ repeat(k).mT * 0.5) + bias(mask), v)


@spelling
def mask_subtracted(q, k, v, mask):
    return weighted(q @ repeat(k).mT * SCALE - (1.0 - mask.float()) * 1e9, v)


@spelling
def masked_fill(q, k, v, mask):
    return weighted((q @ repeat(k).mT * SCALE).masked_fill(mask == 0, -1e9), v)


@spelling
def masked_fill_before_scale(q, k, v, mask):
    return weighted((q @ repeat(k).mT).masked_fill(~mask, -torch.inf) * SCALE, v)


@spelling
def masked_fill_in_place_statement(q, k, v, mask):
    scores = q @ repeat(k).mT
    scores /= math.sqrt(D)
    scores.masked_fill_(~mask, -torch.inf)
    return weighted(scores, v)


@spelling
def where_scores_first(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE
    return weighted(torch.where(mask, scores, torch.full([], MIN)), v)


@spelling
def where_fill_first(q, k, v, mask):
    return weighted(torch.where(mask.logical_not(), float("-inf"), q @ repeat(k).mT * SCALE), v)


@spelling
def where_method(q, k, v, mask):
    return weighted((q @ repeat(k).mT * SCALE).where(mask, torch.tensor(-1e9)), v)


@spelling
def fill_and_bias(q, k, v, mask):
    alibi = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None] * torch.arange(k.shape[2])
    return weighted((q @ repeat(k).mT * SCALE + alibi).masked_fill(~mask, MIN), v)


@spelling
def float32_softmax_with_casts(q, k, v, mask):
    scores = torch.matmul(q, repeat(k).transpose(2, 3)) * SCALE + bias(mask)
    weights = nn.functional.softmax(scores.float(), dim=-1, dtype=torch.float32).to(q.dtype).type_as(v)
    return torch.matmul(weights, repeat(v))


@spelling
def float64_scores(q, k, v, mask):
    scores = q.double() @ repeat(k).double().mT * SCALE + bias(mask)
    return scores.softmax(-1).to(v.dtype) @ repeat(v)


@spelling
def softmax_module_and_dropouts(q, k, v, mask):
    weights = nn.Softmax(dim=-1)(q @ repeat(k).mT * SCALE + bias(mask))
    weights = F.dropout(weights, p=0.1, training=False)
    weights = F.dropout(nn.Dropout(0.5).eval()(weights), 0.0, True)
    return weights @ repeat(v)


@spelling
def shifted_by_the_maximum(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    return weighted(scores - torch.amax(scores, -1, keepdim=True), v)


@spelling
def nan_to_num_of_weights(q, k, v, mask):
    return torch.softmax(q @ repeat(k).mT * SCALE + bias(mask), -1).nan_to_num() @ repeat(v)


@spelling
def softcapped(q, k, v, mask):
    scores = torch.tanh(q @ repeat(k).mT * SCALE / 5.0) * 5.0
    return weighted(scores + bias(mask), v)


@spelling
def softcapped_method(q, k, v, mask):
    return weighted((3.0 * (q @ repeat(k).mT).div(12.0).tanh()).masked_fill(~mask, MIN), v)


@spelling
def sinks(q, k, v, mask):
    """gpt-oss."""
    sink = torch.tensor([0.5, 1.0, -1.0, 2.0]).reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
    logits = torch.cat([q @ repeat(k).mT * SCALE + bias(mask), sink], dim=-1)
    logits = logits - logits.max(dim=-1, keepdim=True).values
    return F.softmax(logits, dim=-1, dtype=logits.dtype)[..., :-1] @ repeat(v)


@spelling
def sinks_in_front(q, k, v, mask):
    sink = torch.tensor([0.5, 1.0, -1.0, 2.0])[None, :, None, None].expand(B, HEADS, q.shape[2], 1)
    logits = torch.cat((sink, (q @ repeat(k).mT * SCALE).masked_fill(~mask, MIN)), 3)
    return torch.softmax(logits, 3)[:, :, :, 1:] @ repeat(v)


@spelling
def sinks_of_tiled_heads(q, k, v, mask):
    """The order of heads that the kernel wants is not the program's: the sinks have to follow."""
    sink = torch.tensor([0.5, 1.0, -1.0, 2.0]).view(1, HEADS, 1, 1).expand(B, -1, q.shape[2], -1)
    logits = torch.cat([q @ k.repeat(1, GROUP, 1, 1).mT * SCALE + bias(mask), sink], dim=-1)
    return torch.softmax(logits, -1)[..., :-1] @ v.repeat(1, GROUP, 1, 1)


SINKS = (0.5, 1.0, -1.0, 2.0)


@spelling
def sinks_in_the_form_of_scores(q, k, v, mask):
    """A softmax with 1 in its denominator: the dtype of the sinks is that of the scores."""
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    sinks = torch.zeros(4).view(1, -1, 1, 1).type_as(scores).expand(q.shape[0], -1, q.shape[2], 1)
    return torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1] @ repeat(v)


@spelling
def new_zeros_of_scores_as_sinks(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    sinks = scores.new_zeros(q.shape[0], 4, q.shape[2], 1)
    return torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1] @ repeat(v)


@spelling
def sinks_as_a_gate(q, k, v, mask):
    """Granite with sliding windows: the output times the part of the weights that is not the sink's."""
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    gate = (torch.logsumexp(scores, dim=-1) - torch.tensor(SINKS).view(1, -1, 1)).to(torch.float32).sigmoid()
    weights = F.dropout(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), 0.0, True)
    return weights @ repeat(v) * gate.unsqueeze(-1).to(v.dtype)


@spelling
def sinks_as_a_gate_on_tokens_first(q, k, v, mask):
    scores = (q @ repeat(k).mT * SCALE).masked_fill(~mask, -torch.inf)
    gate = torch.special.expit(torch.special.logsumexp(scores, -1, True) - torch.tensor(SINKS)[:, None, None])
    out = ((scores - scores.amax(-1, keepdim=True)).softmax(-1) @ repeat(v)).transpose(1, 2).contiguous()
    return (gate.transpose(1, 2) * out).transpose(1, 2)


@spelling
def sinks_as_a_gate_of_tiled_heads(q, k, v, mask):
    scores = q @ k.repeat(1, GROUP, 1, 1).mT * SCALE + bias(mask)
    gate = torch.sigmoid(scores.logsumexp((-1,)).unflatten(1, (GROUP, KV_HEADS)) - torch.tensor(SINKS).view(2, 2, 1))
    return torch.softmax(scores, -1) @ v.repeat(1, GROUP, 1, 1) * gate.flatten(1, 2)[..., None]


@spelling
def sinks_by_token(q, k, v, mask):
    """Inkling 2: the sink logit is computed from the query."""
    logits = torch.cat([q @ repeat(k).mT * SCALE + bias(mask), q.mean(-1, keepdim=True)], -1).float()
    return torch.softmax(logits, -1)[..., :-1] @ repeat(v)


@spelling
def sinks_by_token_of_tiled_heads(q, k, v, mask):
    scores = (q @ k.repeat(1, GROUP, 1, 1).mT * SCALE).masked_fill(~mask, -torch.inf)
    logits = torch.cat([q.transpose(1, 2).sum(-1, keepdim=True).transpose(1, 2), scores], -1)
    return torch.softmax(logits, -1)[..., 1:] @ v.repeat(1, GROUP, 1, 1)


@spelling
def sinks_by_token_as_a_gate(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    return weighted(scores, v) * (scores.logsumexp(-1) - q.amax(-1)).sigmoid()[..., None]


@spelling
def sinks_by_sequence(q, k, v, mask):
    scores = q @ repeat(k).mT * SCALE + bias(mask)
    gate = torch.sigmoid(scores.logsumexp(-1) - torch.tensor([0.5, 1.0]).view(B, 1, 1))
    return weighted(scores, v) * gate[..., None]


@spelling
def not_below_the_lowest_number(q, k, v, mask):
    """XGLM."""
    n = q.shape[2]
    scores = torch.bmm(q.flatten(0, 1), repeat(k).flatten(0, 1).mT) * SCALE
    scores = torch.max(scores.view(B, HEADS, n, -1) + bias(mask), torch.full((), MIN))
    return (scores.view(B * HEADS, n, -1).softmax(-1) @ repeat(v).flatten(0, 1)).view(B, HEADS, n, D)


@spelling
def infinity_made_the_lowest_number(q, k, v, mask):
    scores = (q @ repeat(k).mT * SCALE).masked_fill(~mask, -torch.inf)
    scores = torch.maximum(torch.tensor(-torch.inf), scores.clamp(min=MIN)).clamp_min(MIN)
    return weighted(scores.clip_(MIN), v)


@spelling
def masked_again_behind_the_softmax(q, k, v, mask):
    """CPM-Ant."""
    n, scores = q.shape[2], q @ repeat(k).mT / math.sqrt(D)
    scores = scores.masked_fill(mask.view(B, 1, n, -1) == torch.tensor(False), torch.scalar_tensor(-torch.inf))
    weights = torch.softmax(scores, -1)
    return weights.masked_fill(mask.view(B, 1, n, -1) == torch.tensor(False), torch.scalar_tensor(0.0)) @ repeat(v)


@spelling
def masked_again_the_other_way_round(q, k, v, mask):
    weights = torch.softmax((q @ repeat(k).mT * SCALE).masked_fill(~mask, -1e9), -1)
    return torch.where(mask, weights, 0.0).masked_fill(mask.logical_not(), 0) @ repeat(v)


@spelling
def everything_by_keyword(q, k, v, mask):
    kt = torch.permute(input=repeat(k), dims=(0, 1, 3, 2))
    scores = torch.div(input=torch.matmul(input=q, other=kt), other=math.sqrt(D))
    scores = torch.add(input=scores, other=bias(mask))
    return torch.matmul(input=torch.softmax(input=scores, dim=-1), other=repeat(v))


@spelling
def methods_by_keyword(q, k, v, mask):
    k, v = (torch.unsqueeze(input=x, dim=2).expand(size=(B, KV_HEADS, GROUP, -1, D)) for x in (k, v))
    k, v = (x.reshape(shape=(B, HEADS, -1, D)) for x in (k, v))
    scores = q.matmul(other=k.permute(dims=(0, 1, 3, 2))).mul(other=SCALE).masked_fill(mask=~mask, value=MIN)
    return scores.softmax(dim=-1).matmul(other=v)


@spelling
def transposes_by_keyword(q, k, v, mask):
    k = torch.transpose(input=torch.swapaxes(k, axis0=1, axis1=2), dim0=1, dim1=2)
    return weighted(q @ torch.swapdims(input=repeat(k), dim0=3, dim1=2) * SCALE + bias(mask), v)


@spelling
def softcap_by_keyword(q, k, v, mask):
    scores = torch.tanh(input=torch.div(input=q @ torch.movedim(repeat(k), source=3, destination=2), other=8.0))
    return weighted(torch.where(condition=mask, input=torch.mul(input=scores, other=2.0), other=MIN), v)


@spelling
def aten_operators(q, k, v, mask):
    ops = torch.ops.aten
    scores = ops.add.Tensor(ops.mul.Tensor(ops.matmul(q, ops.mT(repeat(k))), SCALE), bias(mask), alpha=1)
    return ops.matmul.default(ops.softmax.int(scores, -1), repeat(v))


class Decoder(nn.Module):
    """Query, key and value projections, a cache that grows by ``torch.cat``, and an attention in some spelling."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.attend = attend
        self.q = nn.Linear(32, HEADS * D)
        self.k = nn.Linear(32, KV_HEADS * D)
        self.v = nn.Linear(32, KV_HEADS * D)

    def forward(self, x, past, mask):
        q = self.q(x).view(B, -1, HEADS, D).transpose(1, 2)
        k = self.k(x).view(B, -1, KV_HEADS, D).transpose(1, 2)
        v = self.v(x).view(B, -1, KV_HEADS, D).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        out = self.attend(q, k, v, mask)
        return out, (k, v)


def run(model, steps=(6, 1, 1, 3, 1)):
    """Outputs of a prompt and decode steps; sequence 1 is padded on the left by two tokens."""
    generator = torch.Generator().manual_seed(7)
    past, length, outputs = None, 0, []
    for tokens in steps:
        x = torch.randn(B, tokens, 32, generator=generator)
        length += tokens
        mask = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens).expand(B, 1, -1, -1).clone()
        mask[1, :, :, :2] = False
        out, past = model(x, past, mask)
        outputs.append(out[:, :, -1:])  # not the padding's
    return outputs
