"""The custom operators ``innerq::*``: their implementations, and what they return under fake tensors.

A compiled graph holds two of them a layer in decode, ``append_`` and ``decode_attention``, and ``key_statistics`` and
``prefill`` in prefill. What their arguments are is in ``kernels/schemas.py``, which kernels serve them in
``kernels/dispatch.py``. The size of a cache is on the device, in ``state``; no operator of the decode step takes a
length, so that one graph serves all lengths.

An implementation takes the values of a call: a cache is one object, ``CacheTensors``, that knows its format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import dispatch, layout, masks, reference
from .attention_call import AttentionCall
from .cache import ENCODED, Cache
from .causal_attention import causal_attention
from .formats import CacheFormat
from .schemas import SCHEMAS

_lib = torch.library.Library("innerq", "DEF")
for _schema in SCHEMAS.values():
    _lib.define(_schema.name + _schema.text, tags=(torch.Tag.needs_fixed_stride_order,))

_Function = Callable[..., Any]


def _of_values(name: str, function: _Function) -> _Function:
    """What an operator is to be registered with: ``function`` of the values of its arguments."""
    values_of = SCHEMAS[name].values
    return lambda *arguments: function(*values_of(arguments))


def _impl(name: str) -> Callable[[_Function], _Function]:
    """Register the implementation of one operator for every real device."""

    def register(function: _Function) -> _Function:
        _lib.impl(name, _of_values(name, function), "CompositeExplicitAutograd")
        return function

    return register


def _fake(name: str) -> Callable[[_Function], _Function]:
    """Register what an operator returns under fake tensors."""

    def register(function: _Function) -> _Function:
        torch.library.register_fake(f"innerq::{name}", _of_values(name, function), lib=_lib)
        return function

    return register


def _writes_in_place(*values: Any) -> None:
    """What an operator without results returns under fake tensors."""


for _schema in SCHEMAS.values():
    if _schema.returns == "()":
        _fake(_schema.name)(_writes_in_place)

# have no kernels of their own: a graph that is traced holds what they are made of, and Inductor fuses it
for _made_of in (reference.query_moments, reference.norm_divisor, reference.query_profile, masks.open_from):
    _lib.impl(_made_of.__name__, _made_of, "CompositeImplicitAutograd")


# --- a prompt ---------------------------------------------------------------------------------------------------


@_impl("key_statistics")
def key_statistics(
    keys: torch.Tensor,
    start: torch.Tensor,
    centre: bool,
    normalize: bool,
    norm: str = "channel",
    divisor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and normalization of the keys of a prompt, each ``[B, H, D]`` float32. See ``reference.key_statistics``."""
    backend = dispatch.choose(keys.device, lambda b: b.supports_key_statistics(keys))
    return backend.key_statistics(keys, start, centre=centre, normalize=normalize, norm=norm, divisor=divisor)


@_fake("key_statistics")
def _(keys: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (keys.shape[0], keys.shape[1], keys.shape[3])
    return keys.new_empty(shape, dtype=torch.float32), keys.new_empty(shape, dtype=torch.float32)


@_impl("prefill")
def prefill(
    x: torch.Tensor,
    start: torch.Tensor,
    mean: torch.Tensor | None,
    norm: torch.Tensor | None,
    capacity: int,
    format: str,
    query_profile: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """A cache made of a prompt ``x [B, H, S, D]``, see ``reference.prefill``: its tensors of ``cache.ENCODED``.

    Raises:
        ValueError: where the query profile that the mode uses is not given; the caller keeps it with the others.
    """
    fmt = CacheFormat.parse(format)
    if fmt.uses_queries and (query_profile is None or query_profile.dtype is not torch.int8):
        raise ValueError(f"a cache of mode {fmt.mode} is made with its query profile, a tensor of int8")
    backend = dispatch.choose(x.device, lambda b: b.supports_prefill(fmt, x))
    return backend.prefill(x, start, mean, norm, capacity, fmt, query_profile).encoded


@_fake("prefill")
def _(
    x: torch.Tensor, start: Any, mean: Any, norm: Any, capacity: Any, format: str, *others: Any
) -> tuple[torch.Tensor, ...]:
    batch, heads, _, head_dim = x.shape
    shapes = layout.shapes(CacheFormat.parse(format), batch, heads, head_dim, capacity)
    encoded = (shapes[name] for name in ENCODED)
    return tuple(x.new_empty(shape, dtype=dtype or x.dtype) for shape, dtype in encoded)


_impl("causal_attention")(causal_attention)


@_fake("causal_attention")
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any) -> torch.Tensor:
    batch, heads, rows, _ = query.shape
    return query.new_empty((batch, rows, heads, value.shape[3])).transpose(1, 2)


# --- writing ----------------------------------------------------------------------------------------------------


@_impl("append_")
def append_(keys: Cache, values: Cache, key: torch.Tensor, value: torch.Tensor, drop: int = 0) -> None:
    """Write new keys (normalized) and values, ``[B, H, N, D]``, behind a cache's end. See ``reference.append_``."""
    backend = dispatch.choose(
        key.device, lambda b: b.supports_append(keys.format, key) and b.supports_append(values.format, value)
    )
    backend.append_(((keys, key), (values, value)), drop)


@_impl("append_one_")
def append_one_(cache: Cache, x: torch.Tensor) -> None:
    """``append_`` for one side of a cache: what an eager ``torch.cat`` does."""
    backend = dispatch.choose(x.device, lambda b: b.supports_append(cache.format, x))
    backend.append_(((cache, x),))


@_impl("truncate_")
def truncate_(cache: Cache, length: int) -> None:
    """Forget all tokens from logical position ``length`` on. See ``reference.truncate_``."""
    reference.truncate_(cache, length)


@_impl("rewind_")
def rewind_(keys: Cache, values: Cache, position: torch.Tensor) -> None:
    """``truncate_`` for keys and values to a length on the device, the one element of ``position``.

    A cache that is shorter already has missed tokens: an error on a CPU, a device-side assertion elsewhere.
    """
    backend = dispatch.choose(position.device, lambda b: b.supports_rewind(keys) and b.supports_rewind(values))
    backend.rewind_((keys, values), position)


@_impl("write_")
def write_(cache: Cache, x: torch.Tensor, position: torch.Tensor, moments: torch.Tensor | None = None) -> None:
    """Write ``x [B, H, N, D]`` (keys not normalized) into a preallocated cache. Waits for the device.

    What was held from there on is forgotten. Where nothing is left, the key statistics and the query profile are made
    of ``x`` and of ``moments``.

    Args:
        cache: the cache.
        x: the tokens.
        position: the place of the first token, or of each.
        moments: ``[B, H, 2, D]`` of ``reference.query_moments``, or None where they were not measured.

    Raises:
        RuntimeError: where that would leave a gap, or positions are not consecutive.
    """
    fmt, mean, norm, places = cache.format, cache.mean, cache.norm, position.reshape(-1).tolist()
    place = places[0]
    if places != list(range(place, place + len(places))) or len(places) not in (1, x.shape[2]):
        raise RuntimeError(f"innerq: a quantized cache is written at {places}, which are not consecutive")
    if place < 0:
        raise RuntimeError(f"innerq: a quantized cache is written at {place}: positions are counted from its start")
    if int(layout.ends(cache.state).min()) < place:
        raise RuntimeError(f"innerq: {reference.MISSED} (position {place})")
    reference.truncate_(cache, place)
    if place == 0 and (mean is not None or norm is not None):
        start = x.new_zeros(x.shape[0], dtype=torch.int32)
        divisor = None if moments is None else reference.norm_divisor(moments, fmt.norm)
        found = key_statistics(x, start, mean is not None, norm is not None, fmt.norm, divisor)
        for statistic, new in zip((mean, norm), found, strict=True):
            if statistic is not None:
                statistic.copy_(new)
    if place == 0 and cache.query_profile is not None:
        if moments is None:
            moments = reference.default_moments(x.shape[0], x.shape[1], x.shape[3], x.device)
        cache.query_profile.copy_(reference.query_profile(moments, norm, fmt.group_size))
    append_one_(cache, reference.normalize_keys(x, mean, norm))


# --- reading ----------------------------------------------------------------------------------------------------


@_impl("decode_attention")
def decode_attention(*values: Any) -> torch.Tensor:
    """Attention of queries to a cache, ``[B, Hq, N, Dv]`` in their dtype. The values are those of `AttentionCall`."""
    call: AttentionCall[torch.Tensor] = AttentionCall(*values)
    return dispatch.choose(call.query.device, lambda b: b.supports_decode(call)).decode_attention(call)


@_fake("decode_attention")
def _(*values: Any) -> torch.Tensor:
    call: AttentionCall[torch.Tensor] = AttentionCall(*values)
    return call.query.new_empty((*call.query.shape[:3], call.values.window.shape[3]))


@_impl("decode_attention_lse")
def decode_attention_lse(*values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`decode_attention`, and with it by what the exponentials of the scores were divided.

    The second result is the logarithm of their sum, ``[B, Hq, N]`` in ``AttentionCall.compute_dtype``, that of a sink
    logit included; minus infinity in a row to which no token is visible. By it the results of several parts of the
    tokens are added up.
    """
    call: AttentionCall[torch.Tensor] = AttentionCall(*values)
    return dispatch.choose(call.query.device, lambda b: b.supports_decode(call)).decode_attention_lse(call)


@_fake("decode_attention_lse")
def _(*values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    call: AttentionCall[torch.Tensor] = AttentionCall(*values)
    rows = call.query.shape[:3]
    out = call.query.new_empty((*rows, call.values.window.shape[3]))
    return out, call.query.new_empty(rows, dtype=call.compute_dtype)


@_impl("dequantize")
def dequantize(cache: Cache, length: int, dropped: int = 0) -> torch.Tensor:
    """The logical tensor of a cache, ``[B, H, length, D]`` in the cache's dtype; padding positions are zero."""
    return reference.dequantize(cache, length, dropped=dropped)


@_fake("dequantize")
def _(cache: Cache, length: Any, dropped: Any = 0) -> torch.Tensor:
    window = cache.window
    return window.new_empty((window.shape[0], window.shape[1], length, window.shape[3]))


# --- linear layers ----------------------------------------------------------------------------------------------


@_impl("row_linear")
def row_linear(x: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor | None]) -> torch.Tensor:
    """Linear layers of one row, side by side: ``x [..., K]``, weights ``[N_i, K]`` to ``[..., sum N_i]``.

    All dimensions of ``x`` but the last are 1. Sums are float32, and rounded once.
    """
    backend = dispatch.choose(x.device, lambda b: b.supports_row_linear(x, weights, biases))
    return backend.row_linear(x, weights, biases)


@_fake("row_linear")
def _(x: torch.Tensor, weights: list[torch.Tensor], biases: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], sum(weight.shape[0] for weight in weights)))
