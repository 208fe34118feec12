"""Where every bit of a quantized cache lies: the one place that knows, for packing, kernels and size accounting.

A cache side (keys or values, ``[B, H, S, D]``) is four tensors, all with batch and head leading:

======== ============================ ============ =======================================================
name     shape                        dtype        holds
======== ============================ ============ =======================================================
codes    ``[B, H, NB, W]``            int32        packed codes, ``W`` words for each block of 32 tokens
scales   ``[B, H, NB, P]``            scale dtype  scales, then zero points (or words of both)
window   ``[B, H, sink + ring, D]``   cache dtype  the sinks, then the ring of recent tokens (and in mode
                                                   ``steered`` a row of bytes about the queries)
state    ``[B, H, 4]``                int32        start, length, peak, 0 (see :data:`STATE_FIELDS`)
======== ============================ ============ =======================================================

In mode ``none`` the codes are the elements themselves, ``[B, H, NB, 32 * D]`` in the cache's dtype, token after
token, and there are no scales.

Packing. Decode attention contracts keys over channels and values over tokens, sixteen at a time on tensor cores. The
sixteen positions of such a slice are the *lanes*. A 32-bit word belongs to two neighbouring lanes, one a half, so that
masking a field of the word in place yields a pair of operands as the tensor core wants them. The sixteen *fields* of a
lane are sixteen (slice, column) pairs; they fill ``bits`` halves:

* keys: ``channel = (slice_hi, slice_lo, lane)``, ``token = (token_sub, column)``, field = ``(token_sub, slice_lo)``;
* values: ``token = (slice, lane)``, ``channel = (channel_sub, column)``, field = ``(slice, channel_sub)``, slice_hi 0.

Words are ordered ``[slice_hi, bits, column / 8, lane / 2, column % 8]``. The first halves of all lanes, a *plane*, lie
together, so that a load of a plane reads whole cache lines; within it runs of eight columns lie apart from one another
by a quarter of the banks of a GPU's shared memory (``docs/kernels.md``). Where 8 does not divide the columns, a run is
all of them.

The part of the token leads in a field (its sub-range for keys, its slice for values), so that fields f and f + 8 lie at
the same bit of their halves: what a field's position is worth then depends on the query slice alone, or on the channel
alone, and costs the kernels nothing (``docs/kernels.md``).

Fields that do not fit a half whole (16 is not a multiple of 3, 5, 6, 7) are spread over the spare bits of the halves,
see :func:`field_bits`: 16 codes of b bits always take exactly b halves.
"""

from __future__ import annotations

import functools
import math

import torch

from .formats import LANES, CacheFormat

#: Columns of the state tensor: padding tokens before the sequence, real tokens held, real tokens up to which the
#: quantized region has been decided (`peak >= length`; larger only after a crop), unused.
STATE_FIELDS = ("start", "length", "peak", "reserved")
START, LENGTH, PEAK = 0, 1, 2


def whole_fields(bits: int) -> int:
    """Fields that fit a half whole."""
    return 16 // bits


def spare_bits(bits: int) -> int:
    """Bits of a half that its whole fields leave: the upper ones, over which the other fields are spread."""
    return 16 % bits


@functools.cache
def field_bits(bits: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each of 16 fields, the ``(half, bit)`` that holds each of its ``bits`` bits, lowest first."""
    whole, spare = whole_fields(bits), spare_bits(bits)
    fields = []
    for field in range(16):
        if field < whole * bits:
            half, position = divmod(field, whole)
            fields.append(tuple((half, position * bits + m) for m in range(bits)))
        else:
            first = (field - whole * bits) * bits
            fields.append(tuple(((first + m) // spare, whole * bits + (first + m) % spare) for m in range(bits)))
    return tuple(fields)


def key_slices(head_dim: int) -> tuple[int, int]:
    """``(slice_hi, slice_lo)`` of a key block: how many slices of 16 channels, and how many share a word."""
    slices = head_dim // LANES
    low = math.gcd(slices, LANES)
    return slices // low, low


def column_run(columns: int) -> int:
    """How many of the columns of a plane lie side by side: 8, or all where 8 does not divide them."""
    return 8 if columns % 8 == 0 else columns


def words_per_block(fmt: CacheFormat, head_dim: int) -> int:
    """Width ``W`` of `codes`: 32-bit words a block (elements of the cache's dtype in mode ``none``)."""
    return block_words(fmt.bits if fmt.quantized else 0, fmt.block, head_dim)


def block_words(bits: int, block: int, head_dim: int) -> int:
    """Words of a block of codes of ``bits`` bits; elements where there are no codes (``bits`` 0)."""
    return block * head_dim * bits // 32 if bits else block * head_dim


def groups_per_block(fmt: CacheFormat, head_dim: int) -> int:
    return fmt.block * head_dim // fmt.group_size


def scales_per_block(fmt: CacheFormat, head_dim: int) -> int:
    """Width ``P`` of `scales`: one a group, and a zero point each behind all scales where those are held apart."""
    return groups_per_block(fmt, head_dim) * fmt.scales_per_group if fmt.quantized else 0


def split_groups(x: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Blocks ``[..., block, D]`` as groups ``[..., groups, group_size]`` in the order of the scales.

    Keys: group ``(channel group, token)``, so that a row of scales serves a row of tokens. Values: ``(token group,
    channel)``.
    """
    *lead, block, head_dim = x.shape
    groups = groups_per_block(fmt, head_dim)
    if fmt.is_key:
        x = x.reshape(*lead, block, head_dim // fmt.group_size, fmt.group_size).transpose(-2, -3)
    else:
        x = x.reshape(*lead, block // fmt.group_size, fmt.group_size, head_dim).transpose(-1, -2)
    return x.reshape(*lead, groups, fmt.group_size)


def join_groups(groups: torch.Tensor, fmt: CacheFormat, head_dim: int) -> torch.Tensor:
    """The inverse of :func:`split_groups`."""
    *lead, _, size = groups.shape
    if fmt.is_key:
        x = groups.reshape(*lead, head_dim // size, fmt.block, size).transpose(-2, -3)
    else:
        x = groups.reshape(*lead, fmt.block // size, head_dim, size).transpose(-1, -2)
    return x.reshape(*lead, fmt.block, head_dim)


def _to_fields(codes: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Codes ``[N, block, D]`` as ``[N, hi, lane pair, column, half, field]``."""
    n, block, head_dim = codes.shape
    if fmt.is_key:
        hi, lo = key_slices(head_dim)
        subs = 16 // lo
        x = codes.reshape(n, subs, block // subs, hi, lo, LANES // 2, 2)
        x = x.permute(0, 3, 5, 2, 6, 1, 4)  # [n, hi, pair, token_lo, half, token_sub, slice_lo]
        return x.reshape(n, hi, LANES // 2, block // subs, 2, 16)
    slices = block // LANES
    subs = 16 // slices
    x = codes.reshape(n, slices, LANES // 2, 2, subs, head_dim // subs)
    x = x.permute(0, 2, 5, 3, 1, 4)  # [n, pair, channel_lo, half, slice, channel_sub]
    return x.reshape(n, 1, LANES // 2, head_dim // subs, 2, 16)


def _from_fields(fields: torch.Tensor, fmt: CacheFormat, head_dim: int) -> torch.Tensor:
    """The inverse of :func:`_to_fields`."""
    n, block = fields.shape[0], fmt.block
    if fmt.is_key:
        hi, lo = key_slices(head_dim)
        subs = 16 // lo
        x = fields.reshape(n, hi, LANES // 2, block // subs, 2, subs, lo)
        return x.permute(0, 5, 3, 1, 6, 2, 4).reshape(n, block, head_dim)
    slices = block // LANES
    subs = 16 // slices
    x = fields.reshape(n, LANES // 2, head_dim // subs, 2, slices, subs)
    return x.permute(0, 4, 1, 3, 5, 2).reshape(n, block, head_dim)


def pack(codes: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Unsigned codes ``[..., block, D]`` (any integer dtype, below ``2**bits``) as words ``[..., W]`` int32."""
    *lead, block, head_dim = codes.shape
    fields = _to_fields(codes.reshape(-1, block, head_dim).to(torch.int64), fmt)
    halves = [torch.zeros_like(fields[..., 0]) for _ in range(fmt.bits)]
    for field, places in enumerate(field_bits(fmt.bits)):
        for m, (half, bit) in enumerate(places):
            halves[half] = halves[half] | (((fields[..., field] >> m) & 1) << bit)
    words = torch.stack(halves, dim=2)  # [n, hi, bits, pair, column, half]
    words = words[..., 0] | (words[..., 1] << 16)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)  # as the int32 with the same bits
    words = words.unflatten(-1, (-1, column_run(words.shape[-1]))).transpose(-2, -3)
    return words.to(torch.int32).reshape(*lead, words_per_block(fmt, head_dim))


def unpack(words: torch.Tensor, fmt: CacheFormat, head_dim: int) -> torch.Tensor:
    """Words ``[..., W]`` int32 as unsigned codes ``[..., block, D]`` int32. The inverse of :func:`pack`."""
    *lead, _ = words.shape
    hi = key_slices(head_dim)[0] if fmt.is_key else 1
    columns = words.shape[-1] // (hi * LANES // 2 * fmt.bits)
    x = words.reshape(-1, hi, fmt.bits, columns // column_run(columns), LANES // 2, column_run(columns))
    x = x.transpose(-2, -3).flatten(-2)
    x = torch.stack((x & 0xFFFF, (x >> 16) & 0xFFFF), dim=-1)  # [n, hi, bits, pair, column, half]
    fields = []
    for places in field_bits(fmt.bits):
        half, bit = places[0]
        if places == tuple((half, bit + m) for m in range(fmt.bits)):
            fields.append((x[:, :, half] >> bit) & ((1 << fmt.bits) - 1))
        else:
            fields.append(sum(((x[:, :, half] >> bit) & 1) << m for m, (half, bit) in enumerate(places)))
    codes = _from_fields(torch.stack(fields, dim=-1), fmt, head_dim)
    return codes.reshape(*lead, fmt.block, head_dim)


def shapes(
    fmt: CacheFormat, batch: int, heads: int, head_dim: int, capacity: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Shape and dtype (None: the cache's own) of each tensor of a cache with room for ``capacity`` blocks."""
    lead = (batch, heads)
    return {
        "codes": ((*lead, capacity, words_per_block(fmt, head_dim)), torch.int32 if fmt.quantized else None),
        "scales": ((*lead, capacity, scales_per_block(fmt, head_dim)), fmt.torch_scale_dtype),
        "window": ((*lead, fmt.window_rows, head_dim), None),
        "state": ((*lead, len(STATE_FIELDS)), torch.int32),
    }


def cache_bytes(
    fmt: CacheFormat,
    batch: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    capacity: int,
    *,
    statistics: int = 0,
) -> int:
    """Bytes of one cache side whose storage has room for ``capacity`` blocks.

    Args:
        fmt: the format.
        batch, heads, head_dim: as of the logical tensor ``[B, H, S, D]``.
        dtype: dtype of the logical tensor, in which the windows are held.
        capacity: blocks allocated; ``blocks_for(fmt, length)`` gives what ``length`` tokens need.
        statistics: how many float32 vectors ``[B, H, D]`` it carries (key mean and key normalization).
    """
    total = statistics * batch * heads * head_dim * 4
    for shape, own in shapes(fmt, batch, heads, head_dim, capacity).values():
        total += math.prod(shape) * (own or dtype).itemsize
    return total
