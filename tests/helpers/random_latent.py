"""Latent attention (MLA) in random programs: what is cached are a latent and a rotary key, shared by all heads.

The keys and values of all heads are computed from both in every step, in one of several spellings (``Program.latent``).
The latent stands in the place of keys, the rotary key in that of values; neither has heads, or both have one head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

#: Spellings of how keys and values are computed, see `computed`.
LATENT_FORMS = ("joint", "apart", "written", "assigned", "absorbed")


def parameters(program, width: int, linear) -> nn.ParameterDict:
    """The weights of one layer; ``linear(rows, columns)`` makes a random one."""
    p = program
    nope, rotary, rank, value = sizes(p)
    return nn.ParameterDict(
        {
            "q": linear(p.heads * (nope + rotary), width),
            "down": linear(rank + rotary, width),
            "up_keys": linear(p.heads * nope, rank),
            "up_values": linear(p.heads * value, rank),
            "out": linear(width, p.heads * value),
        }
    )


def sizes(program) -> tuple[int, int, int, int]:
    """Channels: of a head's own key, of the rotary key, of the latent, of a head's value."""
    return 8, 16, program.head_dim, 12


def projected(program, w, x, rotate):
    """Query ``[B, N, H, D]``, latent and rotary key ``[B, N, R]``. ``rotate`` turns the last two dimensions' tokens."""
    nope, rotary, rank, _ = sizes(program)
    batch, tokens, _ = x.shape
    q = F.linear(x, w["q"]).view(batch, tokens, program.heads, nope + rotary)
    latent, key = F.linear(x, w["down"]).split([rank, rotary], dim=-1)
    if program.rotary:
        q = torch.cat([q[..., :nope], rotate(q[..., nope:])], dim=-1)
        key = rotate(key[:, :, None])[:, :, 0]
    return q, latent, key


def computed(program, w, latent, rotary):
    """Keys and values ``[B, H, S, D]`` of a latent and a rotary key ``[B, S, R]``."""
    p = program
    nope, width, _, value = sizes(p)
    batch, tokens, _ = latent.shape
    if p.latent == "joint":
        weight = torch.cat([w["up_keys"].view(p.heads, nope, -1), w["up_values"].view(p.heads, value, -1)], 1)
        up = F.linear(latent, weight.flatten(0, 1)).view(batch, tokens, p.heads, nope + value).transpose(1, 2)
        own, values = up.split([nope, value], dim=-1)
    else:
        own = F.linear(latent, w["up_keys"]).view(batch, tokens, p.heads, nope).transpose(1, 2)
        values = F.linear(latent, w["up_values"]).unflatten(-1, (p.heads, value)).transpose(1, 2)
    shared = rotary.unsqueeze(1)
    if p.latent == "written":
        keys = own.new_empty(batch, p.heads, tokens, nope + width)
        keys[..., :nope].copy_(own)
        keys[..., nope:].copy_(shared)
    elif p.latent == "assigned":
        keys = own.new_zeros(batch, p.heads, tokens, nope + width)
        keys[:, :, :, nope:] = shared
        keys[:, :, :, :nope] = own
    else:
        keys = torch.cat([own, shared.expand(batch, p.heads, tokens, width)], dim=-1)
    return keys, values


def attended(program, w, q, latent, rotary, seen, count):
    """Attention ``[B, N, W]`` of a query ``[B, N, H, D]`` to what was cached, ``[B, S, R]``."""
    p = program
    nope, width, _, value = sizes(p)
    batch, tokens = q.shape[:2]
    q, scale = q.transpose(1, 2), 1.0 / math.sqrt(nope + width)
    mask = seen
    if seen is not None and p.mask != "bool":
        mask = torch.zeros(seen.shape).masked_fill(~seen, p.fill)
    if p.latent == "absorbed":  # as serving programs do: nothing is computed of the cache
        up = w["up_keys"].view(p.heads, nope, -1)
        scores = torch.einsum("bhnd,hdr->bhnr", q[..., :nope], up) @ latent[:, None].transpose(2, 3)
        scores = (scores + q[..., nope:] @ rotary[:, None].mT) * scale
        out = softmax(scores, mask) @ latent[:, None]
        out = torch.einsum("bhnr,hvr->bhnv", out, w["up_values"].view(p.heads, value, -1))
    else:
        keys, values = computed(p, w, latent, rotary)
        if p.spelling == "sdpa":
            causal = p.mask == "flag" and tokens == count
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)
        elif p.spelling.startswith("einsum"):
            scores = torch.einsum("bhnd,bhsd->bhns", q, keys) * scale
            out = torch.einsum("bhns,bhsd->bhnd", softmax(scores, mask), values)
        else:
            out = softmax(torch.matmul(q * scale, keys.transpose(2, 3)), mask) @ values
    return F.linear(out.transpose(1, 2).reshape(batch, tokens, p.heads * value), w["out"])


def softmax(scores, mask):
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -1e9)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)
