"""The cache as a tensor: :class:`InnerQTensor` has the shape and dtype of what it replaces and holds it quantized.

It gives a program with quantized caches its meaning; the compiler gives it speed. What programs do with caches
(``cat``, crop, beam reorder, copies, moves, saving) acts on the quantized form. Any other operation sees the
dequantized tensor: slower, never wrong. In-place operations that the quantized form cannot follow raise an error.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..config import InnerQConfig
from ..errors import InnerQError, UnsupportedOperation
from ..kernels import layout, reference
from ..kernels import ops as _ops  # noqa: F401  (defines the innerq:: operators)
from ..kernels.formats import CacheFormat, Role
from ..kernels.internals.tensors import (
    FakeTensor,
    make_wrapper,
    mark_sizes,
    no_torch_function,
    schema_of,
    tree_map_only,
)
from ..kernels.pairs import Pairs
from .storage import CacheStorage, Extent, quantize, restore

aten = torch.ops.aten

#: Operations that keep the quantized form: overload -> function(*args, **kwargs). Filled by `_handles` below.
_HANDLERS: dict[Any, Any] = {}


class InnerQTensor(torch.Tensor):
    """A quantized key or value cache with the logical shape ``[B, H, S, D]``, or ``[B, S, H, D]``.

    Programs keep their caches in either layout; ``tokens_dim`` (2 or 1) says which. The storage is the same for both.

    Made by compiled prefill graphs, or from a dense tensor by :meth:`from_dense`. Several tensors may share one
    storage; appending to the longest of them writes in place, appending to a stale one copies first. A shorter view of
    a storage that has grown since reads tokens that have meanwhile left the recent window in their quantized form.

    Views other than crops (``cache[0]``, ``cache.transpose(1, 2)``) are dense copies: what is written to them does not
    reach the cache.
    """

    _storage: CacheStorage
    _blocks: torch.Tensor
    _extent: Extent
    _tokens_dim: int = 2

    @staticmethod
    def __new__(cls, storage: CacheStorage, length: int, tokens_dim: int = 2):
        batch, heads = storage.state.shape[:2]
        tensor = make_wrapper(
            cls,
            (batch, heads, length, storage.head_dim) if tokens_dim == 2 else (batch, length, heads, storage.head_dim),
            dtype=storage.dtype,
            device=storage.state.device,
            requires_grad=False,
        )
        tensor._storage = storage
        tensor._blocks = storage.blocks
        tensor._extent = storage.extent(length)
        tensor._tokens_dim = tokens_dim
        # For Dynamo: the length grows with every token, so it is a symbol from the first graph on. Heads and head_dim
        # are numbers in every graph, also with dynamic=True and when another model had others: the format needs them.
        mark_sizes(tensor, {tokens_dim}, {3 - tokens_dim, 3})
        return tensor

    def __init__(self, storage: CacheStorage, length: int, tokens_dim: int = 2) -> None:
        pass

    @classmethod
    def from_dense(
        cls,
        dense: torch.Tensor,
        config: InnerQConfig | str = "base",
        *,
        role: Role,
        start: torch.Tensor | None = None,
        tokens_dim: int = 2,
        norm: str | None = None,
        queries: torch.Tensor | None = None,
    ) -> InnerQTensor:
        """Quantize a dense cache tensor.

        Args:
            dense: ``[B, H, S, D]``, float16, bfloat16 or float32.
            config: a config or the name of a preset.
            role: ``"key"`` or ``"value"``.
            start: ``[B]``, the number of padding tokens in front of each sequence. They are dropped and read as zero.
            tokens_dim: the dimension of ``dense`` that the tokens are along: 2, or 1 for ``[B, S, H, D]``.
            norm: of keys, which channels share a normalization: ``channel`` (each by itself), ``half<n>`` or
                ``interleaved<n>`` (the pairs of a rotary embedding on the first n channels, so that the normalization
                can be folded into the projections). None takes ``channel``, or ``paper`` where the config says so.
            queries: for keys, ``[B, Hq, N, D]``, those of the last ``N`` tokens as they are multiplied with the keys.
                Mode ``steered`` keeps small what they see of the errors. None: nothing is known of them.

        Raises:
            InnerQError: for a shape, dtype or format that a cache cannot have.
        """
        if role not in ("key", "value"):
            raise InnerQError(f"role={role!r} is not allowed: it has to be 'key' or 'value'")
        if tokens_dim not in (1, 2):
            raise InnerQError(
                f"tokens_dim={tokens_dim!r} is not allowed: it has to be 2 for a cache [B, H, S, D], or 1 for "
                "[B, S, H, D]; permute other layouts"
            )
        if dense.dim() != 4:
            raise InnerQError(
                f"a cache has the shape [B, H, S, D], or [B, S, H, D] with tokens_dim=1; got {tuple(dense.shape)}"
            )
        by_head = with_tokens_at(dense.detach(), 2, tokens_dim)
        if not isinstance(config, InnerQConfig):
            config = InnerQConfig.preset(config)
        if start is not None:
            _check_start(start, by_head)
        if norm is not None:
            _check_norm(norm, role, dense.shape[3])
        if queries is not None:
            _check_queries(queries, role, by_head)
        storage = quantize(by_head, config, role, start, norm=norm, queries=queries)
        return cls(storage, dense.shape[tokens_dim], tokens_dim)

    # --- what a user may ask ------------------------------------------------------------------------------------

    @property
    def format(self) -> CacheFormat:
        """The cache format, see :class:`CacheFormat`."""
        return self._storage.format

    @property
    def nbytes_held(self) -> int:
        """Bytes of all inner tensors, spare capacity included."""
        return self._storage.nbytes

    @property
    def room(self) -> int:
        """Tokens of the longest sequence that it has room for before its storage grows."""
        self._storage.check_whole()
        return self._storage.room

    @property
    def tokens_dim(self) -> int:
        """The dimension that the tokens are along: 2 in ``[B, H, S, D]``, 1 in ``[B, S, H, D]``."""
        return self._tokens_dim

    def dequantize(self) -> torch.Tensor:
        """The dense tensor, in the layout of this one. Padding tokens are zero."""
        return _dense(self)

    def inner_tensors(self) -> dict[str, torch.Tensor]:
        """The inner tensors by name, see ``kernels/layout.py``."""
        return self._storage.tensors()

    def __repr__(self, *, tensor_contents=None) -> str:
        shape = ", ".join(str(size) for size in self.shape)
        held = "" if self._storage.handle else f", bytes={self.nbytes_held}"
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"InnerQTensor([{shape}], {self.format.role}, bits={self.format.bits}, mode={self.format.mode}, "
            f"dtype={dtype}, device={self.device}{held})"
        )

    # --- protocols of torch -------------------------------------------------------------------------------------

    __torch_function__ = no_torch_function

    @property
    def _state(self) -> torch.Tensor:
        return self._storage.state

    def __tensor_flatten__(self):
        # Dynamo guards on each tensor named here at every call, and on a symbolic size and its strides in Python, layer
        # for layer; its backend asks the storage for the tensors. One tensor of one dimension is enough to know every
        # shape; a compiler that would read data through a handle is told so (`check_whole`).
        return self._storage.flat[self._tokens_dim]

    @staticmethod
    def __tensor_unflatten__(inner, context, outer_size, outer_stride):
        (spec, dtype, has_mean, has_norm, device), tokens_dim = context
        fmt, blocks, head_dim = CacheFormat.parse(spec), inner["_blocks"], outer_size[3]
        shapes = layout.shapes(fmt, outer_size[0], outer_size[3 - tokens_dim], head_dim, blocks.shape[0])
        codes, state = (
            blocks.new_empty(shape, dtype=own or dtype, device=device)
            for shape, own in (shapes["codes"], shapes["state"])
        )
        storage = CacheStorage(
            format=fmt,
            codes=codes,
            scales=None,
            window=None,
            state=state,
            # which statistics there are is part of the type; the tensors are not needed to trace
            mean=state if has_mean else None,
            norm=state if has_norm else None,
            dtype=dtype,
            head_dim=head_dim,
            length=outer_size[tokens_dim],
            handle=True,
            blocks=blocks,
        )
        return InnerQTensor(storage, outer_size[tokens_dim], tokens_dim)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if schema_of(func).is_mutable:
            _refuse_mutation(func, args, kwargs)
        args, kwargs = tree_map_only(InnerQTensor, _dense, (args, kwargs))
        return func(*args, **kwargs)

    def __getitem__(self, index):
        # Cropping through the ordinary view operation would make autograd keep the longer tensor alive as the base of
        # the shorter one, and then every append after a crop would have to copy the cache.
        length = None if self._storage.handle else _cropped_length(index, self.shape, self._tokens_dim)
        return super().__getitem__(index) if length is None else _of_length(self, length)

    def narrow(self, dim, start, length):
        """``torch.Tensor.narrow``; a crop is the same as by slicing."""
        if self._storage.handle or not _is_tokens(self, dim) or start != 0 or not 0 <= length <= _length(self):
            return super().narrow(dim, start, length)
        return _of_length(self, length)

    def __setitem__(self, index, value):
        raise _refusal("tensor[...] = value", self)

    def repeat_interleave(self, repeats, dim=None, *, output_size=None):
        """``torch.Tensor.repeat_interleave``; along the batch the result stays quantized."""
        if dim in (0, -4) and not self._storage.handle:
            index = torch.arange(self.shape[0], device=self.device)
            return _select_batch(self, index.repeat_interleave(repeats, output_size=output_size))
        return _dense(self).repeat_interleave(repeats, dim=dim, output_size=output_size)

    # These reach for memory that a wrapper does not have.

    def numpy(self, *, force=False):
        """The dequantized tensor as a numpy array."""
        return _dense(self).numpy(force=force)

    def tolist(self):
        """The dequantized tensor as nested lists."""
        return _dense(self).tolist()

    def __array__(self, *args, **kwargs):
        return _dense(self).__array__(*args, **kwargs)

    def __dlpack__(self, **kwargs):
        return _dense(self).__dlpack__(**kwargs)

    def share_memory_(self):
        raise UnsupportedOperation(
            "share_memory_() cannot share a cache that grows: send it to another process by pickling, or share "
            ".dequantize()"
        )

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = _copied(self)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return InnerQTensor, (self._storage, _length(self), self._tokens_dim)


torch.serialization.add_safe_globals([InnerQTensor, restore])


# --- layouts --------------------------------------------------------------------------------------------------------


def with_tokens_at(dense: torch.Tensor, wanted: int, tokens_dim: int) -> torch.Tensor:
    """``dense``, whose tokens are along ``tokens_dim`` (1 or 2), with them along ``wanted`` instead; a view."""
    return dense if wanted == tokens_dim else dense.transpose(1, 2)


def _length(tensor: InnerQTensor) -> int:
    return tensor.shape[tensor._tokens_dim]


def _is_tokens(tensor: InnerQTensor, dim: int) -> bool:
    return dim in (tensor._tokens_dim, tensor._tokens_dim - 4)


def _of_length(tensor: InnerQTensor, length: int) -> InnerQTensor:
    """A tensor of ``length`` tokens on the same storage, in the same layout."""
    return InnerQTensor(tensor._storage, length, tensor._tokens_dim)


# --- reading --------------------------------------------------------------------------------------------------------


def _dense(tensor: InnerQTensor) -> torch.Tensor:
    storage = tensor._storage
    if storage.handle and isinstance(storage.state, FakeTensor):
        # Dynamo asks for shapes only; the backend puts the operator into the graph
        return storage.state.new_empty(tensor.shape, dtype=tensor.dtype)
    dense = storage.dequantize(_length(tensor))
    if tensor._tokens_dim == 2:
        return dense
    # with the very strides of the wrapper, also along dimensions of size 1: a program may have been traced with them
    return dense.transpose(1, 2).reshape(-1).view(tensor.shape)


def _copied(tensor: InnerQTensor, transform=None) -> InnerQTensor:
    """An independent tensor with the same content, its storage cut to the tensor's length."""
    return _of_own_length(tensor._storage.copy(transform=transform), tensor)


def _of_own_length(storage: CacheStorage, tensor: InnerQTensor) -> InnerQTensor:
    """A tensor like ``tensor`` on a ``storage`` that only it has, cut to its length."""
    if storage.length != _length(tensor):
        storage.truncate(_length(tensor))
    return InnerQTensor(storage, _length(tensor), tensor._tokens_dim)


def _select_batch(tensor: InnerQTensor, index: torch.Tensor) -> InnerQTensor:
    return _copied(tensor, lambda inner: inner.index_select(0, index.to(inner.device)))


def _check_start(start: torch.Tensor, dense: torch.Tensor) -> None:
    batch, tokens = dense.shape[0], dense.shape[2]
    whole = isinstance(start, torch.Tensor) and not start.is_floating_point() and start.shape == (batch,)
    if not whole or (batch and not 0 <= int(start.min()) <= int(start.max()) <= tokens):
        raise InnerQError(
            f"start={start!r} is not allowed: it has to be an integer tensor of shape [{batch}] with the number of "
            f"padding tokens of each sequence, 0 to {tokens}; leave it out where there is no padding"
        )


def _check_norm(norm: str, role: Role, head_dim: int) -> None:
    try:
        pairs = Pairs.parse(norm)
        if role == "key" and pairs.first + pairs.count <= head_dim:
            return
    except (TypeError, ValueError):
        pass
    raise InnerQError(
        f"norm={norm!r} is not allowed for {role}s of head_dim {head_dim}: keys take channel, paper, half<n> or "
        "interleaved<n> with an even n up to head_dim; leave it out to have each channel by itself"
    )


def _check_queries(queries: torch.Tensor, role: Role, keys: torch.Tensor) -> None:
    batch, heads, tokens, head_dim = keys.shape
    if role != "key":
        raise InnerQError("queries are not allowed for values: leave them out")
    whole = isinstance(queries, torch.Tensor) and queries.dim() == 4 and queries.is_floating_point()
    if whole and queries.device == keys.device:
        b, q_heads, rows, d = queries.shape
        if (b, d) == (batch, head_dim) and q_heads and q_heads % heads == 0 and rows <= tokens:
            return
    shape = tuple(queries.shape) if isinstance(queries, torch.Tensor) else queries
    raise InnerQError(
        f"queries={shape!r} are not allowed: they have to be a tensor of shape [{batch}, a multiple of {heads}, "
        f"at most {tokens}, {head_dim}] on {keys.device}; leave them out where they are not known"
    )


def _refuse_mutation(func, args, kwargs) -> None:
    for position, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, InnerQTensor):
                raise _refusal(func, item)


def _refusal(what: Any, tensor: InnerQTensor) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{what} would write into a quantized cache of shape {tuple(tensor.shape)}: allowed are appending with "
        "torch.cat, cropping, batch selection and zero_(); call .dequantize() for a dense copy to write into"
    )


def _cropped_length(index, shape, tokens_dim: int) -> int | None:
    """``S'`` where ``index`` is ``[:, :, :S']`` (or ``[:, :S']``) in any spelling, else None."""
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(item, slice) and item is not Ellipsis for item in index) or index.count(Ellipsis) > 1:
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (5 - len(index)), *index[at + 1 :])
    index = (*index, *[slice(None)] * (4 - len(index)))
    if len(index) != 4 or any(item != slice(None) for dim, item in enumerate(index) if dim != tokens_dim):
        return None
    start, end, step = index[tokens_dim].indices(shape[tokens_dim])
    return max(end, 0) if start == 0 and step == 1 else None


# --- operations that keep the quantized form ------------------------------------------------------------------------


def _handles(*overloads):
    def register(fn):
        for overload in overloads:
            _HANDLERS[overload] = fn
        return fn

    return register


@_handles(aten.cat.default)
def _cat(tensors, dim=0):
    past, *rest = _without_empty(tensors)
    if not isinstance(past, InnerQTensor) or not _is_tokens(past, dim):
        return NotImplemented
    if functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors]) != past.dtype:
        return NotImplemented
    storage, tokens = past._storage, past._tokens_dim
    if storage.handle:
        return _of_length(past, _length(past) + sum(new.shape[tokens] for new in rest))
    for new in rest:
        if new.dim() != 4 or any(new.shape[d] != past.shape[d] for d in range(4) if d != tokens):
            raise InnerQError(
                f"cannot append a tensor of shape {tuple(new.shape)} to a cache of shape {tuple(past.shape)}: only the "
                f"{('second', 'third')[tokens - 1]} size may differ"
            )
    news = [_dense(new) if isinstance(new, InnerQTensor) else new for new in rest]
    storage = storage.writable_from(past._extent, sum(new.shape[tokens] for new in news))
    for new in news:
        storage.append(with_tokens_at(new, 2, tokens))
    return InnerQTensor(storage, storage.length, tokens)


def _without_empty(tensors):
    """What ``torch.cat`` joins: a list may begin with the tensors without elements that programs start a cache with."""
    if any(isinstance(tensor, InnerQTensor) and tensor._storage.handle for tensor in tensors):
        return tensors  # sizes are symbols here: nothing that depends on their values can be decided
    return [tensor for tensor in tensors if tensor.numel() or isinstance(tensor, InnerQTensor)] or tensors


@_handles(aten.slice.Tensor)
def _slice(tensor, dim=0, start=None, end=None, step=1):
    size = tensor.shape[dim]
    if step != 1 or tensor._storage.handle:
        return NotImplemented
    start, end, _ = slice(start, end).indices(size)
    if start == 0 and end >= size:
        return _alias(tensor)
    if dim % 4 == tensor._tokens_dim and start == 0:
        return _of_length(tensor, max(end, 0))
    if dim % 4 == 0:
        return _select_batch(tensor, torch.arange(start, max(start, end), device=tensor.device))
    return NotImplemented


@_handles(aten.alias.default, aten.detach.default)
def _alias(tensor):
    return _of_length(tensor, _length(tensor))


@_handles(aten.index_select.default)
def _index_select(tensor, dim, index):
    if dim % 4 != 0 or not isinstance(tensor, InnerQTensor) or tensor._storage.handle:
        return NotImplemented
    return _select_batch(tensor, index)


@_handles(aten.index.Tensor)
def _index(tensor, indices):
    first, *others = indices
    if not isinstance(tensor, InnerQTensor) or tensor._storage.handle:
        return NotImplemented
    if first is None or first.dim() != 1 or any(other is not None for other in others):
        return NotImplemented
    return _copied(tensor, lambda inner: inner[first.to(inner.device)])


@_handles(aten.clone.default)
def _clone(tensor, *, memory_format=None):
    return NotImplemented if tensor._storage.handle else _copied(tensor)


@_handles(aten._to_copy.default)
def _to_copy(tensor, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    if tensor._storage.handle or layout not in (None, torch.strided):
        return NotImplemented
    if dtype is not None and dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return NotImplemented
    storage = tensor._storage.converted(dtype, device, non_blocking=non_blocking, pin_memory=bool(pin_memory))
    return _of_own_length(storage, tensor)


@_handles(aten.zero_.default)
def _zero_(tensor):
    if tensor._storage.handle:
        return NotImplemented
    storage = tensor._storage
    if any(extent() is not tensor._extent for extent in storage.live_extents()):
        raise UnsupportedOperation(
            f"zero_() on a cache of shape {tuple(tensor.shape)} that shares its storage with another tensor, which may "
            "not change with it: drop the other one, or call .clone().zero_()"
        )
    for inner in (storage.scales, storage.window, storage.mean):
        if inner is not None:
            inner.zero_()
    reference.set_query_rows_(storage.window, storage.format, None, storage.norm)
    if not storage.format.quantized:
        storage.codes.zero_()
    return tensor
