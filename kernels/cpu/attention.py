"""Calls of the C++ kernel of decode attention."""

from __future__ import annotations

import torch

from ..attention_call import AttentionCall, sinks_by_row, value_range
from ..backend import Kernel, KernelChoice
from ..formats import LANES
from .arguments import DECODE, cache_fields, is_plain
from .codegen import CPP_TYPES
from .compiled import pair_functions

_MASK_KINDS = {torch.bool: 1, torch.float32: 2, torch.bfloat16: 3, torch.float16: 4}
_NO_STRIDE = (0, 0, 0, 0)


def supports_decode(call: AttentionCall[torch.Tensor]) -> bool:
    """Whether :func:`decode_attention` supports a call. The first call for a pair of formats compiles the kernel."""
    keys, values, mask = call.keys, call.values, call.mask
    window = keys.window
    head_dim = window.shape[3]
    return (
        not _refusal(call)
        and call.query.shape[3] == head_dim
        and (mask is None or (mask.dim() <= 4 and mask.shape[-1] > 0))
        and is_plain(keys)
        and is_plain(values)
        and pair_functions(keys.format, values.format, head_dim, values.window.shape[3], window.dtype) is not None
    )


def decode_kernel(call: AttentionCall[torch.Tensor]) -> KernelChoice:
    """Which kernel is used for a call, and why."""
    reason = _refusal(call)
    return KernelChoice(Kernel.REFERENCE if reason else Kernel.CPP, reason)


def _refusal(call: AttentionCall[torch.Tensor]) -> str:
    """Why the kernel does not support the dtypes and head_dims of a call, as a message; empty if it does."""
    window, v_window, mask = call.keys.window, call.values.window, call.mask
    if window.dtype not in CPP_TYPES:
        return f"no C++ kernel for {window.dtype}"
    if call.query.dtype is not window.dtype or v_window.dtype is not window.dtype:
        return "query and cache differ in dtype"
    if call.value_query is not None and call.value_query.dtype is not window.dtype:
        return "the parts of the query differ in dtype"
    if window.shape[3] % LANES or v_window.shape[3] % LANES:
        return f"head_dim is no multiple of {LANES}"
    if mask is not None and mask.dtype not in _MASK_KINDS:
        return f"no C++ kernel for a mask of {mask.dtype}"
    return ""


def decode_attention(call: AttentionCall[torch.Tensor]) -> torch.Tensor:
    """Attention to all tokens of a cache, ``[B, Hq, N, Dv]`` in the query's dtype.

    See ``reference.decode_attention``. A row to which no token is visible gives zero, also with an additive mask of
    -inf. ``call.open_from`` is not used: the mask is read for all tokens. Tokens that were dropped take no time.

    Raises:
        MemoryError: if there is no memory for partial results.
    """
    return _attend(call, None)


def decode_attention_lse(call: AttentionCall[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the logarithm of the sum of the exponentials, ``[B, Hq, N]`` float32: see the reference."""
    sums = call.query.new_empty(call.query.shape[:3], dtype=torch.float32)
    return _attend(call, sums), sums


def _attend(call: AttentionCall[torch.Tensor], sums: torch.Tensor | None) -> torch.Tensor:
    """Attention; ``sums`` is filled, if it is given."""
    query, keys, values, mask, sink_logits = call.query, call.keys, call.values, call.mask, call.sink_logits
    other = call.value_query
    batch, q_heads, rows, head_dim = query.shape
    heads, value_dim = keys.window.shape[1], values.window.shape[3]
    functions = pair_functions(keys.format, values.format, head_dim, value_dim, query.dtype)
    assert functions is not None, "supports_decode was not asked"
    out = query.new_empty((batch, q_heads, rows, value_dim))
    mask_ptr, mask_kind, mask_length, mask_stride = 0, 0, 0, _NO_STRIDE
    if mask is not None:
        mask = mask.expand(batch, q_heads, rows, mask.shape[-1])
        mask_ptr, mask_kind = mask.data_ptr(), _MASK_KINDS[mask.dtype]
        mask_length, mask_stride = mask.shape[3], mask.stride()
    sink_ptr = 0
    if sink_logits is not None:
        sink_logits = sinks_by_row(sink_logits, query).to(torch.float32).contiguous()
        sink_ptr = sink_logits.data_ptr()
    failed = functions.decode(
        DECODE.pack(
            query.data_ptr(),
            out.data_ptr(),
            *cache_fields(keys),
            *cache_fields(values),
            mask_ptr,
            sink_ptr,
            mask_kind,
            mask_length,
            *mask_stride,
            batch,
            heads,
            q_heads // heads,
            rows,
            *query.stride(),
            call.causal,
            torch.get_num_threads(),
            call.dropped,
            call.scale,
            call.softcap or 0.0,
            *((0, *_NO_STRIDE) if other is None else (other.data_ptr(), *other.stride())),
            *value_range(call),
            0 if sums is None else sums.data_ptr(),
        )
    )
    if failed:
        raise MemoryError("decode_attention: no memory for partial results")
    return out
