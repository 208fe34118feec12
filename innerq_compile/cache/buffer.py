"""Preallocated caches that are quantized: :func:`empty_cache` in place of ``torch.zeros``.

An :class:`InnerQBuffer` has the shape of the dense buffer that it stands for, ``[B, H, max_tokens, D]``, and holds the
tokens written so far, quantized. Programs write it as they write a dense one: ``buffer[:, :, position] = k``,
``buffer[:, :, a:b] = k``, ``buffer[:, :, a:b].copy_(k)``, ``buffer.index_copy_(2, position, k)``. Tokens are written
in order: at the end of what is held, or before it, which forgets what lay behind. Positions that hold nothing read as
zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..config import InnerQConfig
from ..errors import InnerQError, UnsupportedOperation
from ..kernels import layout, reference
from ..kernels.formats import Role, preallocated_capacity
from ..kernels.internals.tensors import make_wrapper, schema_of, tree_map_only, unmark_sizes
from ..kernels.schemas import arguments_of
from .dispatch import Operations
from .indexing import consecutive, token_index, token_range
from .storage import CacheStorage
from .tensor import InnerQTensor
from .traced import TracedCache, is_traced

aten = torch.ops.aten

#: What writes to a buffer, or keeps its quantized form.
OPERATIONS = Operations()


def empty_cache(
    batch: int,
    heads: int,
    max_tokens: int,
    head_dim: int,
    *,
    role: Role,
    config: InnerQConfig | str = "base",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> InnerQBuffer:
    """Create an empty preallocated quantized cache, in place of ``torch.zeros(batch, heads, max_tokens, head_dim)``.

    Args:
        batch: Number of sequences.
        heads: Number of KV heads.
        max_tokens: Number of tokens that there is room for.
        head_dim: Elements of a key or value: a multiple of 16, up to 256.
        role: ``"key"`` or ``"value"``.
        config: A config or the name of a preset.
        dtype: The dtype that it has for the program: float16, bfloat16 or float32.
        device: The device of the inner tensors; torch's default device if None.

    Returns:
        A buffer ``[batch, heads, max_tokens, head_dim]`` that reads as zero.

    Raises:
        InnerQError: If a cache cannot have this size, dtype or format.

    Example:
        >>> keys = empty_cache(1, 8, 4096, 128, role="key", dtype=torch.bfloat16, device="cuda")
        >>> keys[:, :, :100] = prompt_keys
    """
    if role not in ("key", "value"):
        raise InnerQError(f"role={role!r} is not allowed: it has to be 'key' or 'value'")
    for name, size in (("batch", batch), ("heads", heads), ("max_tokens", max_tokens)):
        if not isinstance(size, int) or size < 1:
            raise InnerQError(f"{name}={size!r} is not allowed: it has to be a whole number, 1 or more")
    config = InnerQConfig.preset(config) if isinstance(config, str) else config
    fmt = config.format_for(role, head_dim, dtype)
    device = torch.empty((), device=device).device
    capacity = preallocated_capacity(fmt, max_tokens)
    tensors = reference.empty_cache(fmt, batch, heads, head_dim, capacity, dtype, device)
    mean = norm = None
    if role == "key":
        zeros = torch.zeros((batch, heads, head_dim), device=device)
        mean = zeros if config.centre_keys else None
        norm = torch.ones_like(zeros) if config.normalize_keys else None
    storage = CacheStorage(dataclasses.replace(tensors, mean=mean, norm=norm), max_tokens)
    return InnerQBuffer(storage, max_tokens)


class InnerQBuffer(InnerQTensor):
    """A preallocated quantized cache ``[B, H, max_tokens, D]``, or a slice of one along the tokens.

    Created by :func:`empty_cache`. Programs write it as they write a dense buffer: ``buffer[:, :, position] = k``,
    ``buffer[:, :, a:b] = k``, ``buffer[:, :, a:b].copy_(k)``, ``buffer.index_copy_(2, position, k)``. Tokens have to be
    written in order, without a gap; writing before the end of the tokens held discards those after the written ones.
    Positions that hold no token read as zero.
    """

    _offset: int

    @staticmethod
    def __new__(cls, storage: CacheStorage | TracedCache, length: int, offset: int = 0):
        tensor = make_wrapper(
            cls,
            (storage.batch, storage.heads, length, storage.head_dim),
            dtype=storage.dtype,
            device=storage.device,
            requires_grad=False,
        )
        tensor._storage, tensor._blocks, tensor._offset = storage, storage.blocks, offset
        # it never grows: its capacity is a constant of a graph
        unmark_sizes(storage.blocks)
        return tensor

    def __init__(self, storage: CacheStorage | TracedCache, length: int, offset: int = 0) -> None:
        pass

    @property
    def tokens_held(self) -> int:
        """Number of tokens held by the longest sequence. Synchronizes with the device."""
        return int(self._storage.tensors.state[..., layout.LENGTH].max())

    def dequantize(self) -> torch.Tensor:
        """A dense copy ``[B, H, max_tokens, D]``. Positions that hold no token are zero."""
        return _dense(self)

    def __tensor_flatten__(self):
        if self._offset or self.shape[2] != self._storage.length:
            raise InnerQError(
                "a slice of a quantized buffer cannot be an input of a compiled function: pass the whole buffer"
            )
        return super().__tensor_flatten__()

    @staticmethod
    def __tensor_unflatten__(inner, context, outer_size, outer_stride):
        return InnerQBuffer(TracedCache.of(inner, context, outer_size), outer_size[2])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        handler = OPERATIONS.handler(func, args)
        if handler is not None and isinstance(args[0], InnerQBuffer):
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if schema_of(func).is_mutable:
            written = args[0] if args and isinstance(args[0], InnerQBuffer) else None
            if written is not None:
                raise _refusal(func, written)
        args, kwargs = tree_map_only(InnerQBuffer, _dense, (args, kwargs))
        return func(*args, **kwargs)

    def __getitem__(self, index):
        if not is_traced(self):
            window = token_range(index, self.shape)
            if window is not None:
                return InnerQBuffer(self._storage, window[1] - window[0], self._offset + window[0])
        return torch.Tensor.__getitem__(self, index)

    def __setitem__(self, index, value):
        if is_traced(self):
            return  # Dynamo asks for shapes only
        position = token_index(index, self.shape)
        if position is None:
            raise _refusal(f"tensor[{index}] = value", self)
        write(self, *position, value)

    def narrow(self, dim, start, length):
        """``torch.Tensor.narrow``; along the tokens the result can be written to."""
        if dim not in (2, -2) or is_traced(self):
            return _dense(self).narrow(dim, start, length)
        return self[:, :, start : start + length]

    def repeat_interleave(self, repeats, dim=None, *, output_size=None):
        """``torch.Tensor.repeat_interleave``, dense."""
        return _dense(self).repeat_interleave(repeats, dim=dim, output_size=output_size)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = InnerQBuffer(self._storage.copy(), self.shape[2], self._offset)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return InnerQBuffer, (self._storage, self.shape[2], self._offset)


torch.serialization.add_safe_globals([InnerQBuffer])


def _dense(tensor: InnerQBuffer) -> torch.Tensor:
    storage = tensor._storage
    if isinstance(storage, TracedCache):
        return storage.dense(tensor.shape)
    end = tensor._offset + tensor.shape[2]
    return storage.dequantize(end)[:, :, tensor._offset :]


def write(tensor: InnerQBuffer, first: int, count: int, value: torch.Tensor) -> None:
    """Write ``value``, which broadcasts to ``[B, H, count, D]``, at the tokens ``first .. first + count``.

    Raises:
        UnsupportedOperation: where that would leave a gap behind the tokens that are held.
    """
    storage = tensor._storage
    if count == 0:
        return
    if isinstance(value, InnerQTensor):
        value = value.dequantize()
    value = torch.as_tensor(value, device=tensor.device).expand(*tensor.shape[:2], count, tensor.shape[3])
    held = int((storage.tensors.state[..., layout.START] + storage.tensors.state[..., layout.LENGTH]).min())
    first += tensor._offset
    if first > held:
        raise UnsupportedOperation(
            f"a write at token {first} would leave a gap in a quantized cache that holds {held} tokens: write tokens "
            "in order, or use a dense buffer"
        )
    write_(storage, value.to(storage.dtype), torch.tensor([first], device=tensor.device))


def write_(storage: CacheStorage, value: torch.Tensor, position: torch.Tensor) -> None:
    torch.ops.innerq.write_(*arguments_of("write_", storage.tensors, value, position))


def _refusal(what: Any, tensor: InnerQBuffer) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{what} would write into a quantized cache of shape {tuple(tensor.shape)}: allowed are writes of whole tokens "
        "in order, tensor[:, :, position] = k (or a mask of tokens that follow one another), tensor[:, :, a:b] = k, "
        " index_copy_(2, position, k), and zero_()"
    )


# --- operations -------------------------------------------------------------------------------------------------------


@OPERATIONS.held(aten.index_copy_.default)
def _index_copy_(tensor, dim, index, source):
    places = consecutive(index, tensor.shape[2]) if dim in (2, -2) else None
    if places is None:
        return NotImplemented
    write(tensor, *places, source)
    return tensor


@OPERATIONS.held(aten.index_put_.default, aten._index_put_impl_.default)
def _index_put_(tensor, indices, values, accumulate=False, *unsafe):
    if accumulate or len(indices) != 3 or indices[0] is not None or indices[1] is not None:
        return NotImplemented
    places = consecutive(indices[2], tensor.shape[2])
    if places is None:
        return NotImplemented
    write(tensor, *places, values)
    return tensor


@OPERATIONS.held(aten.copy_.default)
def _copy_(tensor, source, non_blocking=False):
    write(tensor, 0, tensor.shape[2], source)
    return tensor


@OPERATIONS.held(aten.zero_.default)
def _zero_(tensor):
    if tensor._offset:
        return NotImplemented
    tensor._storage.tensors.state.zero_()
    return tensor


@OPERATIONS.held(aten.slice.Tensor)
def _slice(tensor, dim=0, start=None, end=None, step=1):
    if dim % 4 != 2 or step != 1:
        return NotImplemented
    return tensor[:, :, slice(start, end)]


@OPERATIONS.traced(aten.alias.default, aten.detach.default)
@OPERATIONS.held(aten.alias.default, aten.detach.default)
def _alias(tensor):
    return InnerQBuffer(tensor._storage, tensor.shape[2], tensor._offset)


@OPERATIONS.held(aten.clone.default)
def _clone(tensor, *, memory_format=None):
    return InnerQBuffer(tensor._storage.copy(), tensor.shape[2], tensor._offset)


@OPERATIONS.held(aten._to_copy.default)
def _to_copy(tensor, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    if layout not in (None, torch.strided):
        return NotImplemented
    if dtype is not None and dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return NotImplemented
    storage = tensor._storage.converted(dtype, device, non_blocking=non_blocking, pin_memory=bool(pin_memory))
    return InnerQBuffer(storage, tensor.shape[2], tensor._offset)


@OPERATIONS.traced(
    aten.index_copy_.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.copy_.default,
    aten.zero_.default,
)
def _written(tensor, *args, **kwargs):
    return tensor


__all__ = ["InnerQBuffer", "empty_cache", "write"]
