"""What stands behind an :class:`InnerQTensor`: the tensors of one cache side, and who may write to them.

Several tensors (views) of different length share a storage, as ``past`` and ``cat([past, new])`` do. A view of length L
may write behind its end, in place, as long as no other live view is longer; otherwise it gets a copy first.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from typing import Any

import torch

from ..errors import InnerQError
from ..kernels import formats, layout, reference
from ..kernels.formats import CacheFormat
from ..kernels.internals.tensors import mark_sizes, without_modes

Kind = tuple[str, torch.dtype, bool, bool, str]  # spec, dtype, has a mean, has a norm, device


@functools.cache
def _flattened(*kind) -> tuple[Kind, dict[int, tuple[list[str], tuple[Kind, int]]]]:
    """A kind and ``CacheStorage.flat``. Guards ask each cache twice a step: objects that are the same compare fast."""
    return kind, {tokens_dim: (["_blocks"], (kind, tokens_dim)) for tokens_dim in (1, 2)}


class ChangeClock:
    """Tells whether any cache of this process has changed since some moment.

    It ticks when a cache is made, changes its length or its tensors, or a tensor of a cache is made. Threads share it:
    a change in one of them is one for all of them. Reading and ticking are single assignments and need no lock; the
    clock ticks behind a change, so that what was read before the tick is never taken for the present.

    Attributes:
        now: an object that stands for the present. Whoever keeps it finds another one here after any change.
    """

    def __init__(self) -> None:
        self.now = object()
        self._lock = threading.Lock()
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()

    def tick(self) -> None:
        """Note that a cache has changed."""
        self.now = object()

    def add_holder(self, holder: Any) -> None:
        """Have ``holder.forget()`` called before a storage replaces its tensors, so that the old ones are freed.

        Args:
            holder: what holds inner tensors of caches from one call to the next; kept weakly.
        """
        with self._lock:
            self._holders.add(holder)

    def forget_tensors(self) -> None:
        """Have everybody let go of the inner tensors that they hold."""
        with self._lock:
            holders = list(self._holders)
        for holder in holders:
            holder.forget()


CHANGES = ChangeClock()


class Extent:
    """How many tokens of a storage one tensor shows.

    It lives as long as the tensor; the storage has weak references to all of them, and so knows which of its tokens
    somebody can still read.
    """

    __slots__ = ("__weakref__", "length")

    def __init__(self, length: int) -> None:
        self.length = length


@dataclasses.dataclass(eq=False)
class CacheStorage:
    """The tensors of one cache side (``kernels/layout.py``) and its logical length on the host.

    Attributes:
        format: the cache format.
        codes, scales, window, state: the tensors. ``scales`` and ``window`` are None in a handle (see below).
        mean, norm: key mean and normalization, ``[B, H, D]`` float32, or None.
        dtype: dtype of the logical tensor.
        head_dim: of the logical tensor.
        length: logical tokens held, padding included; the host's copy of ``state``.
        handle: True where only the metadata is there: what Dynamo traces with.
        blocks: what Dynamo sees of it, ``[capacity]`` uint8 on the CPU, see ``InnerQTensor.__tensor_flatten__``.
        room: the longest sequence that it has room for.
        kind: what a compiled graph is made for, besides sizes; one object for all storages of a kind.
        flat: for each ``tokens_dim``, what ``InnerQTensor.__tensor_flatten__`` returns.
        inputs: all inner tensors that there are, in the order in which compiled graphs take them.
        extents: those of the tensors that are alive, and some that were.
    """

    format: CacheFormat
    codes: torch.Tensor
    scales: torch.Tensor | None
    window: torch.Tensor | None
    state: torch.Tensor
    mean: torch.Tensor | None
    norm: torch.Tensor | None
    dtype: torch.dtype
    head_dim: int
    length: int
    handle: bool = False
    blocks: torch.Tensor | None = None
    extents: list[weakref.ref[Extent]] = dataclasses.field(default_factory=list)
    room: int = dataclasses.field(init=False, default=0)
    kind: Kind = dataclasses.field(init=False)
    flat: dict[int, tuple[list[str], tuple[Kind, int]]] = dataclasses.field(init=False)
    inputs: tuple[torch.Tensor, ...] = dataclasses.field(init=False, default=())

    def __post_init__(self) -> None:
        has = (self.mean is not None, self.norm is not None)
        self.kind, self.flat = _flattened(self.format.spec, self.dtype, *has, str(self.state.device))
        if not self.handle:
            self._derive()

    # --- making one ---------------------------------------------------------------------------------------------

    @staticmethod
    def adopt(fmt: CacheFormat, tensors, mean, norm, length: int) -> CacheStorage:
        """A storage around the four tensors that ``innerq::prefill`` returned for ``length`` tokens."""
        codes, scales, window, state = tensors
        return CacheStorage(fmt, codes, scales, window, state, mean, norm, window.dtype, window.shape[-1], length)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All inner tensors by name."""
        self.check_whole()
        named = {name: getattr(self, name) for name in ("codes", "scales", "window", "state", "mean", "norm")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def four(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        self.check_whole()
        return self.codes, self.scales, self.window, self.state

    def check_whole(self) -> None:
        if self.handle:
            from ..compile_error import CompileError  # imports Dynamo, which is at work here anyway

            raise CompileError(
                "an InnerQTensor was traced by a compiler that does not know it: compile this program with "
                "backend='innerq', or call .dequantize() on the cache before it enters the compiled function"
            )

    def copy(self, capacity: int | None = None, transform=None) -> CacheStorage:
        """An independent storage with the same content, ``transform`` (a tensor function) applied to each tensor."""
        new = {name: transform(t) if transform else t.clone() for name, t in self.tensors().items()}
        made = dataclasses.replace(self, **new, extents=[], blocks=None, dtype=new["window"].dtype)
        made.resize(capacity or self.capacity)
        return made

    def converted(
        self,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        *,
        non_blocking: bool = False,
        pin_memory: bool = False,
    ) -> CacheStorage:
        """An independent storage of another dtype or device.

        The windows, and the elements of a lossless cache, take the new dtype; codes, scales, state and statistics stay
        as they are.

        Args:
            dtype: float16, bfloat16 or float32; None for the same.
            device: None for the same.
            non_blocking, pin_memory: as of ``torch.Tensor.to``.
        """
        in_dtype = ("window",) if self.format.quantized else ("window", "codes")
        moving = {id(getattr(self, name)) for name in in_dtype}

        def move(inner: torch.Tensor) -> torch.Tensor:
            target = dtype if id(inner) in moving else None
            moved = inner.to(device=device, dtype=target, non_blocking=non_blocking, copy=True)
            return moved.pin_memory() if pin_memory else moved

        copy = self.copy(transform=move)
        if copy.dtype != self.dtype and self.format.uses_queries:  # bytes lie behind the windows
            rows = reference.held_query_rows(self.window, self.format)
            reference.set_query_rows_(copy.window, self.format, rows.to(copy.state.device))
        return copy

    def __reduce__(self):
        # pickled as an object of its own: tensors that share a storage share it again when they are loaded
        return restore, (self.tensors(), self.format.spec, self.length)

    # --- size ---------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Blocks of the quantized region that there is room for."""
        return self.codes.shape[2]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens. Grows by a sixteenth at least, so that appending stays linear."""
        if length > self.room:
            self.resize(formats.grown_capacity(self.format, length))

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` blocks. The caller knows that no more than that are held."""
        if capacity == self.capacity:
            return
        CHANGES.forget_tensors()
        grown = {}
        for name in ("codes", "scales"):
            old = getattr(self, name)
            grown[name] = new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            kept = min(capacity, old.shape[2])
            new[:, :, :kept] = old[:, :, :kept]
            if old.is_cuda:  # whoever made the cache may have done so on another stream
                old.record_stream(torch.cuda.current_stream(old.device))
        self.codes, self.scales = grown["codes"], grown["scales"]  # both, or none where there is no memory
        self._derive()

    def _derive(self) -> None:
        """Bring what is derived from the tensors up to date; ``blocks`` is the same tensor as before."""
        self.inputs = tuple(self.tensors().values())
        self.room = formats.longest(self.format, self.capacity)
        with without_modes(), torch.inference_mode(False):  # one kind of tensor, whoever is at work
            if self.blocks is None:
                self.blocks = torch.empty(0, dtype=torch.uint8, device="cpu")
                # a symbol from the first time on: a larger storage is no new graph
                mark_sizes(self.blocks, {0}, set())
            self.blocks.resize_(self.capacity)
        CHANGES.tick()

    # --- tensors and writing ------------------------------------------------------------------------------------

    def extent(self, length: int) -> Extent:
        """The extent of a tensor of ``length`` tokens that is being made."""
        made = Extent(length)
        if len(self.extents) > 4:  # a step makes one, and the one before it dies soon after
            self.extents = self.live_extents()
        self.extents.append(weakref.ref(made))
        CHANGES.tick()
        return made

    def live_extents(self) -> list[weakref.ref[Extent]]:
        return [extent for extent in self.extents if extent() is not None]  # a WeakSet takes ten times as long

    def writable_from(self, extent: Extent, count: int) -> CacheStorage:
        """The storage that takes ``count`` more tokens behind the tensor of ``extent``: this one, or a copy of it.

        Brings the device-side length to the tensor's, and makes room.
        """
        if self.length == extent.length and self.length + count <= self.room:  # none is longer than the storage itself
            return self  # every cache, every step: what follows would find the same, in ten times the time
        target = self
        for other in self.extents:
            alive = other()
            if alive is not None and alive.length > extent.length:
                target = self.copy()
                break
        if target.length != extent.length:
            target.truncate(extent.length)
        target.reserve(extent.length + count)
        return target

    def truncate(self, length: int) -> None:
        try:
            torch.ops.innerq.truncate_(*self.four(), length, self.format.spec)
            self.length = length
        finally:
            CHANGES.tick()

    def advance(self, count: int) -> None:
        """Record on the host that ``count`` tokens were appended on the device."""
        self.length += count
        CHANGES.tick()

    # --- contents -----------------------------------------------------------------------------------------------

    def append(self, new: torch.Tensor) -> None:
        """Append dense ``new [B, H, N, D]``; the caller has made this storage writable."""
        new = reference.normalize_keys(new.to(self.dtype), self.mean, self.norm)
        torch.ops.innerq.append_one_(*self.four(), new, self.format.spec)
        self.advance(new.shape[2])

    def dequantize(self, length: int) -> torch.Tensor:
        return torch.ops.innerq.dequantize(*self.four(), self.mean, self.norm, length, self.format.spec)


def restore(tensors: dict[str, torch.Tensor], spec: str, length: int) -> CacheStorage:
    """A storage from what ``CacheStorage.__reduce__`` wrote."""
    four, fmt = [tensors[name] for name in ("codes", "scales", "window", "state")], CacheFormat.parse(spec)
    rows = four[2].shape[2]
    if rows != fmt.window_rows:
        raise InnerQError(
            f"a saved cache of format {spec} has {rows} rows of windows where this version has {fmt.window_rows}: it "
            "was written by another version of innerq-compile; make the cache anew from its prompt"
        )
    return CacheStorage.adopt(fmt, four, tensors.get("mean"), tensors.get("norm"), length)


def quantize(
    x, config, role, start=None, capacity: int | None = None, norm: str | None = None, queries=None
) -> CacheStorage:
    """A storage made of the dense ``x [B, H, S, D]``.

    ``start [B]`` counts padding tokens, None means none; ``capacity`` is the number of blocks, None takes what grows;
    ``norm`` is what ``CacheFormat.norm`` is to be, None takes what the config says; ``queries [B, Hq, N, D]`` are those
    that the keys are multiplied with, for mode ``steered``.
    """
    fmt = config.format_for(role, x.shape[-1], x.dtype)
    if norm is not None:
        fmt = dataclasses.replace(fmt, norm=norm)
    start = x.new_zeros(x.shape[0], dtype=torch.int32) if start is None else start.to(torch.int32)
    mean = scale = asked = weight = rows = None
    if queries is not None and fmt.uses_queries:
        asked = reference.query_statistics(queries, x, start)
        weight = reference.query_weight(asked, fmt.norm)
    if role == "key" and config.has_key_statistics and x.shape[2] == 0:
        mean = x.new_zeros((*x.shape[:2], x.shape[3]), dtype=torch.float32)
        scale = torch.ones_like(mean)
    elif role == "key" and config.has_key_statistics:
        mean, scale = torch.ops.innerq.key_statistics(
            x, start, config.centre_keys, config.normalize_keys, fmt.norm, weight
        )
    mean, scale = (mean if config.centre_keys else None), (scale if config.normalize_keys else None)
    if asked is not None:
        rows = reference.query_rows(asked, scale, fmt.group_size)
    if capacity is None:
        capacity = formats.grown_capacity(fmt, x.shape[2])
    tensors = torch.ops.innerq.prefill(x, start, mean, scale, capacity, fmt.spec, rows)
    return CacheStorage.adopt(fmt, tensors, mean, scale, x.shape[2])


def storage_bytes(fmt, batch, heads, head_dim, dtype, capacity, config) -> int:
    """Bytes of one cache side, key statistics included: what ``CacheStorage.nbytes`` of such a cache is."""
    statistics = (config.centre_keys + config.normalize_keys) if fmt.is_key else 0
    return layout.cache_bytes(fmt, batch, heads, head_dim, dtype, capacity, statistics=statistics)
