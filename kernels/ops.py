"""The custom operators ``innerq::*``: schemas, shapes under fake tensors, and which implementation serves which device.

A compiled graph holds two of them a layer in decode, ``append_`` and ``decode_attention``, and ``key_statistics`` and
``prefill`` in prefill. A cache side is always passed as its four tensors (``kernels/layout.py``) and its format as a
string (``CacheFormat.spec``). Sizes of the cache are on the device, in ``state``; no operator of the decode step takes
a length, so that one graph serves all lengths.

CUDA tensors go to Triton (``kernels/triton``), CPU tensors to C++ that Inductor's toolchain compiles
(``kernels/cpu``), anything else and every format without a kernel to the reference.
"""

from __future__ import annotations

import functools
import os

import torch

from . import layout, masks, reference
from .formats import CacheFormat
from .internals.tensors import assert_async

_CACHE = "Tensor {0}codes, Tensor {0}scales, Tensor {0}window, Tensor {0}state"
_CACHE_MUT = "Tensor({1}!) {0}codes, Tensor({2}!) {0}scales, Tensor({3}!) {0}window, Tensor({4}!) {0}state"

SCHEMAS = {
    "query_moments": "(Tensor query, Tensor keys, Tensor start) -> Tensor",
    "norm_divisor": "(Tensor moments, str norm) -> Tensor",
    "query_profile": "(Tensor moments, Tensor? norm, int group_size) -> Tensor",
    "key_statistics": (
        "(Tensor keys, Tensor start, bool centre, bool normalize, str norm='channel', Tensor? divisor=None)"
        " -> (Tensor, Tensor)"
    ),
    "prefill": (
        "(Tensor x, Tensor start, Tensor? mean, Tensor? norm, SymInt capacity, str format, Tensor? query_profile=None)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "append_": (
        f"({_CACHE_MUT.format('k_', *'abcd')}, {_CACHE_MUT.format('v_', *'efgh')},"
        " Tensor key, Tensor value, str k_format, str v_format) -> ()"
    ),
    "append_one_": f"({_CACHE_MUT.format('', *'abcd')}, Tensor x, str format) -> ()",
    "truncate_": f"({_CACHE_MUT.format('', *'abcd')}, SymInt length, str format) -> ()",
    "rewind_": (
        f"({_CACHE_MUT.format('k_', *'abcd')}, {_CACHE_MUT.format('v_', *'efgh')},"
        " Tensor position, str k_format, str v_format) -> ()"
    ),
    "write_": (
        f"({_CACHE_MUT.format('', *'abcd')}, Tensor(e!)? mean, Tensor(f!)? norm, Tensor x, Tensor position,"
        " str format, Tensor? moments=None) -> ()"
    ),
    "open_from": "(Tensor mask, Tensor state, SymInt rows) -> Tensor",
    "decode_attention": (
        f"(Tensor query, {_CACHE.format('k_')}, {_CACHE.format('v_')}, Tensor? mask, Tensor? open_from,"
        " Tensor? sink_logits, float scale, float softcap, bool causal, str k_format, str v_format) -> Tensor"
    ),
    "row_linear": "(Tensor x, Tensor[] weights, Tensor?[] biases) -> Tensor",
    "dequantize": (f"({_CACHE.format('')}, Tensor? mean, Tensor? norm, SymInt length, str format) -> Tensor"),
}

_lib = torch.library.Library("innerq", "DEF")
for _name, _schema in SCHEMAS.items():
    _lib.define(_name + _schema, tags=(torch.Tag.needs_fixed_stride_order,))


def _impl(name):
    """Register the implementation of one operator for every real device."""

    def register(fn):
        _lib.impl(name, fn, "CompositeExplicitAutograd")
        return fn

    return register


def _fake(name):
    return torch.library.register_fake(f"innerq::{name}", lib=_lib)


@functools.cache
def reference_only() -> bool:
    """Whether ``INNERQ_KERNELS=reference`` asks for plain torch everywhere."""
    choice = os.environ.get("INNERQ_KERNELS", "all")
    if choice not in ("all", "reference"):
        raise ValueError(f"INNERQ_KERNELS={choice!r} is not allowed: it has to be 'all' or 'reference'")
    return choice == "reference"


def _backend(device: torch.device):
    """The module with the fast kernels for a device, or None."""
    if reference_only():
        return None
    if device.type == "cuda":
        from . import triton as backend

        return backend
    if device.type == "cpu":
        from . import cpu as backend

        return backend if backend.available() else None
    return None


# --- statistics of a prompt -------------------------------------------------------------------------------------

# have no kernels of their own: a graph that is traced holds what they are made of, and Inductor fuses it
for _fn in (reference.query_moments, reference.norm_divisor, reference.query_profile):
    _lib.impl(_fn.__name__, _fn, "CompositeImplicitAutograd")


@_impl("key_statistics")
def key_statistics(keys, start, centre, normalize, norm="channel", divisor=None):
    """Key mean and normalization of a prompt, each ``[B, H, D]`` float32. See ``reference.key_statistics``."""
    if keys.device.type == "cuda":
        from . import triton as backend

        if backend.supports_key_statistics(keys):
            return backend.key_statistics(keys, start, centre, normalize, norm, divisor)
    return reference.key_statistics(keys, start, centre=centre, normalize=normalize, norm=norm, divisor=divisor)


@_fake("key_statistics")
def _(keys, start, centre, normalize, norm="channel", divisor=None):
    shape = (keys.shape[0], keys.shape[1], keys.shape[3])
    return keys.new_empty(shape, dtype=torch.float32), keys.new_empty(shape, dtype=torch.float32)


# --- prefill ----------------------------------------------------------------------------------------------------


@_impl("prefill")
def prefill(x, start, mean, norm, capacity, format, query_profile=None):
    """Make a cache side of ``x [B, H, S, D]``; ``start [B]`` int32 counts padding tokens. See ``reference.prefill``."""
    fmt = CacheFormat.parse(format)
    backend = _backend(x.device)
    if backend is not None and backend.supports_prefill(fmt, x):
        return backend.prefill(x, start, mean, norm, capacity, fmt, query_profile)
    return reference.prefill(x, start, mean, norm, capacity, fmt, query_profile)


@_fake("prefill")
def _(x, start, mean, norm, capacity, format, query_profile=None):
    fmt = CacheFormat.parse(format)
    batch, heads, _, head_dim = x.shape
    shapes = layout.shapes(fmt, batch, heads, head_dim, capacity)
    return tuple(x.new_empty(shape, dtype=dtype or x.dtype) for shape, dtype in shapes.values())


# --- append -----------------------------------------------------------------------------------------------------


@_impl("append_")
def append_(k_codes, k_scales, k_window, k_state, v_codes, v_scales, v_window, v_state, key, value, k_format, v_format):
    """Write new keys (normalized) and values, ``[B, H, N, D]``, behind a cache's end. See ``reference.append_``."""
    k_fmt, v_fmt = CacheFormat.parse(k_format), CacheFormat.parse(v_format)
    k_cache, v_cache = (k_codes, k_scales, k_window, k_state), (v_codes, v_scales, v_window, v_state)
    backend = _backend(key.device)
    if backend is not None and backend.supports_append(k_fmt, key) and backend.supports_append(v_fmt, value):
        backend.append_(((k_cache, key, k_fmt), (v_cache, value, v_fmt)))
        return
    reference.append_(*k_cache, key, k_fmt)
    reference.append_(*v_cache, value, v_fmt)


@_fake("append_")
def _(*args):
    return None


@_impl("append_one_")
def append_one_(codes, scales, window, state, x, format):
    """``append_`` for one side of a cache: what an eager ``torch.cat`` does."""
    fmt = CacheFormat.parse(format)
    backend = _backend(x.device)
    if backend is not None and backend.supports_append(fmt, x):
        backend.append_((((codes, scales, window, state), x, fmt),))
    else:
        reference.append_(codes, scales, window, state, x, fmt)


@_fake("append_one_")
def _(*args):
    return None


@_impl("truncate_")
def truncate_(codes, scales, window, state, length, format):
    """Forget all tokens from logical position ``length`` on. See ``reference.truncate_``."""
    reference.truncate_(codes, scales, window, state, length, CacheFormat.parse(format))


@_fake("truncate_")
def _(*args):
    return None


@_impl("rewind_")
def rewind_(k_codes, k_scales, k_window, k_state, v_codes, v_scales, v_window, v_state, position, k_format, v_format):
    """``truncate_`` for keys and values to a length on the device, the one element of ``position``.

    A cache that is shorter already has missed tokens: an error on a CPU, a device-side assertion elsewhere.
    """
    sides = (
        ((k_codes, k_scales, k_window, k_state), CacheFormat.parse(k_format)),
        ((v_codes, v_scales, v_window, v_state), CacheFormat.parse(v_format)),
    )
    if position.device.type == "cuda":
        from . import triton as backend

        if not reference_only() and all(backend.supports_rewind(*side) for side in sides):
            backend.rewind_(sides, position)
            return
    position = position.reshape(())
    for cache, fmt in sides:
        reached = cache[3][..., layout.START] + cache[3][..., layout.LENGTH]
        if position.device.type == "cpu":
            if bool((reached == position).all()):
                continue
            if int(position) < 0:
                raise RuntimeError(f"innerq: a static cache was written at {int(position)}, which is before its start")
            if bool((reached < position).any()):
                raise RuntimeError(f"innerq: {_MISSED} (position {int(position)}, length {int(reached.min())})")
        else:
            assert_async(((reached >= position) & (position >= 0)).all(), f"innerq: {_MISSED}")
        reference.truncate_(*cache, position, fmt)


@_impl("write_")
def write_(codes, scales, window, state, mean, norm, x, position, format, moments=None):
    """Write ``x [B, H, N, D]`` (keys not normalized) into a preallocated cache.

    ``position`` holds the place of the first token, or of each. What was held from there on is forgotten. Where nothing
    is left, the key statistics and the query profile are made of ``x`` and the query ``moments``. Waits for the device.
    """
    fmt, places = CacheFormat.parse(format), position.reshape(-1).tolist()
    place = places[0]
    if places != list(range(place, place + len(places))) or len(places) not in (1, x.shape[2]):
        raise RuntimeError(f"innerq: a quantized cache is written at {places}, which do not follow one another")
    if place < 0:
        raise RuntimeError(f"innerq: a quantized cache is written at {place}: positions are counted from its start")
    if int((state[..., layout.START] + state[..., layout.LENGTH]).min()) < place:
        raise RuntimeError(f"innerq: {_MISSED} (position {place})")
    reference.truncate_(codes, scales, window, state, place, fmt)
    if place == 0 and (mean is not None or norm is not None):
        start = x.new_zeros(x.shape[0], dtype=torch.int32)
        divisor = None if moments is None else reference.norm_divisor(moments, fmt.norm)
        found = key_statistics(x, start, mean is not None, norm is not None, fmt.norm, divisor)
        for statistic, new in zip((mean, norm), found, strict=True):
            if statistic is not None:
                statistic.copy_(new)
    if place == 0:
        profile = None if moments is None else reference.query_profile(moments, norm, fmt.group_size)
        reference.set_query_profile_(window, fmt, profile, norm)
    append_one_(codes, scales, window, state, reference.normalize_keys(x, mean, norm), format)


@_fake("write_")
def _(*args):
    return None


_MISSED = "a static cache was written behind the tokens that it holds"


@_fake("rewind_")
def _(*args):
    return None


# --- decode_attention -------------------------------------------------------------------------------------------

# has no kernel of its own: a graph that is traced holds what it is made of
_lib.impl("open_from", masks.open_from, "CompositeImplicitAutograd")


@_impl("decode_attention")
def decode_attention(
    query,
    k_codes,
    k_scales,
    k_window,
    k_state,
    v_codes,
    v_scales,
    v_window,
    v_state,
    mask,
    open_from,
    sink_logits,
    scale,
    softcap,
    causal,
    k_format,
    v_format,
):
    """Attention of ``query [B, Hq, N, D]`` to a cache, ``[B, Hq, N, Dv]``. See ``reference.decode_attention``.

    ``open_from [B]`` int32 is what ``masks.open_from`` says of ``mask``. It changes nothing in the result.
    """
    k_fmt, v_fmt = CacheFormat.parse(k_format), CacheFormat.parse(v_format)
    k_cache, v_cache = (k_codes, k_scales, k_window, k_state), (v_codes, v_scales, v_window, v_state)
    args = (query, k_cache, v_cache, mask, scale, causal, softcap, sink_logits, k_fmt, v_fmt)
    backend = _backend(query.device)
    if backend is not None and backend.supports_decode(*args):
        return backend.decode_attention(*args, open_from=open_from)
    return reference.decode_attention(*args).to(query.dtype)


def decode_kernel(query, k_window, v_window, mask, k_fmt: CacheFormat, v_fmt: CacheFormat) -> str:
    """What serves `decode_attention` for tensors like these, and why nothing faster does, in words.

    Looks at devices, dtypes and head_dims only, so fake tensors will do.
    """
    backend = _backend(query.device)
    if backend is not None:
        return backend.decode_kernel(query, k_window, v_window, mask, k_fmt, v_fmt)
    if reference_only():
        return "reference: INNERQ_KERNELS=reference"
    if query.device.type == "cpu":
        return "reference: no C++ compiler, or INNERQ_CPU_KERNELS=0"
    return f"reference: there are no kernels for {query.device.type}"


@_fake("decode_attention")
def _(query, k_codes, k_scales, k_window, k_state, v_codes, v_scales, v_window, *args):
    return query.new_empty((*query.shape[:3], v_window.shape[3]))


# --- dequantize -------------------------------------------------------------------------------------------------


@_impl("dequantize")
def dequantize(codes, scales, window, state, mean, norm, length, format):
    """The logical tensor of a cache, ``[B, H, length, D]`` in the cache's dtype; padding positions are zero."""
    return reference.dequantize(codes, scales, window, state, mean, norm, length, CacheFormat.parse(format))


@_fake("dequantize")
def _(codes, scales, window, state, mean, norm, length, format):
    return window.new_empty((window.shape[0], window.shape[1], length, window.shape[3]))


# --- linear layers ----------------------------------------------------------------------------------------------


@_impl("row_linear")
def row_linear(x, weights, biases):
    """Linear layers of one row, side by side: ``x [..., K]``, weights ``[N_i, K]`` to ``[..., sum N_i]``.

    All dimensions of ``x`` but the last are 1. Sums are float32, and rounded once.
    """
    if x.device.type == "cuda" and not reference_only():
        from . import triton as backend

        if backend.supports_row_linear(x, weights, biases):
            return backend.row_linear(x, weights, biases)
    outputs = [torch.nn.functional.linear(x, *layer) for layer in zip(weights, biases, strict=True)]
    return torch.cat(outputs, -1)


@_fake("row_linear")
def _(x, weights, biases):
    return x.new_empty((*x.shape[:-1], sum(weight.shape[0] for weight in weights)))
