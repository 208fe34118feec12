"""Caches and calls that the Triton tests share, on the interpreter (``tests/kernels``) and on a GPU (``tests/gpu``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from innerq_compile.kernels import layout, masks, reference
from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.cache import Cache
from innerq_compile.kernels.formats import CacheFormat, blocks_for

#: RMS of the error relative to the RMS of the result. float16: operands are cut and the result is rounded to 11 bits,
#: bfloat16: the result is rounded to 8.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 6e-3, torch.float32: 1e-5}


def rms_ratio(actual: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.double()
    error = (actual.double() - expected).square().mean().sqrt()
    return float(error / expected.square().mean().sqrt().clamp(min=1e-30))


def clone(cache: Cache) -> Cache:
    return cache.map(torch.clone)


def tokens_of_slots(state: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """The token of each row of a window, ``[B, H, rows]``; rows of tokens past the end hold none."""
    slots = torch.arange(fmt.window, device=state.device)
    first = reference.quantized_blocks(state, fmt)[..., None] * fmt.block  # counted from behind the sinks
    if fmt.rolls:
        first = (state[..., layout.LENGTH, None] - fmt.window).clamp(min=0)
    return torch.where(slots < fmt.sink, slots, fmt.sink + first + (slots - fmt.sink - first) % fmt.ring)


def held_slots(state: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Which rows of a window hold a token, ``[B, H, rows]``."""
    return tokens_of_slots(state, fmt) < state[..., layout.LENGTH, None]


def poison_(cache: Cache) -> None:
    """Write NaN (or all ones) into everything that holds no token: none of it may reach a result."""
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    blocks = reference.quantized_blocks(state, fmt)[..., None]
    spare = torch.arange(codes.shape[2], device=codes.device) >= blocks
    codes.masked_fill_(spare[..., None], float("nan") if codes.is_floating_point() else -1)
    scales.masked_fill_(spare[..., None], float("nan") if scales.is_floating_point() else 0x7F)  # short scales: large
    window.masked_fill_(~held_slots(state, fmt)[..., None], float("nan"))


def poison_hidden_(cache: Cache, dropped: int) -> None:
    """The same for tokens that the program's tensor does not have, but for those of a block that has others."""
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    first = (-layout.shift(state) - dropped)[..., None]
    block_ends = fmt.sink + torch.arange(1, codes.shape[2] + 1, device=state.device) * fmt.block
    codes.masked_fill_((block_ends <= first)[..., None], float("nan") if codes.is_floating_point() else -1)
    scales.masked_fill_((block_ends <= first)[..., None], float("nan") if scales.is_floating_point() else 0x7F)
    window.masked_fill_((tokens_of_slots(state, fmt) < first)[..., None], float("nan"))


def rolled_cache(x: torch.Tensor, fmt: CacheFormat, start: torch.Tensor, room: int) -> Cache:
    """A rolling cache after all tokens of ``x [B, H, S, D]``, more than it holds, as appends leave it."""
    batch, heads, tokens, head_dim = x.shape
    cache = reference.empty_cache(fmt, batch, heads, head_dim, room, x.dtype, x.device)
    cache.state[..., layout.START] = start[:, None]
    cache.state[..., layout.LENGTH] = tokens - start[:, None]
    place = (tokens_of_slots(cache.state, fmt) + start[:, None, None]).clamp(max=tokens - 1)
    cache.window.copy_(x.gather(2, place[..., None].expand(-1, -1, -1, head_dim)))
    return cache


def make_cache(x: torch.Tensor, fmt: CacheFormat, start: torch.Tensor | None = None, room: int = 2, keep=None):
    """A reference cache of ``x [B, H, S, D]`` with ``room`` spare blocks, cropped to ``keep`` tokens, poisoned."""
    start = (torch.zeros(x.shape[0], dtype=torch.int32) if start is None else start).to(x.device)
    if fmt.rolls and x.shape[2] > fmt.ring:
        cache = rolled_cache(x, fmt, start, room)
    else:
        cache = reference.prefill(x, start, None, None, blocks_for(fmt, x.shape[2]) + room, fmt)
    if keep is not None:
        reference.truncate_(cache, keep)
    poison_(cache)
    return cache


def assert_same_cache(actual: Cache, expected: Cache, flips: float = 2e-3) -> None:
    """Equal state and windows, equal codes and scales in the quantized region.

    The kernel may round a tie the other way (a sum taken in another order, a division by a constant), so a share of
    ``flips`` of the codes may differ by one step.
    """
    fmt, state, head_dim = expected.format, expected.state, expected.window.shape[-1]
    torch.testing.assert_close(actual.state, state, rtol=0, atol=0)
    held = held_slots(state, fmt)
    torch.testing.assert_close(actual.window[held], expected.window[held], rtol=0, atol=0, equal_nan=True)
    blocks = reference.quantized_blocks(state, fmt)[..., None]
    used = torch.arange(expected.codes.shape[2], device=state.device) < blocks
    if not used.any():
        return
    if not fmt.quantized:
        torch.testing.assert_close(actual.codes[used], expected.codes[used], rtol=0, atol=0, equal_nan=True)
        return
    ours, theirs = (layout.unpack(cache.codes[used], fmt, head_dim) for cache in (actual, expected))
    scales, wanted = actual.scales[used], expected.scales[used]
    same_scale = (scales == wanted) | (scales.isnan() & wanted.isnan())
    assert (~same_scale).float().mean() <= flips, f"{(~same_scale).float().mean():.2%} of the scales differ"
    differs = ours != theirs
    assert differs.float().mean() <= flips, f"{differs.float().mean():.2%} of the codes differ"
    if same_scale.all():
        assert (ours - theirs).abs().max() <= 1


def assert_repeatable(make: Callable[[], Cache]) -> None:
    """Two runs write the same bits, in all that holds a token."""
    first, second = make(), make()
    for cache in (first, second):
        fmt, codes, scales, window, state = cache.format, *cache.encoded
        spare = torch.arange(codes.shape[2], device=codes.device) >= reference.quantized_blocks(state, fmt)[..., None]
        codes.masked_fill_(spare[..., None], 0)
        scales.masked_fill_(spare[..., None], 0)
        window.masked_fill_(~held_slots(state, fmt)[..., None], 0)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@dataclasses.dataclass(frozen=True)
class Attention:
    """One call of decode attention, its id and how to make it.

    The program has dropped the first ``hide`` tokens, and what it attends to still has the last ``dropped`` of them.
    With ``latent`` a part of the query is multiplied by the values. ``value_heads`` is as of `AttentionCall`.
    """

    k_fmt: CacheFormat
    v_fmt: CacheFormat
    dtype: torch.dtype = torch.float16
    batch: int = 2
    heads: int = 1
    group: int = 2
    rows: int = 1
    tokens: int = 140
    head_dim: int = 64
    value_dim: int | None = None
    padded: bool = False
    keep: int | None = None
    hide: int = 0
    dropped: int = 0
    mask: str = "none"
    causal: bool = True
    softcap: float = 0.0
    sinks: bool | str = False
    latent: bool = False
    value_heads: tuple[int, int] | None = None
    room: int = 2

    @property
    def id(self) -> str:
        def side(fmt):
            zero = "" if fmt.scale_dtype in str(self.dtype) else "-" + fmt.scale_dtype
            return f"{fmt.mode[:3]}{fmt.bits}g{fmt.group_size}s{fmt.sink}r{fmt.recent}{zero}"

        parts = [f"K{side(self.k_fmt)}", f"V{side(self.v_fmt)}", str(self.dtype).split(".")[-1]]
        parts.append(f"B{self.batch}-H{self.heads}-G{self.group}-N{self.rows}-T{self.tokens}-D{self.head_dim}")
        parts += [f"Dv{self.value_dim}"] if self.value_dim else []
        parts += ["padded"] if self.padded else []
        parts += [f"keep{self.keep}"] if self.keep is not None else []
        parts += [f"hide{self.hide}{-self.dropped:+}"] if self.hide or self.dropped else []
        parts += [self.mask] if self.mask != "none" else []
        parts += ["causal"] if self.causal and self.rows > 1 else []
        parts += [f"cap{self.softcap:g}"] if self.softcap else []
        parts += [f"sinks-{self.sinks}" if isinstance(self.sinks, str) else "sinks"] if self.sinks else []
        parts += ["latent"] if self.latent else []
        parts += ["of{}+{}".format(*self.value_heads)] if self.value_heads else []
        return "-".join(parts)

    def call(self, device: str, generator: torch.Generator) -> AttentionCall[torch.Tensor]:
        """The call, on ``device``. It knows from where on its mask is open, where that is somewhere."""

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(self.dtype)

        value_dim = self.value_dim or self.head_dim
        q_heads = self.heads * self.group
        start = torch.zeros(self.batch, dtype=torch.int32)
        if self.padded:
            start = torch.randint(0, self.tokens, (self.batch,), generator=generator, dtype=torch.int32)
            start[0] = 3
        caches = []
        for fmt, width in ((self.k_fmt, self.head_dim), (self.v_fmt, value_dim)):
            x = normal(self.batch, self.heads, self.tokens, width).to(device)
            caches.append(make_cache(x, fmt, start, self.room, self.keep))
            caches[-1].state[..., layout.HIDDEN] = self.hide
        # not contiguous, as the query of a model is not: [B, N, Hq, D] seen as [B, Hq, N, D]
        query = normal(self.batch, self.rows, q_heads, self.head_dim).transpose(1, 2).to(device)
        lacks = self.hide - self.dropped
        total = max((self.tokens if self.keep is None else self.keep) - lacks, 1)
        mask = None
        if self.mask == "bool":
            mask = torch.rand((self.batch, 1, self.rows, total), generator=generator) < 0.7
        elif self.mask == "added":
            mask = normal(self.batch, 1, 1, total)
        elif self.mask == "added-heads":
            mask = normal(q_heads, self.rows, total + 5).float()
        elif self.mask.startswith("open"):  # padding hidden, the last half open but for the causal part
            place = torch.arange(total)
            mask = torch.rand((self.batch, 1, self.rows, total), generator=generator) < 0.7
            mask = (mask | (place > total // 2)) & (place >= (start - lacks).clamp(max=total)[:, None, None, None])
            mask &= place <= torch.arange(total - self.rows, total)[:, None]
            if self.mask == "open-added":
                mask = torch.where(mask, 0.0, torch.finfo(self.dtype).min).to(self.dtype)
        elif self.mask == "nothing":
            mask = torch.zeros((1, 1, self.rows, 1), dtype=torch.bool)
        sinks = None
        if self.sinks:
            sizes = (self.batch, q_heads, self.rows) if self.sinks == "by-row" else (q_heads,)
            sinks = torch.randn(sizes, generator=generator).to(self.dtype).to(device)
        keys, values = caches
        opened = None
        if mask is not None:
            mask = mask.to(device)
            state = keys.state.clone()
            state[..., layout.HIDDEN] = lacks  # of the tensor that the mask belongs to
            opened = masks.open_from(mask, state, self.rows) if self.mask.startswith("open") else None
        return AttentionCall(
            *(query, keys, values, mask, opened, sinks),
            *(self.head_dim**-0.5, self.softcap, self.causal, self.dropped),
            normal(self.batch, self.rows, q_heads, value_dim).transpose(1, 2).to(device) if self.latent else None,
            self.value_heads,
        )

    def check_sums(self, call: AttentionCall[torch.Tensor]) -> None:
        """The logarithm of the sum of exponentials, in several splits."""
        from innerq_compile.kernels.triton import attention

        _, expected = reference.decode_attention_lse(call, torch.float64)
        _, sums = attention.decode_attention_lse(call, splits=3)
        assert sums.dtype == torch.float32
        torch.testing.assert_close(sums.double(), expected, rtol=5e-3, atol=2e-2)

    def check(self, device: str, generator: torch.Generator, repeat: bool = False, **options) -> None:
        """The kernel against the reference in float64; ``repeat`` it to see the same bits again."""
        from innerq_compile.kernels.triton import attention

        call = self.call(device, generator)
        assert kernels.supports_decode(call)
        expected = reference.decode_attention(call, torch.float64)
        for cache in (call.keys, call.values):
            poison_hidden_(cache, self.dropped)
        before = [clone(cache) for cache in (call.keys, call.values)]
        actual = attention.decode_attention(call, **options)
        assert actual.dtype == self.dtype
        assert actual.shape == expected.shape
        for cache, copy in zip((call.keys, call.values), before, strict=True):
            for a, b in zip(cache, copy, strict=True):
                assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), "attention wrote to its cache"
        if self.mask == "nothing" and not self.sinks:
            assert not actual.any()
            return
        assert torch.equal(actual.isnan(), expected.isnan())
        self.check_sums(call)
        ratio = rms_ratio(actual, expected)
        assert ratio < TOLERANCE[self.dtype], f"error {ratio:.2e}"
        if not repeat:
            return
        again = attention.decode_attention(call, **options)
        assert torch.equal(actual.view(torch.uint8), again.view(torch.uint8)), "two runs differ"
