"""Decoders that are not from transformers, each in the style of a program that people copy.

All have the interface ``step(tokens [B, N], position: int) -> logits [B, N, vocab]`` with their cache inside, and
``reset()``. They share their layers apart from the attention, so that only the way of caching differs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, WIDTH, HEADS, HEAD_DIM, MAX_TOKENS = 61, 64, 4, 16, 320


@torch.no_grad()
def run(model, prompt, steps: int) -> torch.Tensor:
    """Greedy decoding with the model's own loop: logits ``[B, steps, vocab]``."""
    model.reset()
    tokens, position, logits = prompt, 0, []
    for _ in range(steps):
        out = model.step(tokens, position)[:, -1]
        logits.append(out)
        position += tokens.shape[1]
        tokens = out.argmax(-1, keepdim=True)
    return torch.stack(logits, 1)


class Decoder(nn.Module):
    """Embedding, blocks of attention and MLP, and a head; the attention is the subclass's."""

    attention: type[nn.Module]

    def __init__(self, batch: int, layers: int = 2) -> None:
        super().__init__()
        self.batch = batch
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.place = nn.Embedding(MAX_TOKENS, WIDTH)
        self.layers = nn.ModuleList(self.attention(batch) for _ in range(layers))
        self.mlps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.25) if parameter.dim() > 1 else None

    def embedded(self, tokens, positions):
        return self.embed(tokens) + self.place(positions)

    def blocks(self, x, *args):
        for norm, layer, mlp in zip(self.norms, self.layers, self.mlps, strict=True):
            x = x + layer(norm(x), *args)
            x = x + F.gelu(mlp(x))
        return self.head(x)


# --- nanoGPT: fused qkv, a cache that is a list of tuples, grown by cat -----------------------------------------------


class NanoAttention(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, past):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(WIDTH, dim=2)
        k = k.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        q = q.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        v = v.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        if past is not None:
            k = torch.cat((past[0], k), dim=-2)
            v = torch.cat((past[1], v), dim=-2)
        present = (k, v)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        if T > 1:
            bias = torch.ones(T, k.size(2), device=x.device).tril(k.size(2) - T)
            att = att + bias.log()
        att = F.softmax(att, dim=-1)
        y = att @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)), present


class NanoGPT(Decoder):
    attention = NanoAttention

    def reset(self) -> None:
        self.pasts = None

    def forward(self, tokens, positions, pasts):
        x, presents = self.embedded(tokens, positions), []
        for index, (norm, layer, mlp) in enumerate(zip(self.norms, self.layers, self.mlps, strict=True)):
            y, present = layer(norm(x), None if pasts is None else pasts[index])
            presents.append(present)
            x = x + y
            x = x + F.gelu(mlp(x))
        return self.head(x), presents

    def step(self, tokens, position):
        positions = torch.arange(position, position + tokens.shape[1])
        logits, self.pasts = self(tokens, positions, self.pasts)
        return logits


# --- the same, but keys and values are kept as they come, [B, S, H, D], and transposed when they are read ------------


class LateTransposeAttention(NanoAttention):
    def forward(self, x, past):
        B, T, C = x.size()
        q, k, v = (t.view(B, T, HEADS, C // HEADS) for t in self.c_attn(x).split(WIDTH, dim=2))
        if past is not None:
            k = torch.cat((past[0], k), dim=1)
            v = torch.cat((past[1], v), dim=1)
        present = (k, v)
        S = k.size(1)
        mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T) if T > 1 else None
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C)), present


class LateTransposeGPT(NanoGPT):
    attention = LateTransposeAttention


# --- einsum all the way on [B, S, H, D], as in programs that came from JAX, with grouped heads -----------------------


class EinsumAttention(nn.Module):
    KV_HEADS = 2

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.wq = nn.Parameter(torch.empty(WIDTH, HEADS, HEAD_DIM))
        self.wk = nn.Parameter(torch.empty(WIDTH, self.KV_HEADS, HEAD_DIM))
        self.wv = nn.Parameter(torch.empty(WIDTH, self.KV_HEADS, HEAD_DIM))
        self.wo = nn.Parameter(torch.empty(HEADS, HEAD_DIM, WIDTH))

    def forward(self, x, past):
        q = torch.einsum("bsm,mhd->bshd", x, self.wq) * HEAD_DIM**-0.5
        k = torch.einsum("bsm,mhd->bshd", x, self.wk)
        v = torch.einsum("bsm,mhd->bshd", x, self.wv)
        if past is not None:
            k = torch.cat([past[0], k], axis=1)
            v = torch.cat([past[1], v], axis=1)
        B, T, S = x.shape[0], x.shape[1], k.shape[1]
        q = q.reshape(B, T, self.KV_HEADS, HEADS // self.KV_HEADS, HEAD_DIM)
        logits = torch.einsum("bthgd,bshd->bhgts", q, k)
        if T > 1:
            allowed = torch.arange(S)[None, :] <= torch.arange(S - T, S)[:, None]
            logits = torch.where(allowed, logits, -1e30)
        probs = torch.softmax(logits, dim=-1)
        out = torch.einsum("bhgts,bshd->bthgd", probs, v).reshape(B, T, HEADS, HEAD_DIM)
        return torch.einsum("bthd,hdm->btm", out, self.wo), (k, v)


class EinsumDecoder(NanoGPT):
    attention = EinsumAttention


# --- latent attention: a latent and a rotary key are cached, and projected to keys and values in every step ----------


class LatentAttention(nn.Module):
    RANK, NOPE, ROTARY, VALUE = 20, 24, 16, 12

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.wq = nn.Linear(WIDTH, HEADS * (self.NOPE + self.ROTARY), bias=False)
        self.down = nn.Linear(WIDTH, self.RANK + self.ROTARY, bias=False)
        self.norm = nn.LayerNorm(self.RANK)
        self.up_keys = nn.Linear(self.RANK, HEADS * self.NOPE, bias=False)
        self.up_values = nn.Linear(self.RANK, HEADS * self.VALUE, bias=False)
        self.wo = nn.Linear(HEADS * self.VALUE, WIDTH, bias=False)

    def forward(self, x, past):
        B, T, _ = x.shape
        q = self.wq(x).view(B, T, HEADS, -1).transpose(1, 2)
        latent, rotary = self.down(x).unsqueeze(1).split([self.RANK, self.ROTARY], dim=-1)
        latent = self.norm(latent)
        if past is not None:
            latent = torch.cat((past[0], latent), dim=2)
            rotary = torch.cat((past[1], rotary), dim=2)
        S = latent.size(2)
        keys = self.up_keys(latent.squeeze(1)).view(B, -1, HEADS, self.NOPE).transpose(1, 2)
        values = self.up_values(latent.squeeze(1)).view(B, -1, HEADS, self.VALUE).transpose(1, 2)
        keys = torch.cat((rotary.expand(-1, HEADS, -1, -1), keys), dim=-1)
        mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T) if T > 1 else None
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.wo(y.transpose(1, 2).reshape(B, T, -1)), (latent, rotary)


class LatentDecoder(NanoGPT):
    attention = LatentAttention


# --- the Llama reference: a buffer [B, S, H, D], written and read with slices -----------------------------------------


class SliceAttention(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.cache_k = torch.zeros(batch, MAX_TOKENS, HEADS, HEAD_DIM)
        self.cache_v = torch.zeros(batch, MAX_TOKENS, HEADS, HEAD_DIM)

    def forward(self, x, start_pos: int, mask):
        bsz, seqlen, _ = x.shape
        xq, xk, xv = (w(x).view(bsz, seqlen, HEADS, HEAD_DIM) for w in (self.wq, self.wk, self.wv))
        self.cache_k[:bsz, start_pos : start_pos + seqlen] = xk
        self.cache_v[:bsz, start_pos : start_pos + seqlen] = xv
        keys = self.cache_k[:bsz, : start_pos + seqlen]
        values = self.cache_v[:bsz, : start_pos + seqlen]
        xq, keys, values = xq.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        scores = torch.matmul(xq, keys.transpose(2, 3)) / math.sqrt(HEAD_DIM)
        if mask is not None:
            scores = scores + mask
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, values)
        return self.wo(output.transpose(1, 2).contiguous().view(bsz, seqlen, -1))


class LlamaReference(Decoder):
    attention = SliceAttention

    def reset(self) -> None:
        pass  # the buffers are overwritten from the front

    def forward(self, tokens, start_pos: int):
        seqlen = tokens.shape[1]
        positions = torch.arange(start_pos, start_pos + seqlen)
        mask = None
        if seqlen > 1:
            mask = torch.full((seqlen, seqlen), float("-inf")).triu(1)
            mask = torch.hstack([torch.zeros(seqlen, start_pos), mask])
        return self.blocks(self.embedded(tokens, positions), start_pos, mask)

    def step(self, tokens, position):
        return self(tokens, position)


# --- gpt-fast: a KVCache module with registered buffers, index_put at input_pos ---------------------------------------


class KVCache(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        shape = (batch, HEADS, MAX_TOKENS, HEAD_DIM)
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def update(self, input_pos, k_val, v_val):
        k_out, v_out = self.k_cache, self.v_cache
        k_out[:, :, input_pos] = k_val
        v_out[:, :, input_pos] = v_val
        return k_out, v_out


class FastAttention(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.wqkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.wo = nn.Linear(WIDTH, WIDTH, bias=False)
        self.kv_cache = KVCache(batch)

    def forward(self, x, mask, input_pos):
        bsz, seqlen, _ = x.shape
        q, k, v = self.wqkv(x).split([WIDTH, WIDTH, WIDTH], dim=-1)
        q, k, v = (t.view(bsz, seqlen, HEADS, HEAD_DIM).transpose(1, 2) for t in (q, k, v))
        k, v = self.kv_cache.update(input_pos, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0)
        return self.wo(y.transpose(1, 2).contiguous().view(bsz, seqlen, WIDTH))


class GPTFast(Decoder):
    attention = FastAttention

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.register_buffer("causal_mask", torch.ones(MAX_TOKENS, MAX_TOKENS, dtype=torch.bool).tril())

    def reset(self) -> None:
        pass

    def forward(self, tokens, input_pos):
        mask = self.causal_mask[None, None, input_pos]
        return self.blocks(self.embedded(tokens, input_pos), mask, input_pos)

    def step(self, tokens, position):
        return self(tokens, torch.arange(position, position + tokens.shape[1]))


# --- torchtune: the cache counts its tokens itself, in a buffer of positions that moves on with each call -------------


class MovingKVCache(KVCache):
    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.register_buffer("cache_pos", torch.arange(MAX_TOKENS), persistent=False)

    def reset(self):
        self.k_cache.zero_()
        self.v_cache.zero_()
        self.cache_pos -= self.cache_pos[0].item()

    def update(self, input_pos, k_val, v_val):
        seq_len = k_val.shape[2]
        assert (self.cache_pos[0] + seq_len) <= self.k_cache.shape[2]
        k_out, v_out = super().update(self.cache_pos[:seq_len], k_val, v_val)
        self.cache_pos.add_(seq_len)
        return k_out, v_out


class MovingAttention(FastAttention):
    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.kv_cache = MovingKVCache(batch)


class TuneGPT(GPTFast):
    attention = MovingAttention

    def reset(self) -> None:
        for layer in self.layers:
            layer.kv_cache.reset()

    def forward(self, tokens, input_pos):
        mask = self.causal_mask[None, input_pos][:, None]
        return self.blocks(self.embedded(tokens, input_pos), mask, input_pos)


# --- litgpt: the rows of the batch are written at a tensor of positions, and read up to an integer beside it ----------


class RowAttention(FastAttention):
    def forward(self, x, mask, input_pos, end: int):
        bsz, seqlen, _ = x.shape
        q, k, v = self.wqkv(x).split([WIDTH, WIDTH, WIDTH], dim=-1)
        q, k, v = (t.view(bsz, seqlen, HEADS, HEAD_DIM).transpose(1, 2) for t in (q, k, v))
        k = self.kv_cache.k_cache[:bsz, ...].index_copy_(-2, input_pos, k)
        v = self.kv_cache.v_cache[:bsz, ...].index_copy_(-2, input_pos, v)
        y = F.scaled_dot_product_attention(q, k[..., :end, :], v[..., :end, :], attn_mask=mask)
        return self.wo(y.transpose(1, 2).contiguous().view(bsz, seqlen, WIDTH))


class RowGPT(GPTFast):
    attention = RowAttention

    def forward(self, tokens, input_pos, end: int):
        mask = self.causal_mask[None, None].index_select(2, input_pos)[..., :end]
        return self.blocks(self.embedded(tokens, input_pos), mask, input_pos, end)

    def step(self, tokens, position):
        end = position + tokens.shape[1]
        return self(tokens, torch.arange(position, end), end)


# --- x-transformers: the cache behind its memories is kept, of which there are none; values are returned, too ---------


class MemoryAttention(NanoAttention):
    def forward(self, x, past):
        B, T, C = x.size()
        q, k, v = (t.view(B, T, HEADS, C // HEADS).transpose(1, 2) for t in self.c_attn(x).split(WIDTH, dim=2))
        fresh = v
        if past is not None:
            k, v = torch.cat((past[0], k), dim=-2), torch.cat((past[1], v), dim=-2)
        kept = (k[..., 0:, :], v[..., 0:, :], fresh)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C)), kept


class MemoryGPT(NanoGPT):
    attention = MemoryAttention
