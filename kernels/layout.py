"""The memory layout of a quantized cache, down to the bit: for packing, for kernels, and for counting bytes.

A cache side (keys or values, ``[B, H, S, D]``) is these tensors, all with batch and head leading:

============= ============================ ============ ======================================================
name          shape                        dtype        holds
============= ============================ ============ ======================================================
codes         ``[B, H, NB, W]``            int32        packed codes, ``W`` words for each block of 32 tokens
scales        ``[B, H, NB, P]``            scale dtype  scales, then zero points (or words of both)
window        ``[B, H, sink + ring, D]``   cache dtype  the sinks, then the ring of recent tokens
state         ``[B, H, 4]``                int32        start, length, peak, hidden (see :data:`STATE_FIELDS`)
query_profile ``[B, H, 2, D]``             int8         in modes that use queries: mean and squared deviation of the
                                                        prompt's queries, see ``reference.query_profile``
============= ============================ ============ ======================================================

Mean and normalization of keys (``[B, H, D]`` float32) are further tensors, where the config asks for them. ``D`` is the
head_dim as it is held: that of the program, or more, with zeros behind the program's channels (``channels.py``).

In mode ``none`` the codes are the elements themselves, ``[B, H, NB, 32 * D]`` in the cache's dtype, token after
token, and there are no scales. In mode ``rolling`` the ring holds all tokens that a sliding window keeps, and blocks
hold nothing.

Packing. Decode attention contracts keys over channels and values over tokens, sixteen at a time on tensor cores. The
sixteen positions of such a *slice* are its *lanes*. A 32-bit word holds codes of two neighbouring lanes, one lane in
each 16-bit half, so that masking a *field* of the word in place yields the pair of operands that the tensor core takes.
A lane has sixteen fields in each column, one for each slice and sub-range; their codes of b bits fill b halves:

* keys: ``channel = (slice_hi, slice_lo, lane)``, ``token = (token_sub, column)``, field = ``(token_sub, slice_lo)``;
* values: ``token = (slice, lane)``, ``channel = (channel_sub, column)``, field = ``(slice, channel_sub)``, slice_hi 0.

(The first of a tuple is the most significant: ``channel = (slice_hi * low + slice_lo) * 16 + lane``.)

Words are ordered ``[slice_hi, bits, column / 8, lane / 2, column % 8]``. A *plane* is all words of one of the ``bits``
halves, side by side, so that a load of a plane reads whole cache lines. Within it, runs of eight columns are offset by
a quarter of the banks of a GPU's shared memory (``docs/lab/attention-kernels.md``). Where 8 does not divide the number
of columns, there is one run of all columns.

The token's part comes first in a field (its sub-range for keys, its slice for values), so that fields f and f + 8 lie
at the same bit of their halves. The power of two that a field's bit position stands for then depends only on the query
slice (keys) or only on the channel (values), and the kernels correct for it without extra instructions
(``docs/lab/attention-kernels.md``).

16 is not a multiple of 3, 5, 6 and 7. A half then holds as many whole fields as fit, and the other fields are spread
over the *spare* bits that are left of all halves, see :func:`field_bits`: 16 codes of b bits always take b halves.
"""

from __future__ import annotations

import functools
import math

import torch

from .formats import LANES, CacheFormat

#: Columns of the state tensor: padding tokens before the sequence; real tokens appended so far; the number of real
#: tokens that determines how many blocks are quantized (``peak >= length``, larger only after a crop; 0 where nothing
#: is ever quantized); how many tokens at the front, padding included, the program has dropped, the same number for all
#: sequences. The token that was appended as the t-th is at ``t + start - hidden`` in the program's tensor.
STATE_FIELDS = ("start", "length", "peak", "hidden")
START, LENGTH, PEAK, HIDDEN = 0, 1, 2, 3


def shift(state: torch.Tensor) -> torch.Tensor:
    """Where the program's tensor has the first token that was appended, ``[B, H]``; negative if it has dropped it."""
    return state[..., START] - state[..., HIDDEN]


def ends(state: torch.Tensor) -> torch.Tensor:
    """The number of tokens in the program's tensor, padding included: ``[B, H]`` int32 of a state ``[B, H, 4]``."""
    return shift(state) + state[..., LENGTH]


#: Width of `codes` in a cache that rolls, whose blocks hold nothing.
ROLLING_WORDS = 1

# --- fields of a word -------------------------------------------------------------------------------------------------
#
# Triton kernels call these functions of integers at compile time (``triton/constants.py``). They call no other function
# and use literal numbers: Triton's cache identifies a kernel by the text of the functions it calls, but not by the
# values of Python's global variables.


def whole_fields(bits: int) -> int:
    """How many codes of ``bits`` bits fit in a half of a word as a whole."""
    return 16 // bits


def spare_bits(bits: int) -> int:
    """How many bits of a half its whole fields leave: the upper ones, over which the other fields are spread."""
    return 16 % bits


def first_spare_bit(bits: int) -> int:
    """The lowest of the spare bits of a half."""
    return 16 // bits * bits


def first_spread_field(bits: int) -> int:
    """The first of the 16 fields that is spread over the spare bits of all halves; 16 if none is."""
    return 16 // bits * bits


def half_of_bit(bits: int, field: int, bit: int) -> int:
    """Which of the ``bits`` halves holds a bit (0: the lowest) of the code in a field."""
    whole = 16 // bits
    if field < whole * bits:
        return field // whole
    return ((field - whole * bits) * bits + bit) // (16 % bits)


def place_of_bit(bits: int, field: int, bit: int) -> int:
    """Which bit of its half (:func:`half_of_bit`) holds a bit of the code in a field."""
    whole = 16 // bits
    if field < whole * bits:
        return field % whole * bits + bit
    return whole * bits + ((field - whole * bits) * bits + bit) % (16 % bits)


@functools.cache
def field_bits(bits: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each of 16 fields, the ``(half, bit)`` that holds each of its ``bits`` bits, lowest first."""
    return tuple(
        tuple((half_of_bit(bits, field, m), place_of_bit(bits, field, m)) for m in range(bits)) for field in range(16)
    )


# --- words of a block -------------------------------------------------------------------------------------------------


def key_slices(head_dim: int) -> tuple[int, int]:
    """``(slice_hi, slice_lo)`` of a key block: how many slices of 16 channels, and how many share a word."""
    slices = head_dim // LANES
    low = math.gcd(slices, LANES)
    return slices // low, low


def word_slices(fmt: CacheFormat, head_dim: int) -> int:
    """How many slices of 16 lanes share a word: ``slice_lo`` of keys, all slices of a block of values."""
    return key_slices(head_dim)[1] if fmt.is_key else fmt.block // LANES


def sub_ranges(slices: int) -> int:
    """How many sub-ranges (of tokens for keys, of channels for values) share a word with ``slices`` slices."""
    return 16 // slices


def plane_columns(is_key: bool, slices: int, block: int, head_dim: int) -> int:
    """Columns of a plane: the tokens of a sub-range of keys, the channels of one of values."""
    return (block if is_key else head_dim) * slices // 16


def sub_range_stride(is_key: bool, slices: int) -> int:
    """Distance, in fields, from a sub-range to the next. A field is (tokens' part, channels' part)."""
    return slices if is_key else 1


def slice_stride(is_key: bool, slices: int) -> int:
    """Distance, in fields, from a slice to the next."""
    return 1 if is_key else 16 // slices


def column_run(columns: int) -> int:
    """Columns that lie side by side in a plane: 8, or all of them where 8 does not divide their number."""
    return 8 if columns % 8 == 0 else columns


def plane_words(columns: int) -> int:
    """Words of a plane: a half of all lanes, so 8 for each column."""
    return columns * 8


def words_per_block(fmt: CacheFormat, head_dim: int) -> int:
    """Width ``W`` of `codes`: 32-bit words per block (elements of the cache's dtype in mode ``none``)."""
    if fmt.rolls:
        return ROLLING_WORDS
    return block_words(fmt.bits if fmt.quantized else 0, fmt.block, head_dim)


def block_words(bits: int, block: int, head_dim: int) -> int:
    """32-bit words of a block of codes of ``bits`` bits; with ``bits`` 0 (no codes), its number of elements."""
    return block * head_dim * bits // 32 if bits else block * head_dim


# --- scales of a block ------------------------------------------------------------------------------------------------


def block_groups(group_size: int, block: int, head_dim: int) -> int:
    """Groups of a block."""
    return block * head_dim // group_size


def group_row(is_key: bool, block: int, head_dim: int) -> int:
    """How many groups lie side by side in `scales`: one for each token of keys, for each channel of values.

    The groups of the next channels (keys) or tokens (values) lie so many elements behind.
    """
    return block if is_key else head_dim


def groups_per_block(fmt: CacheFormat, head_dim: int) -> int:
    """Groups of a block of this format."""
    return block_groups(fmt.group_size, fmt.block, head_dim)


def scales_per_block(fmt: CacheFormat, head_dim: int) -> int:
    """Width ``P`` of `scales`: one per group, then one zero point per group where those are elements of their own."""
    return groups_per_block(fmt, head_dim) * fmt.scales_per_group if fmt.quantized else 0


def split_groups(x: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Blocks ``[..., block, D]`` as groups ``[..., groups, group_size]`` in the order of the scales.

    Keys are ordered ``(channel group, token)``, so that the scales of all tokens lie side by side; values are ordered
    ``(token group, channel)``.
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
    low = word_slices(fmt, head_dim)
    subs, columns = sub_ranges(low), plane_columns(fmt.is_key, low, block, head_dim)
    if fmt.is_key:
        x = codes.reshape(n, subs, columns, head_dim // (low * LANES), low, LANES // 2, 2)
        x = x.permute(0, 3, 5, 2, 6, 1, 4)  # [n, hi, pair, column, half, token_sub, slice_lo]
    else:
        x = codes.reshape(n, 1, low, LANES // 2, 2, subs, columns)
        x = x.permute(0, 1, 3, 6, 4, 2, 5)  # [n, 1, pair, column, half, slice, channel_sub]
    return x.flatten(-2)


def _from_fields(fields: torch.Tensor, fmt: CacheFormat, head_dim: int) -> torch.Tensor:
    """The inverse of :func:`_to_fields`."""
    low = word_slices(fmt, head_dim)
    if fmt.is_key:
        x = fields.unflatten(-1, (sub_ranges(low), low)).permute(0, 5, 3, 1, 6, 2, 4)
    else:
        x = fields.unflatten(-1, (low, sub_ranges(low))).permute(0, 1, 5, 2, 4, 6, 3)
    return x.reshape(fields.shape[0], fmt.block, head_dim)


def pack(codes: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Pack unsigned codes ``[..., block, D]`` (any integer dtype, below ``2**bits``) to words ``[..., W]`` int32."""
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
    """Unpack words ``[..., W]`` int32 to unsigned codes ``[..., block, D]`` int32: the inverse of :func:`pack`."""
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
    """Shape and dtype (None: that of the cache) of each tensor of a cache side with room for ``capacity`` blocks."""
    lead = (batch, heads)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {
        "codes": ((*lead, capacity, words_per_block(fmt, head_dim)), torch.int32 if fmt.quantized else None),
        "scales": ((*lead, capacity, scales_per_block(fmt, head_dim)), fmt.torch_scale_dtype),
        "window": ((*lead, fmt.window, head_dim), None),
        "state": ((*lead, len(STATE_FIELDS)), torch.int32),
    }
    if fmt.uses_queries:
        shapes["query_profile"] = ((*lead, 2, head_dim), torch.int8)
    return shapes


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
    """Bytes of one cache side with room for ``capacity`` blocks.

    Args:
        fmt: the format.
        batch, heads: as of the logical tensor ``[B, H, S, D]``.
        head_dim: as it is held, see ``channels.py``.
        dtype: dtype of the logical tensor, in which the windows are held.
        capacity: blocks allocated; ``blocks_for(fmt, length)`` is how many ``length`` tokens need.
        statistics: number of float32 vectors ``[B, H, D]`` stored with it (key mean and key normalization).
    """
    total = statistics * batch * heads * head_dim * 4
    for shape, own in shapes(fmt, batch, heads, head_dim, capacity).values():
        total += math.prod(shape) * (own or dtype).itemsize
    return total
