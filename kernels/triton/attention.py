"""Decode attention over a quantized cache: split-K partial kernel, then the combination of the splits (``combine``).

There are two partial kernels. ``attention_fields`` computes directly from packed words, at close to memory bandwidth;
``attention_portable`` supports everything else. :func:`fields_reason` says which one a call uses, and why.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
import triton

from .. import layout
from ..attention_call import AttentionCall, sinks_by_row, value_range
from ..formats import BLOCK_TOKENS, LANES, CacheFormat
from .attention_fields import decode_partial_fields_kernel
from .attention_portable import decode_partial_portable_kernel
from .combine import combine
from .support import UNWRITTEN_SCALES, launching, shared_memory, side_constants

#: Least tokens of a split: for fewer, combining its result costs more than it gains.
MIN_SPLIT_TOKENS = 128
#: Most splits of a sequence: the combination loads all of them at once.
MAX_SPLITS = 256


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def choose_splits(device: torch.device, heads: Any, tokens: Any, programs: int, others: int = 0) -> Any:
    """Number of programs that share the blocks of a sequence of at most ``tokens`` tokens.

    It is chosen so that all programs run at the same time, ``programs`` per multiprocessor. ``others`` of the programs
    of each of the ``heads`` have other work (the windows). With symbolic sizes the result is symbolic, without guards.
    """
    wanted = _multiprocessors(device) * programs // heads - others
    return torch.sym_max(1, torch.sym_min(torch.sym_min(wanted, MAX_SPLITS - others), tokens // MIN_SPLIT_TOKENS))


@dataclasses.dataclass(frozen=True)
class FieldsConfig:
    """How ``decode_partial_fields_kernel`` is launched.

    Attributes:
        blocks: blocks of 32 tokens per step of the softmax.
        stages: depth of the software pipeline.
        num_warps: warps per program.
        programs: programs per multiprocessor, over all heads and splits.
        window_splits: programs that share the windows of a head.
        window_tokens: tokens per step over the windows.
        maxnreg: limit of registers per thread, or None.
        tile: most query rows per program, 8 or 16.
    """

    blocks: int = 1
    stages: int = 3
    num_warps: int = 1
    programs: int = 12
    window_splits: int = 2
    window_tokens: int = 16
    maxnreg: int | None = 168
    tile: int = 16


def choose_config(sequences: int, rows: int, head_dim: int, value_dim: int) -> FieldsConfig:
    """The best measured configuration for ``sequences`` (b, h) of ``rows`` query rows each.

    The measurements are in ``docs/lab/attention-kernels.md``.
    """
    programs = sequences * triton.cdiv(rows, 16)
    # with few programs each has few blocks, and the programs of the windows should not take longer than those
    windows = 1 if programs >= 64 else 2 if programs > 16 else 5
    if max(head_dim, value_dim) > 128:  # two warps share the 32 rows of a tile: half as many accumulators per thread
        return FieldsConfig(stages=3, num_warps=2, programs=6, window_splits=windows)
    if rows > 8:  # twice the accumulators: fewer programs, all the registers
        return FieldsConfig(programs=8, window_splits=windows, maxnreg=None)
    if max(head_dim, value_dim) <= 64:
        return FieldsConfig(window_splits=windows)
    return FieldsConfig(programs=12 if sequences >= 64 else 8, window_splits=windows)


def other_configs(config: FieldsConfig, rows: int) -> list[FieldsConfig]:
    """Configurations that ``max_autotune`` times besides ``config``, for ``rows`` query rows.

    All have the same number of programs, since the partial results of all choices must have the same shape.
    """
    if config.num_warps > 1:
        changes = [{"stages": s, "maxnreg": r} for s in (2, 3) for r in (None, 168, 128)]
    elif rows > 8:
        changes = [{"stages": 2}, {"tile": 8, "maxnreg": 168}, {"tile": 8, "stages": 2, "maxnreg": 168}]
    else:
        tried = ((1, 3, 168), (1, 2, 168), (1, 4, 168), (1, 3, None), (1, 3, 128), (2, 2, 168), (2, 2, None))
        changes = [{"blocks": b, "stages": s, "maxnreg": r} for b, s, r in tried]
    changes.append({"window_tokens": 32})
    others = [dataclasses.replace(config, **change) for change in changes]
    return [other for other in dict.fromkeys(others) if other != config]


#: Shared memory that 32 query rows of wide heads need at most.
_SHARED_OF_32_ROWS = 139_264


def portable_tile(device: torch.device, rows: int, head_dim: int, value_dim: int) -> tuple[int, int]:
    """Query rows of a tile of the portable kernel, and its warps.

    Wide heads have tiles that need the registers of eight warps. Of many query rows, as in latent attention, such a
    program takes more if they fit: each tile of rows unpacks the cache again.
    """
    if max(head_dim, value_dim) <= 256:
        return 16, 4
    return (32 if rows > 16 and shared_memory(device) >= _SHARED_OF_32_ROWS else 16), 8


def by_block(keys: CacheFormat, values: CacheFormat) -> bool:
    """Whether a tile of 32 tokens is a block, or in the windows, of both sides: the portable kernel is faster then."""
    if (keys.sink, keys.recent) != (values.sink, values.recent) or keys.sink % BLOCK_TOKENS:
        return False
    return all(
        fmt.block == BLOCK_TOKENS and (not fmt.quantized or fmt.group_size % LANES == 0) for fmt in (keys, values)
    )


#: The largest head_dim that ``attention_fields`` supports.
MOST_CHANNELS = 256
#: Bits of codes that ``attention_fields`` supports.
FIELD_BITS = (2, 3, 4, 8)


def fields_reason(call: AttentionCall[Any]) -> str:
    """Why ``attention_fields`` does not support a call, a message; empty if it does. Reads dtypes and shapes only."""
    dtype, keys, values = call.query.dtype, call.keys.format, call.values.format
    if dtype != call.keys.window.dtype or dtype != call.values.window.dtype:
        return "query and cache differ in dtype"
    if call.value_query is not None:
        return "a part of the query is multiplied by the values, as in latent attention"
    if dtype not in (torch.float16, torch.bfloat16):
        return "float32 has no tensor-core product of its own precision"
    if (keys.sink, keys.recent) != (values.sink, values.recent):
        return "keys and values have different windows"
    for cache in (call.keys, call.values):
        fmt, head_dim = cache.format, cache.window.shape[3]
        if not fmt.quantized:
            return f"the {fmt.role} cache is not quantized"
        if fmt.bits not in FIELD_BITS:
            return f"{fmt.bits} bits do not lie within ten bits of a half"
        if head_dim > MOST_CHANNELS:
            return f"head_dim {head_dim} is more than {MOST_CHANNELS}"
        if fmt.scale_dtype in UNWRITTEN_SCALES:
            return f"{fmt.scale_dtype} scales"
        if fmt.block != 32:
            return f"blocks of {fmt.block} tokens"
    if values.group_size != 32:
        return f"value groups of {values.group_size}"
    return ""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a call is divided among programs.

    Attributes:
        fields: whether ``attention_fields`` is used.
        rows: query rows of a tile.
        row_tiles: tiles per KV head.
        splits: programs that share the tokens of a sequence, those for the windows included.
        window_splits: how many of them are for the windows.
    """

    fields: bool
    rows: int
    row_tiles: int
    splits: int
    window_splits: int


def choose_tiling(
    device: torch.device,
    fields: bool,
    tile: int,
    sequences: int,
    rows: int,
    tokens: Any,
    config: FieldsConfig,
    splits: int | None,
) -> Tiling:
    """The tiling for ``sequences`` (b, h) of ``rows`` query rows each, ``tile`` of them to a program.

    The number of partial results, ``splits * sequences * rows``, is bounded independently of ``tokens``: with many rows
    there is one split (two with that of the windows); with few, there are as many programs as run at the same time,
    each with the rows of one tile.
    """
    row_tiles = triton.cdiv(rows, tile)
    windows = config.window_splits if fields else 0
    portable = 4 if tile <= 16 else 2  # with 32 rows a program takes more than half of the shared memory
    per_multiprocessor = config.programs if fields else portable
    shares: Any = splits
    if splits is None:
        shares = choose_splits(device, sequences * row_tiles, tokens, per_multiprocessor, windows)
    return Tiling(fields, tile, row_tiles, shares + windows, windows)


@dataclasses.dataclass(frozen=True)
class PartialLaunch:
    """A launch of a partial kernel, planned from shapes, strides and dtypes alone.

    Attributes:
        kernel: ``decode_partial_fields_kernel`` or ``decode_partial_portable_kernel``.
        reason: why it is not the fast one; empty if it is.
        sizes: integer arguments by name. They may be symbolic.
        constants: compile-time constants by name.
        grid: numbers of programs, ``(sequences, row tiles, splits)``.
        options: Triton's launch options, ``num_warps`` and ``maxnreg``.
    """

    kernel: Any
    reason: str
    sizes: dict[str, Any]
    constants: dict[str, Any]
    grid: tuple[Any, Any, Any]
    options: dict[str, int]

    @property
    def splits(self) -> Any:
        """Shares of a sequence's tokens: an int, or symbolic."""
        return self.grid[2]


def plan_partials(
    call: AttentionCall[Any], splits: int | None = None, config: FieldsConfig | None = None
) -> PartialLaunch:
    """Choose the partial kernel for a call and how it is launched: for eager calls and for Inductor alike.

    Args:
        call: of tensors, or of objects with their ``shape``, ``stride()``, ``dtype`` and ``device``. Sizes and strides
            of the batch and of the capacity may be symbolic; ``config`` must then be given. So may ``dropped``.
        splits: number of programs that share the blocks of a sequence, instead of the default.
        config: launch configuration of the fast kernel, instead of the default.
    """
    query, mask, keys, values = call.query, call.mask, call.keys.format, call.values.format
    batch, q_heads, rows, head_dim = query.shape
    heads = call.keys.window.shape[1]
    group = q_heads // heads
    value_dim = call.values.window.shape[3]
    k_capacity, v_capacity = call.keys.codes.shape[2], call.values.codes.shape[2]
    reason = fields_reason(call)
    config = config or choose_config(batch * heads, group * rows, head_dim, value_dim)
    if reason:
        tokens = torch.sym_max(_most_tokens(keys, k_capacity), _most_tokens(values, v_capacity))
    else:
        tokens = k_capacity * 32
    tile, warps = portable_tile(query.device, group * rows, head_dim, value_dim)
    if not reason:
        tile = 8 if min(group * rows, config.tile) <= 8 else 16
    tiling = choose_tiling(query.device, not reason, tile, batch * heads, group * rows, tokens, config, splits)
    sizes = {
        "H": heads,
        "G": group,
        "N": rows,
        "k_capacity": k_capacity,
        "v_capacity": v_capacity,
        **dict(zip(("v_first", "v_heads"), value_range(call), strict=True)),
        "dropped": call.dropped,
        **{f"query_stride_{x}": stride for x, stride in zip("bhnd", query.stride(), strict=True)},
        "mask_tokens": 0 if mask is None else mask.shape[-1],
        **{f"mask_stride_{x}": stride for x, stride in zip("bhns", _mask_strides(mask), strict=True)},
    }
    constants = {
        "CAUSAL": call.causal and (bool(reason) or rows > 1),  # in the fast kernel, a single row sees every token
        "SOFTCAP": call.softcap != 0.0,
        "MASK": 0 if mask is None else 1 if mask.dtype == torch.bool else 2,
    }
    if reason:
        # float32 has no tensor-core product of its own precision. 16-bit elements are exact in tf32, and a dequantized
        # key or value rounded to it keeps 11 bits with the range of bfloat16, which float16 operands would not have.
        single = call.keys.window.dtype == torch.float32 or query.dtype == torch.float32
        other = call.value_query
        sizes |= {
            f"value_query_stride_{x}": stride
            for x, stride in zip("bhnd", (0, 0, 0, 0) if other is None else other.stride(), strict=True)
        }
        constants |= {
            "VALUE_QUERY": other is not None,
            "PRECISION": "ieee" if single else "tf32",
            "ROWS": tiling.rows,
            "TOKENS": BLOCK_TOKENS,
            "BY_BLOCK": by_block(keys, values),
            **side_constants(keys, head_dim, "K_"),
            **side_constants(values, value_dim, "V_"),
        }
        kernel, options = decode_partial_portable_kernel, {"num_warps": warps}
    else:
        constants |= {
            "OPEN": mask is not None and call.open_from is not None,
            "HEADS": tiling.rows,
            "WINDOW_SPLITS": tiling.window_splits,
            "WINDOW_TOKENS": config.window_tokens,
            "BLOCKS": config.blocks,
            "STAGES": config.stages,
            "SINK": keys.sink,
            "RECENT": keys.recent,
            "K_BITS": keys.bits,
            "K_GROUP": keys.group_size,
            "K_ZERO": keys.has_zero,
            "K_D": head_dim,
            "K_SLICES": layout.word_slices(keys, head_dim),
            "V_BITS": values.bits,
            "V_ZERO": values.has_zero,
            "V_D": value_dim,
            "V_SLICES": layout.word_slices(values, value_dim),
        }
        kernel, options = decode_partial_fields_kernel, {"num_warps": config.num_warps}
        if config.maxnreg is not None:
            options["maxnreg"] = config.maxnreg
    return PartialLaunch(kernel, reason, sizes, constants, (batch * heads, tiling.row_tiles, tiling.splits), options)


def _most_tokens(fmt: CacheFormat, capacity: Any) -> Any:
    """About how many tokens a program can see of a cache with room for ``capacity`` blocks."""
    return fmt.window if fmt.rolls else capacity * fmt.block + fmt.window


def _mask_strides(mask) -> tuple[Any, Any, Any, Any]:
    """Strides of a mask that broadcasts to ``[B, Hq, N, tokens]``."""
    if mask is None:
        return 0, 0, 0, 0
    strides = [0 if isinstance(n, int) and n == 1 else s for n, s in zip(mask.shape, mask.stride(), strict=True)]
    strides[-1] = mask.stride()[-1]
    b, h, n, s = [0] * (4 - len(strides)) + strides
    return b, h, n, s


def decode_partials(
    call: AttentionCall[torch.Tensor], splits: int | None = None, config: FieldsConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first half of :func:`decode_attention`: what each split has found, as :func:`combine` takes it."""
    query, mask = call.query, call.mask
    launch = plan_partials(call, splits, config)
    rows, value_dim = query.shape[0] * query.shape[1] * query.shape[2], call.values.window.shape[3]
    count = launch.splits * rows
    flat = torch.empty(count * (value_dim + 2), dtype=torch.float32, device=query.device)
    part_out = flat[: count * value_dim].view(launch.splits, rows, value_dim)
    part_max, part_sum = flat[count * value_dim :].view(2, launch.splits, rows)
    if mask is None:
        mask = query  # is not read
    elif mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    # arguments of one kernel only; where there is none any tensor is passed, and not read
    name, own = ("value_query", call.value_query) if launch.reason else ("open_from", call.open_from)
    own = {name: query if own is None else own}
    with launching(query, launch.kernel):
        launch.kernel[launch.grid](
            query, *call.keys.encoded, *call.values.encoded, mask, **own,
            part_out=part_out, part_max=part_max, part_sum=part_sum,
            scale=call.scale, softcap=call.softcap, **launch.sizes, **launch.constants, **launch.options,
        )  # fmt: skip
    return part_out, part_max, part_sum


def decode_attention(
    call: AttentionCall[torch.Tensor], splits: int | None = None, config: FieldsConfig | None = None
) -> torch.Tensor:
    """Attention to all tokens of a cache, ``[B, Hq, N, Dv]`` in the query's dtype.

    Semantics are those of ``reference.decode_attention``. Nothing is read back to the host: the grid follows from the
    capacity, and programs without tokens write an empty result.

    Args:
        call: of tensors on one device; the fast kernel leaves the mask unread from ``call.open_from`` on.
        splits, config: as of :func:`plan_partials`.
    """
    out = call.query.new_empty((*call.query.shape[:3], call.values.window.shape[3]))
    if out.numel():
        combine(*decode_partials(call, splits, config), call.sink_logits, out)
    return out


def decode_attention_lse(
    call: AttentionCall[torch.Tensor], splits: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`decode_attention`, and the logarithm of the sum of exponentials ``[B, Hq, N]``, float32."""
    out = call.query.new_empty((*call.query.shape[:3], call.values.window.shape[3]))
    if not out.numel():
        return out, out.new_empty(out.shape[:3], dtype=torch.float32)
    part_out, part_max, part_sum = decode_partials(call, splits)
    combine(part_out, part_max, part_sum, call.sink_logits, out)
    sums = ((part_max + part_sum.log2()) * math.log(2)).logsumexp(0).view(out.shape[:3])  # scores are in units of log2
    if call.sink_logits is not None:
        sums = torch.logaddexp(sums, sinks_by_row(call.sink_logits, call.query).float())
    return out, sums
