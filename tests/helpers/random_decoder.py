"""A small decoder as a :class:`Program` describes it: its spelling of attention, its form of cache, its tricks.

The decoder is plain PyTorch, as a user would write it, except that it chooses between spellings as it goes. It makes
one pass over the prompt and then steps of a few tokens; :meth:`RandomDecoder.forward` is what is compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import random_latent

MIN = torch.finfo(torch.float32).min
WIDTH = 24


#: Tricks of buffers that are those of grown caches.
_EFFECTS = (
    "two_readers",
    "keys_mean",
    "values_feature",
    "return_scaled",
    "return_transposed",
    "crossed",
    "view_changed",
    "view_cleared",
)


@dataclasses.dataclass(frozen=True)
class Step:
    """New tokens for the decoder, and what happens to the cache before they come.

    Attributes:
        tokens: how many.
        action: what is done to the cache, ``none`` for nothing; see ``random_programs.py``.
        amount: a number that the action may want, such as how many tokens it crops.
    """

    tokens: int
    action: str = "none"
    amount: int = 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A decoder and what is done with it. The defaults are the plainest program there is."""

    seed: int
    spelling: str = "sdpa"
    cache: str = "tuple"
    trick: str = "none"
    batch: int = 2
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 16
    layers: int = 1
    scale: str = "default"
    mask: str = "add"
    mask_from: str = "input"
    fill: float = MIN
    banded: bool = False
    softmax: str = "function"
    softcap: bool = False
    dropout: bool = False
    layout: str = "BHSD"
    cache_layout: str = "BHSD"
    fused: bool = False
    repeat: str = "expand"
    rotary: bool = False
    qk_norm: bool = False
    write: str = "slice"
    read: str = "slice"
    held: str = "attribute"
    position: str = "int"
    padding: int = 0
    windows: tuple[int, int] = (32, 96)
    window: int = 0
    latent: str = "none"
    cut: str = "none"
    keywords: bool = False
    wrapper: str = "none"
    greedy: bool = False
    steps: tuple[Step, ...] = (Step(5), Step(1), Step(1))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is unusual about the program, for counts."""
        found = {
            "window": self.window,
            "latent": self.latent != "none",
            "odd head_dim": self.head_dim not in (8, 16, 32),
            "slices": self.cut != "none",
            "keywords": self.keywords,
            "wrapper": self.wrapper != "none",
            "padding": self.padding,
            "buffers": self.buffers,
            "a trick": self.trick != "none",
        }
        return tuple(name for name, applies in found.items() if applies) or ("plain",)

    @property
    def buffers(self) -> bool:
        """Whether the cache is a pair of preallocated buffers."""
        return self.cache in ("static", "typed")

    @property
    def max_tokens(self) -> int:
        return 40 + sum(step.tokens for step in self.steps)

    @property
    def ordinary(self) -> bool:
        """Whether nothing about the program should keep it from being rewritten."""
        return (
            self.trick in ("none", "two_readers", "shared_layer", "duplicated")
            and self.mask != "soft_fill"
            and self.head_dim % 16 == 0
            and (self.window, self.latent, self.cut) == (0, "none", "none")
            and not any(step.action in ("swap_sides", "gap") for step in self.steps)
            and (self.cache_layout == "BHSD" or self.cache != "typed")
            and not (self.buffers and self.read == "whole" and self.mask == "none")
        )

    def __str__(self) -> str:
        plain = Program(self.seed)
        words = [f"seed={self.seed}", self.spelling, self.cache, self.trick]
        for field in dataclasses.fields(self)[4:-1]:
            value = getattr(self, field.name)
            if value != getattr(plain, field.name):
                words.append(f"{field.name}={value}".replace(" ", ""))
        steps = [f"{s.tokens}" if s.action == "none" else f"{s.action}({s.amount})+{s.tokens}" for s in self.steps]
        return " ".join([*words, "steps=" + ",".join(steps)])


@dataclasses.dataclass
class LayerCache:
    """A cache as an object with attributes."""

    keys: Any
    values: Any


def pack(form: str, keys: Any, values: Any) -> Any:
    """Keys and values as the program keeps them."""
    if form == "list":
        return [keys, values]
    if form == "dict":
        return {"keys": keys, "values": values}
    if form == "dataclass":
        return LayerCache(keys, values)
    return (keys, values)


def unpack(form: str, cache: Any) -> tuple[Any, Any]:
    if form == "dict":
        return cache["keys"], cache["values"]
    if form == "dataclass":
        return cache.keys, cache.values
    return cache[0], cache[1]


# --- wrappers around a decoder, and slices ----------------------------------------------------------------------------


class Wrapper(nn.Module):
    """Hands everything on to what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([inner])

    def forward(self, *args, **kwargs):
        return self.parts[0](*args, **kwargs)


class Scaled(nn.Module):
    """A model with another one in it, whose result it computes with."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.decoder = inner

    def forward(self, x, caches, positions, start, seen):
        out, made, extras = self.decoder(x, caches, positions=positions, start=start, seen=seen)
        return out * 0.5 + x, made, extras


def _called(decoder, *args):
    return decoder(*args)


def wrapped(decoder: nn.Module, how: str):
    """What a program calls in a decoder's place."""
    if how == "module":
        return Wrapper(decoder)
    if how == "nested":
        return Wrapper(Scaled(Wrapper(decoder)))
    return functools.partial(_called, decoder) if how == "partial" else decoder


#: Slices that take everything, or all up to a number of tokens that is all there are.
CUTS = ("dots", "tokens", "from_zero", "channels", "heads", "counted", "narrow", "past", "past_dots")


def cut(x, how, dim, end=None):
    """A slice of ``x``, whose tokens are along ``dim``, spelled in one way or another."""
    count = x.shape[dim] if end is None else end
    if how in ("dots", "past_dots"):
        return x[..., :count, :] if dim == 2 else x[..., :count, :, :]
    if how == "from_zero":
        return x[..., 0:, :] if dim == 2 else x[:, 0:, ...]
    if how == "channels":
        return x[..., : x.shape[-1]]
    if how == "heads":
        return x[:, 0 : x.shape[1]] if dim == 2 else x[:, :, 0 : x.shape[2]]
    if how == "narrow":
        return x.narrow(dim, 0, count if end is None else min(end, x.shape[dim]))
    return x[:, :, :count] if dim == 2 else x[:, :count]


def rotate(x, positions, token_dim):
    """Rotary embedding of ``x``, whose tokens are along ``token_dim`` (1 or 2)."""
    half = x.shape[-1] // 2
    angles = positions[:, None].float() * torch.exp(-torch.arange(half, device=x.device) / half * 3.0)
    if token_dim == 1:
        angles = angles[:, None]
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def forget_behind(buffer, end):
    """What a write that ends at ``end`` does to the rest of a buffer ``[B, H, S, D]`` that is made by `empty_cache`."""
    buffer[:, :, end:] = 0


def rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class RandomDecoder(nn.Module):
    """The decoder of a program.

    Its caches are given to it and returned, except for buffers of ``held="attribute"``, which are its own.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.p = p = program
        generator = torch.Generator().manual_seed(p.seed)

        def linear(rows, columns):
            return nn.Parameter(torch.randn(rows, columns, generator=generator) / math.sqrt(columns), False)

        sizes = [n * p.head_dim for n in (p.heads, p.kv_heads, p.kv_heads)]
        if p.fused:
            self.qkv = nn.ParameterList(linear(sum(sizes), WIDTH) for _ in range(p.layers))
        else:
            self.q, self.k, self.v = (nn.ParameterList(linear(s, WIDTH) for _ in range(p.layers)) for s in sizes)
        self.q2 = nn.ParameterList(linear(sizes[0], WIDTH) for _ in range(p.layers))
        self.out = nn.ParameterList(linear(WIDTH, sizes[0]) for _ in range(p.layers))
        self.features = nn.ParameterList(linear(WIDTH, p.head_dim) for _ in range(p.layers))
        self.slopes = nn.Parameter(-(2.0 ** -torch.arange(1.0, p.heads + 1)), False)
        self.vocabulary = linear(29, WIDTH)
        if p.latent != "none":
            self.mla = nn.ModuleList(random_latent.parameters(p, WIDTH, linear) for _ in range(p.layers))
        self.buffers_ = None  # pairs of buffers, where they are the decoder's own
        self.forgets = False  # whether a write to a dense buffer discards what lies behind it, see `Runner.forgets`

    # --- what is compiled ---------------------------------------------------------------------------------------

    def forward(self, x, caches, positions, start, seen):
        """One pass over ``x [B, N, W]``.

        Args:
            caches: the caches of the layers, or None.
            positions: ``[N]``, or None where ``start`` is given.
            start: the position of the first token.
            seen: ``[N, S]`` or ``[B, 1, N, S]`` boolean, or None.

        Returns:
            ``x``, the caches, and what else the program returns.
        """
        if positions is None:
            positions = torch.arange(start, start + x.shape[1])
        made, extras = [], []
        for layer in range(self.p.layers):
            source = layer
            if self.p.trick == "shared_layer":
                source = 0
            if self.p.buffers:
                cache = self.buffers_[source] if self.p.held == "attribute" else caches[source]
                y, cache, extra = self.buffered(layer, rms(x), cache, positions, start, seen)
            else:
                fresh = self.p.trick == "shared_layer" and layer > 0
                cache = made[0] if fresh else None if caches is None else caches[layer]
                grown = self.grown if self.p.latent == "none" else self.latent
                y, cache, extra = grown(layer, rms(x), cache, positions, start, seen, fresh)
            made.append(cache)
            extras += extra
            x = x + y
        return x, made, extras

    def projected(self, layer, x, positions):
        """Query in ``layout``, key and value in ``cache_layout``."""
        p, (batch, tokens, _) = self.p, x.shape
        if p.fused:
            sizes = [n * p.head_dim for n in (p.heads, p.kv_heads, p.kv_heads)]
            q, k, v = F.linear(x, self.qkv[layer]).split(sizes, dim=-1)
        else:
            q, k, v = (F.linear(x, w[layer]) for w in (self.q, self.k, self.v))
        q = q.view(batch, tokens, p.heads, p.head_dim)
        k = k.view(batch, tokens, p.kv_heads, p.head_dim)
        v = v.view(batch, tokens, p.kv_heads, p.head_dim)
        if p.qk_norm:
            q, k = rms(q), rms(k)
        if p.rotary and p.trick != "late_rotary":
            q, k = rotate(q, positions, 1), rotate(k, positions, 1)
        elif p.rotary:
            q = rotate(q, positions, 1)
        if p.layout == "BHSD":
            q = q.transpose(dim0=1, dim1=2) if p.keywords else q.transpose(1, 2)
        if p.cache_layout == "BHSD" and p.keywords:
            k, v = k.transpose(dim1=2, dim0=1), v.permute(dims=(0, 2, 1, 3))
        elif p.cache_layout == "BHSD":
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        return q, k, v

    @property
    def token_dim(self) -> int:
        return 2 if self.p.cache_layout == "BHSD" else 1

    # --- caches that grow ---------------------------------------------------------------------------------------

    def grown(self, layer, x, cache, positions, start, seen, shared):
        p, dim, trick, extras = self.p, self.token_dim, self.p.trick, []
        q, k, v = self.projected(layer, x, positions)
        if shared:
            keys, values = unpack(p.cache, cache)
            y, _ = self.attend(layer, q, keys, values, positions, seen)
            return y, cache, extras
        past_k = past_v = None
        if cache is not None:
            past_k, past_v = unpack(p.cache, cache)
        keys, values, kept = self.append(past_k, past_v, k, v, extras)
        read_k, read_v = keys, values
        if p.cut not in ("none", "past", "past_dots"):
            end = start + x.shape[1] if p.cut == "counted" and start is not None else None
            read_k, read_v = cut(keys, p.cut, dim, end), cut(values, p.cut, dim, end)
        if p.window:
            kept = self.last(*kept)
        if trick == "values_from_keys":
            read_v = keys * 2.0 + 1.0
        elif trick == "values_are_keys":
            read_v = keys
        elif trick == "past_only" and past_k is not None:
            read_k, read_v = past_k, past_v
        elif trick == "window_read":
            read_k, read_v = (t[:, :, -8:] if dim == 2 else t[:, -8:] for t in (keys, values))
        elif trick == "late_rotary":
            read_k = rotate(keys, torch.arange(keys.shape[dim]), dim)
        elif trick == "late_norm":
            read_k = rms(keys)
        elif trick == "ignore_cache":
            read_k, read_v = k, v
        elif trick == "values_longer":
            read_k, read_v = (t[:, :, 1:] if dim == 2 else t[:, 1:] for t in (keys, values))
            read_v = torch.cat([read_v, read_v.narrow(dim, 0, 1)], dim).narrow(dim, 1, read_k.shape[dim])
        elif trick == "heads_rolled":
            read_k = keys.roll(1, 3 - dim)
        y, weights = self.attend(layer, q, read_k, read_v, positions, seen)
        if trick == "past_and_all" and past_k is not None:
            y = y + self.attend(layer, q, past_k, past_v, positions, None)[0]
        kept = self.side_effects(layer, x, y, keys, values, weights, positions, seen, kept, extras)
        return kept[0], pack(p.cache, kept[1], kept[2]), extras

    def last(self, *full):
        """What a window keeps, so that the next token sees as many as there are in it."""
        dim, keep = self.token_dim, self.p.window - 1
        if self.p.keywords:
            return tuple(t[..., -keep:, :] if dim == 2 else t[:, -keep:, ...] for t in full)
        return tuple(t[:, :, -keep:] if dim == 2 else t[:, -keep:] for t in full)

    def latent(self, layer, x, cache, positions, start, seen, shared):
        """As `grown`, for a cache of a latent and a rotary key: ``[B, 1, S, R]``, ``[B, S, 1, R]`` or ``[B, S, R]``."""
        p, dim = self.p, self.token_dim
        head = {"BHSD": 1, "BSHD": 2}.get(p.cache_layout)
        w = self.mla[layer]
        q, latent, rotary = random_latent.projected(p, w, x, lambda t: rotate(t, positions, 1))
        if head is not None:
            latent, rotary = latent.unsqueeze(head), rotary.unsqueeze(dim=head)
        if shared:
            latent, rotary = unpack(p.cache, cache)
        elif cache is not None:
            past = unpack(p.cache, cache)
            latent, rotary = (self.joined(old, new) for old, new in zip(past, (latent, rotary), strict=True))
        kept = self.last(latent, rotary) if p.window else (latent, rotary)
        flat = (t if head is None else t.squeeze(head) for t in (latent, rotary))
        count = latent.shape[dim]
        y = random_latent.attended(p, w, q, *flat, self.seen(seen, count, positions), count)
        return y, cache if shared else pack(p.cache, *kept), []

    def joined(self, past, new):
        """A past cache with new tokens behind it."""
        p, dim = self.p, self.token_dim
        if p.cut in ("past", "past_dots"):
            past = cut(past, p.cut, dim)
        return torch.cat(tensors=(past, new), dim=dim) if p.keywords else torch.cat([past, new], dim=dim)

    def append(self, past_k, past_v, k, v, extras):
        """Keys and values to read, and the pair to keep."""
        p, dim, trick = self.p, self.token_dim, self.p.trick
        if past_k is None:
            if p.cache == "empty":
                k, v = torch.cat([torch.tensor([]), k], dim), torch.cat([torch.tensor([]), v], dim)
            return k, v, (k, v)
        if trick == "scaled_past":
            past_k, past_v = past_k * 0.9, past_v * 0.9
        elif trick == "cloned_past":
            past_k, past_v = past_k.clone(), past_v.clone()
        elif trick == "contiguous_past":
            past_k, past_v = past_k.contiguous(), past_v.contiguous()
        elif trick == "inplace_past":
            past_k.mul_(0.9)
        elif trick == "graph_crop":
            past_k, past_v = (t[:, :, :-1] if dim == 2 else t[:, :-1] for t in (past_k, past_v))
        elif trick == "graph_reorder":
            order = torch.arange(p.batch - 1, -1, -1)
            past_k, past_v = past_k.index_select(0, order), past_v.index_select(0, order)
        elif trick == "mixed_pasts":
            past_k, past_v = past_v, past_k
        if trick == "prepend":
            keys, values = torch.cat([k, past_k], dim), torch.cat([v, past_v], dim)
        elif trick == "cat_three":
            keys, values = torch.cat([past_k, k, k * 0.5], dim), torch.cat([past_v, v, v * 0.5], dim)
        elif trick == "cat_of_cat":
            keys, values = (torch.cat([torch.cat([a, b], dim), b * 0.5], dim) for a, b in ((past_k, k), (past_v, v)))
        elif trick == "append_itself":
            keys, values = torch.cat([past_k, past_k], dim), torch.cat([past_v, past_v], dim)
        elif p.keywords or p.cut != "none":
            keys, values = self.joined(past_k, k), self.joined(past_v, v)
        else:
            keys, values = torch.cat([past_k, k], dim=dim), torch.cat((past_v, v), dim=dim - 4)
        if trick == "append_twice":
            extras.append(torch.cat([past_k, k * 0.5], dim).mean(dim))
        elif trick == "append_both":
            keys2, values2 = torch.cat([past_k, k * 0.5], dim), torch.cat([past_v, v * 0.5], dim)
            extras += [keys2, values2]
        elif trick == "inplace_keys":
            keys.mul_(0.99)
        return keys, values, (keys, values)

    def side_effects(self, layer, x, y, keys, values, weights, positions, seen, kept, extras):
        """What else a program does with the keys: the output, and what is kept of keys and values."""
        p, dim, trick = self.p, self.token_dim, self.p.trick
        kept_k, kept_v = kept
        q2 = F.linear(x, self.q2[layer]).view(*x.shape[:2], p.heads, p.head_dim)
        q2 = q2.transpose(1, 2) if p.layout == "BHSD" else q2
        if trick == "two_readers":
            y = y + self.attend(layer, q2, keys, values, positions, seen)[0]
        elif trick == "crossed":
            y = y + self.attend(layer, q2, values, keys, positions, seen)[0]
        elif trick == "view_changed":
            (keys if len(extras) % 2 else keys.transpose(1, 2)).mul_(0.5)
        elif trick == "view_cleared":
            keys[:, 0].zero_()
        elif trick == "keys_mean":
            y = y + F.linear(keys.mean(dim=dim).mean(dim=1), self.features[layer])[:, None]
        elif trick == "values_feature":
            y = y + F.linear(values.amax(dim=(1, 2)), self.features[layer])[:, None]
        elif trick == "return_scaled":
            extras.append(keys * 2)
        elif trick == "return_transposed":
            extras.append(keys.transpose(1, 2))
        elif trick == "return_last":
            extras.append(values[:, -1:])
        elif trick == "return_weights":
            extras.append(weights)
        elif trick == "duplicated":
            extras += [keys, values]
        elif trick == "keep_scaled":
            kept_k = keys * 0.5
        elif trick == "keep_window":
            kept_k, kept_v = (t[:, :, -6:] if dim == 2 else t[:, -6:] for t in kept)
        elif trick == "keep_swapped":
            kept_k, kept_v = kept_v, kept_k
        elif trick == "keep_same":
            kept_v = kept_k
        elif trick == "keep_cloned":
            kept_k, kept_v = kept_k.clone(), kept_v.clone()
        elif trick == "late_inplace":
            kept_k.add_(0.25)
        elif trick == "branch_on_length":
            y = y * 2 if keys.shape[dim] > 9 else y
        return y, kept_k, kept_v

    # --- preallocated buffers -----------------------------------------------------------------------------------

    def store(self, buffer, new, positions, start):
        """Write ``new`` the way the program writes."""
        p, dim = self.p, self.token_dim
        end = None if start is None else start + new.shape[dim]
        if p.write == "slice" and dim == 2:
            buffer[:, :, start:end] = new
        elif p.write == "slice":
            buffer[: p.batch, start:end] = new
        elif p.write == "slice_copy":
            (buffer[:, :, start:end] if dim == 2 else buffer[:, start:end]).copy_(new)
        elif p.write == "narrow_copy":
            buffer.narrow(dim, start, new.shape[dim]).copy_(new)
        elif p.write == "index_copy" and p.keywords:
            buffer.index_copy_(dim=dim, index=positions, source=new)
        elif p.write == "index_copy":
            buffer.index_copy_(dim, positions, new)
        elif p.write == "setitem" and dim == 2:
            buffer[:, :, positions] = new
        elif p.write == "setitem":
            buffer[:, positions] = new
        elif p.write == "index_put":
            torch.ops.aten.index_put_(buffer, [None] * dim + [positions], new)
        else:
            raise ValueError(p.write)
        if self.forgets:
            forget_behind(buffer, int(positions.max()) + 1)

    def buffered(self, layer, x, cache, positions, start, seen):
        p, dim, trick, extras = self.p, self.token_dim, self.p.trick, []
        q, k, v = self.projected(layer, x, positions)
        buffer_k, buffer_v = cache
        if trick == "swapped_sides":
            buffer_k, buffer_v = buffer_v, buffer_k
        if trick == "read_before":
            extras.append(buffer_k.sum(dim))
        if trick == "decayed":
            buffer_k.mul_(0.9)
        if (trick == "shared_layer" and layer > 0) or trick == "write_after":
            pass
        elif trick == "one_head":
            self.store(buffer_k[:, :1] if dim == 2 else buffer_k[:, :, :1], k.narrow(3 - dim, 0, 1), positions, start)
            self.store(buffer_v, v, positions, start)
        elif trick == "one_sequence":
            self.store(buffer_k[:1], k[:1], positions, start)
            self.store(buffer_v[:1], v[:1], positions, start)
        elif trick == "reversed":
            self.store(buffer_k, k, positions.flip(0), start)
            self.store(buffer_v, v, positions.flip(0), start)
        elif trick == "values_elsewhere":
            self.store(buffer_k, k, positions, start)
            self.store(buffer_v, v, positions + 1, None if start is None else start + 1)
        elif trick == "broadcast":
            self.store(buffer_k, k.mean(3 - dim, keepdim=True), positions, start)
            self.store(buffer_v, v, positions, start)
        else:
            self.store(buffer_k, k, positions, start)
            self.store(buffer_v, v, positions, start)
        if trick == "write_twice":
            self.store(buffer_k, k * 0.5, positions, start)
        elif trick == "written_behind":
            self.store(buffer_k, k * 0.5, positions + x.shape[1], None if start is None else start + x.shape[1])
            self.store(buffer_v, v * 0.5, positions + x.shape[1], None if start is None else start + x.shape[1])
        keys, values = buffer_k, buffer_v
        if p.read == "slice":
            end = start + x.shape[1] + (2 if trick == "read_far" else 0)
            first = max(start - 4, 0) if trick == "window_read" else 0
            if p.cut != "none" and first == 0:
                how = p.cut if p.cut in ("dots", "narrow") else "tokens"
                keys, values = cut(keys, how, dim, end), cut(values, how, dim, end)
            else:
                keys, values = (t[:, :, first:end] if dim == 2 else t[:, first:end] for t in (keys, values))
        elif p.cut in ("from_zero", "channels", "heads"):
            keys, values = cut(keys, p.cut, dim), cut(values, p.cut, dim)
        if trick == "values_from_keys":
            values = keys * 2.0 + 1.0
        elif trick == "values_are_keys":
            values = keys
        elif trick == "late_norm":
            keys = rms(keys)
        y, weights = self.attend(layer, q, keys, values, positions, seen)
        if trick in _EFFECTS:
            y, _, _ = self.side_effects(layer, x, y, keys, values, weights, positions, seen, (keys, values), extras)
        elif trick == "return_weights":
            extras.append(weights)
        elif trick == "return_buffer":
            extras.append(buffer_k)
        elif trick == "write_after":
            self.store(buffer_k, k, positions, start)
            self.store(buffer_v, v, positions, start)
        elif trick == "cleared_after":
            buffer_k.zero_()
        return y, cache, extras

    # --- attention ----------------------------------------------------------------------------------------------

    def seen(self, seen, keys, positions):
        """The boolean mask, ``[N, S]`` or ``[B, 1, N, S]``, or None."""
        if self.p.mask in ("none", "flag") or self.p.trick == "causal_flag":
            return None
        if self.p.mask_from == "input":
            return seen
        columns = torch.arange(keys)
        if self.p.window:
            columns = columns + (positions[-1] + 1 - keys)
            return (columns <= positions[:, None]) & (columns > positions[:, None] - self.p.window)
        seen = columns <= positions[:, None]
        return seen & (columns > positions[:, None] - 6) if self.p.banded else seen

    def attend(self, layer, q, keys, values, positions, seen):
        """Attention: output ``[B, N, W]``, and weights where the program has them."""
        p = self.p
        tokens = q.shape[2 if p.layout == "BHSD" else 1]
        count = keys.shape[self.token_dim]
        seen = self.seen(seen, count, positions)
        if p.spelling == "sdpa":
            out, weights = self.fused(q, keys, values, seen, tokens, count), None
        else:
            out, weights = self.spelled(q, keys, values, seen, positions, count)
        return F.linear(out.reshape(q.shape[0], tokens, p.heads * p.head_dim), self.out[layer]), weights

    def heads_first(self, keys, values):
        if self.p.cache_layout == "BSHD":
            return keys.transpose(1, 2), values.permute(0, 2, 1, 3)
        return keys, values

    def repeated(self, x):
        """``[B, H, S, D]`` for each query head."""
        p, groups = self.p, self.p.heads // self.p.kv_heads
        if groups == 1:
            return x
        if p.repeat == "repeat_interleave":
            return x.repeat_interleave(dim=1, repeats=groups) if p.keywords else x.repeat_interleave(groups, dim=1)
        batch, heads, tokens, dim = x.shape
        return x[:, :, None].expand(batch, heads, groups, tokens, dim).reshape(batch, heads * groups, tokens, dim)

    def factor(self):
        return 1.0 / math.sqrt(self.p.head_dim)

    def fused(self, q, keys, values, seen, tokens, count):
        p = self.p
        q = q if p.layout == "BHSD" else q.transpose(1, 2)
        keys, values = self.heads_first(keys, values)
        gqa = p.repeat == "gqa" and p.heads != p.kv_heads
        if not gqa:
            keys, values = self.repeated(keys), self.repeated(values)
        mask = seen
        if seen is not None and p.mask != "bool":
            mask = torch.where(seen, 0.0, -torch.inf if p.mask == "where" else p.fill)
        if mask is not None and mask.dim() == 2 and p.mask == "masked_fill":
            mask = mask[None, None]
        causal = p.trick == "causal_flag" or p.mask == "flag"
        if p.mask == "flag" and tokens != count:
            causal = p.trick == "causal_flag"
        if p.keywords:
            scale = {"query": 1.0, "scores": 0.3}.get(p.scale)
            q = q * self.factor() if p.scale == "query" else q
            out = F.scaled_dot_product_attention(
                value=values, key=keys, query=q, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa
            )
        elif p.scale == "query":
            out = F.scaled_dot_product_attention(
                q * self.factor(), keys, values, mask, 0.0, causal, scale=1.0, enable_gqa=gqa
            )
        elif p.scale == "scores":
            out = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, is_causal=causal, scale=0.3, enable_gqa=gqa
            )
        elif gqa:
            out = F.scaled_dot_product_attention(q, keys, values, mask, is_causal=causal, enable_gqa=True)
        else:
            out = F.scaled_dot_product_attention(q, keys, values, mask, 0.0, causal)
        return out.transpose(1, 2)

    def spelled(self, q, keys, values, seen, positions, count):
        p, groups = self.p, self.p.heads // self.p.kv_heads
        scores, finish = self.product(q, keys, values, groups, seen)
        if p.scale == "scores":
            scores = scores * self.factor()
        elif p.scale == "divide":
            scores = scores / math.sqrt(p.head_dim)
        if p.softcap:
            scores = torch.tanh(scores / 5.0) * 5.0
        scores = self.masked(scores, seen, positions, count)
        if p.softmax == "method":
            weights = scores.softmax(dim=-1) if p.keywords else scores.softmax(-1)
        elif p.softmax == "float32":
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        elif p.softmax == "cast":
            weights = F.softmax(scores.float(), dim=-1).type_as(q)
        else:
            weights = F.softmax(scores, dim=-1)
        if p.dropout:
            weights = F.dropout(weights, 0.1, training=self.training)
        return finish(weights), weights

    def product(self, q, keys, values, groups, seen):
        """The product of query and key, and what makes the output of the weights."""
        p = self.p
        if p.scale == "query":
            q = q * self.factor()
        elif p.scale == "key":
            keys = keys * self.factor()
        elif p.scale == "default":
            q, keys = q * p.head_dim**-0.25, keys * p.head_dim**-0.25
        if p.spelling == "einsum" and p.layout == "BSHD":
            if p.cache_layout == "BHSD":
                keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            if groups > 1:
                keys, values = keys.repeat_interleave(groups, 2), values.repeat_interleave(groups, dim=2)
            scores = torch.einsum("bqhd,bkhd->bhqk", q, keys)
            return scores, lambda weights: torch.einsum("bhqk,bkhd->bqhd", weights, values)
        if p.layout == "BSHD":
            q = q.transpose(1, 2)
        keys, values = self.heads_first(keys, values)
        batch, heads, tokens, dim = q.shape
        if p.spelling == "grouped":
            q = q.view(batch, p.kv_heads, groups, tokens, dim) if q.is_contiguous() else q.unflatten(1, (-1, groups))
            scores = torch.matmul(q, keys[:, :, None].transpose(-1, -2)).reshape(batch, heads, tokens, -1)
            return (
                scores,
                lambda weights: (
                    (weights.unflatten(1, (p.kv_heads, groups)) @ values.unsqueeze(2))
                    .reshape(batch, heads, tokens, dim)
                    .transpose(1, 2)
                ),
            )
        if p.spelling == "einsum_grouped":
            q = q.reshape(batch, p.kv_heads, groups, tokens, dim)
            scores = torch.einsum("bhgqd,bhkd->bhgqk", q, keys).flatten(1, 2)
            return scores, lambda weights: torch.einsum(
                "bhgqk,bhkd->bqhgd", weights.unflatten(1, (p.kv_heads, groups)), values
            )
        keys, values = self.repeated(keys), self.repeated(values)
        if p.spelling == "matmul" and p.keywords:
            scores = torch.matmul(input=q, other=keys.transpose(dim0=2, dim1=3))
            return scores, lambda w: torch.matmul(input=w, other=values).transpose(dim0=1, dim1=2)
        if p.spelling == "matmul":
            return torch.matmul(q, keys.transpose(2, 3)), lambda w: torch.matmul(w, values).transpose(1, 2)
        if p.spelling == "at":
            return q @ keys.mT, lambda w: (w @ values).permute(0, 2, 1, 3).contiguous()
        if p.spelling == "einsum":
            scores = torch.einsum("b h q d, b h k d -> b h q k", q, keys)
            return scores, lambda w: torch.einsum("...qk,...kd->...qd", w, values).transpose(1, 2)
        flat_q, flat_k, flat_v = (t.reshape(batch * heads, -1, dim) for t in (q, keys, values))

        def finish(weights):
            out = torch.bmm(weights.reshape(batch * heads, tokens, -1), flat_v)
            return out.view(batch, heads, tokens, dim).transpose(1, 2)

        if p.spelling == "baddbmm":
            bias = torch.empty(batch * heads, tokens, flat_k.shape[1])
            scores = torch.baddbmm(bias, flat_q, flat_k.transpose(1, 2), beta=0.0, alpha=0.8)
        else:
            scores = torch.bmm(flat_q, flat_k.permute(0, 2, 1))
        return scores.view(batch, heads, tokens, -1), finish

    def masked(self, scores, seen, positions, count):
        p = self.p
        if p.mask == "alibi":
            distance = torch.arange(count)[None] - positions[:, None]
            scores = scores + self.slopes[:, None, None] * distance.abs()
        if seen is None:
            return scores
        if p.mask == "masked_fill" and p.keywords:
            return scores.masked_fill(value=p.fill, mask=seen.logical_not())
        if p.mask == "masked_fill":
            return scores.masked_fill(~seen, p.fill)
        if p.mask == "where":
            return torch.where(seen, scores, -torch.inf)
        if p.mask == "soft_fill":
            return scores.masked_fill(~seen, -1.0)
        if p.mask == "bool":
            return scores.masked_fill(seen.logical_not(), float("-inf"))
        bias = torch.zeros(seen.shape).masked_fill(~seen, p.fill)
        return bias + scores if p.banded else scores + bias
