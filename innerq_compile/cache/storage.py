"""The storage of one cache side (keys or values): its inner tensors, and who may append to them in place.

Several cache tensors of different length share a storage, as ``past`` and ``cat([past, new])`` do. Tokens are appended
to a tensor in place if no longer tensor of the same storage is alive. Otherwise the storage is copied first.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import torch

from ..errors import InnerQError
from ..kernels import formats, layout, reference
from ..kernels.cache import GROWING, STATISTICS, CacheTensors
from ..kernels.channels import with_zeros, without_zeros
from ..kernels.formats import FORGOTTEN_AT_ONCE, CacheFormat
from ..kernels.internals.tensors import mark_sizes, without_modes
from ..kernels.schemas import arguments_of
from .changes import CHANGES
from .extents import Extent, Extents
from .traced import Flattened, flattened


@dataclasses.dataclass(eq=False)
class CacheStorage:
    """The inner tensors of one cache side, and what the host knows of them.

    Tokens are counted from the first that was ever in the storage, padding included. What a program has dropped from
    the front of its tensor stays in memory until the room is needed (``forget``).

    Attributes:
        tensors: The inner tensors, described in ``kernels/layout.py``.
        length: Number of tokens appended so far. The device has the lengths of the sequences in ``state``.
        hidden: How many of them, at the front, the last tensor that was written to does not have.
        base: How many of those are no longer in memory: what the device counts begins here.
        blocks: ``[capacity]`` uint8 on the CPU, without meaning but its size. It is the inner tensor that Dynamo sees,
            see ``InnerQTensor.__tensor_flatten__``.
        extents: The lengths of the cache tensors that share the storage.
        lock: Held while tokens are appended and while contents are read. Storages created by the same call of a
            compiled graph share one lock.
        format: The cache format.
        dtype: The dtype of the cache tensors.
        device: The device of the inner tensors.
        batch: Number of sequences.
        heads: Number of KV heads.
        head_dim: Elements of a key or value, without the zeros that the inner tensors have behind them.
        room: How many tokens fit without reallocation, from ``base`` on; in a storage that rolls, from ``hidden`` on.
        flat: The result of ``InnerQTensor.__tensor_flatten__`` for each ``tokens_dim``.
        inputs: The inner tensors in the order in which compiled graphs take them.
    """

    tensors: CacheTensors[torch.Tensor]
    length: int
    hidden: int = 0
    base: int = 0
    blocks: torch.Tensor | None = None
    extents: Extents = dataclasses.field(default_factory=Extents)
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
    format: CacheFormat = dataclasses.field(init=False)
    dtype: torch.dtype = dataclasses.field(init=False)
    device: torch.device = dataclasses.field(init=False)
    batch: int = dataclasses.field(init=False)
    heads: int = dataclasses.field(init=False)
    head_dim: int = dataclasses.field(init=False)
    room: int = dataclasses.field(init=False, default=0)
    flat: dict[int, Flattened] = dataclasses.field(init=False)
    inputs: tuple[torch.Tensor, ...] = dataclasses.field(init=False, default=())
    #: no tensor that is alive has a token in front of this one
    _untouched: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        window = self.tensors.window
        self.format, self.dtype, self.device = self.tensors.format, window.dtype, window.device
        self.batch, self.heads, _, held = window.shape
        self.head_dim = held - self.format.zeros
        statistics = tuple(name for name in self.tensors.present() if name in STATISTICS)
        self.flat = flattened(self.format.spec, self.dtype, statistics, str(self.device))
        self._derive()

    # --- copies -------------------------------------------------------------------------------------------------

    def copy(
        self, capacity: int | None = None, transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> CacheStorage:
        """An independent storage with the same content.

        Args:
            capacity: Its capacity in blocks; None means the same.
            transform: Applied to each inner tensor; has to return a new tensor. None clones them.
        """
        with self.lock:
            made = CacheStorage(self.tensors.map(transform or torch.clone), self.length, self.hidden, self.base)
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
        """An independent storage with another dtype or device.

        The windows, and the elements of a lossless cache, are converted to ``dtype``. Codes, scales, state and
        statistics keep their dtypes.

        Args:
            dtype: float16, bfloat16, float32 or float64; None means the same.
            device: The new device; None means the same.
            non_blocking: As in ``torch.Tensor.to``.
            pin_memory: Whether the new inner tensors are in pinned memory.
        """
        with self.lock:  # the tensors that are looked at here are those that are copied
            held = self.tensors.window.shape[3]
            shapes = layout.shapes(self.format, self.batch, self.heads, held, self.capacity)
            in_dtype = {id(getattr(self.tensors, name)) for name, (_, own) in shapes.items() if own is None}

            def move(inner: torch.Tensor) -> torch.Tensor:
                target = dtype if id(inner) in in_dtype else None
                moved = inner.to(device=device, dtype=target, non_blocking=non_blocking, copy=True)
                return moved.pin_memory() if pin_memory else moved

            return self.copy(transform=move)

    def __reduce__(self):
        # pickled as an object of its own, so that tensors that share a storage share one again after loading
        return restore, (self.tensors.present(), self.format.spec, self.length, self.hidden, self.base)

    # --- size ---------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many blocks of quantized tokens fit without reallocation."""
        return self.tensors.codes.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all inner tensors, unused capacity included."""
        # not Tensor.nbytes, which a compiled program cannot ask for if sizes are symbols
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def has_room(self, count: int) -> bool:
        """Whether ``count`` more tokens can be appended in place, and overwrite none that a tensor has."""
        if not self.format.rolls:
            return self.length - self.base + count <= self.room
        overwritten = self.length + count - self.room
        if overwritten <= self._untouched:
            return True
        if overwritten > self.hidden:
            return False
        # no tensor that is made of those that are alive begins before them, so that this is asked again much later
        self._untouched = self.hidden if (first := self.extents.first()) is None else first
        return overwritten <= self._untouched

    def reserve(self, count: int) -> None:
        """Make room for ``count`` more tokens.

        If that needs a reallocation, the capacity grows by at least a sixteenth: the cost of appending is linear.

        Raises:
            InnerQError: If a storage that rolls has to hold more tokens than its ring.
        """
        if self.has_room(count):
            return
        if self.format.rolls:
            raise InnerQError(
                f"{self.length - self.hidden + count} tokens do not fit the cache of a sliding window, which has "
                f"{self.room} places: append at most {self.room - self.length + self.hidden} tokens at once"
            )
        if (moved := self.forgettable(count)) > 0:
            self.forget(moved)
        if not self.has_room(count):
            self.resize(formats.grown_capacity(self.format, self.length - self.base + count))

    def forgettable(self, count: int) -> int:
        """How many dropped tokens :meth:`forget` is to remove, to make room for ``count`` more tokens; 0 for none.

        Keys and values with the same tokens and room have the same number: kernels read the lengths of the keys only.
        """
        if self.format.rolls or self.has_room(count):
            return 0
        needed = self.length - self.base + count - self.room
        hidden = self.hidden - self.base
        if hidden // FORGOTTEN_AT_ONCE * FORGOTTEN_AT_ONCE < needed:
            return 0
        # padding in front of a sequence is nowhere in memory
        hidden = max(hidden - int(self.tensors.state[:, 0, layout.START].max()), 0)
        moved = hidden // FORGOTTEN_AT_ONCE * FORGOTTEN_AT_ONCE
        return moved if moved >= needed else 0

    def forget(self, moved: int) -> None:
        """Remove the first ``moved`` tokens, a multiple of the block, and move the others to the front of the memory.

        Sinks that are removed are replaced by the tokens that then come first, as the cache holds them.
        """
        fmt, tensors = self.format, self.tensors
        blocks, window = moved // fmt.block, tensors.window
        sinks = reference.real_tokens(tensors, moved + fmt.sink, window.dtype, first=moved)
        ring = window[:, :, fmt.sink :].roll(-(moved % fmt.ring), 2)
        held = {name: getattr(tensors, name) for name in GROWING}
        left = {name: tensor[:, :, blocks:].clone() for name, tensor in held.items()}  # nothing below fails
        window[:, :, : fmt.sink], window[:, :, fmt.sink :] = sinks, ring
        for name, tensor in held.items():
            tensor[:, :, : left[name].shape[2]] = left[name]
        tensors.state[..., layout.LENGTH] -= moved
        tensors.state[..., layout.PEAK] -= moved
        tensors.state[..., layout.HIDDEN] -= moved
        self.base += moved
        CHANGES.tick()

    def made_anew(self, first: int, end: int) -> CacheStorage:
        """A storage that begins with the token ``first`` and ends in front of ``end``, which are quantized again."""
        tensors, dense = self.tensors, with_zeros(self.dequantize(end - first, first), self.format)
        capacity = max(self.capacity, formats.grown_capacity(self.format, end - first))
        start = dense.new_zeros(self.batch, dtype=torch.int32)
        statistics = (tensors.mean, tensors.norm, capacity, self.format.spec, tensors.query_profile)
        encoded = CacheTensors.of_encoded(self.format, torch.ops.innerq.prefill(dense, start, *statistics))
        kept = {name: tensor.clone() for name, tensor in tensors.present().items() if name in STATISTICS}
        return CacheStorage(dataclasses.replace(encoded, **kept), end - first)

    @property
    def on_device(self) -> tuple[int, int]:
        """The length of the storage and what is hidden of it, as the device counts them."""
        return self.length - self.base, self.hidden - self.base

    def resize(self, capacity: int) -> None:
        """Reallocate for ``capacity`` blocks, at least as many as are held."""
        if capacity == self.capacity:
            return
        CHANGES.forget_tensors()
        tensors = self.tensors.present()
        for name in GROWING:
            old = tensors[name]
            tensors[name] = new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            kept = min(capacity, old.shape[2])
            new[:, :, :kept] = old[:, :, :kept]
            if old.is_cuda:  # it may have been allocated on another stream
                old.record_stream(torch.cuda.current_stream(old.device))
        self.tensors = CacheTensors.of(self.format, tensors)  # unchanged if an allocation failed
        self._derive()

    def _derive(self) -> None:
        """Update the attributes that are derived from the tensors. ``blocks`` stays the same tensor object."""
        self.inputs = tuple(self.tensors)
        self.room = formats.longest(self.format, self.capacity)
        with without_modes(), torch.inference_mode(False):  # the same kind of tensor in every mode
            if self.blocks is None:
                self.blocks = torch.empty(0, dtype=torch.uint8, device="cpu")
                # its size is a symbol from the first graph on, so that a larger storage causes no recompilation
                mark_sizes(self.blocks, {0}, set())
            self.blocks.resize_(self.capacity)
        CHANGES.tick()

    # --- length -------------------------------------------------------------------------------------------------

    def writable_from(self, extent: Extent, count: int) -> CacheStorage:
        """The storage to append to: this one, or a copy if another tensor shows tokens that would be overwritten.

        It has the length of ``extent``, also on the device, and room for ``count`` more tokens. The caller holds
        ``lock`` until it has created the longer tensor, whose extent protects the new tokens.

        Args:
            extent: That of the tensor to append to.
            count: How many tokens will be appended.
        """
        if self.length == extent.end and self.hidden == extent.first and self.has_room(count):
            return self  # the usual case, ten times as fast as what follows: no tensor is longer than the storage
        shared = self.extents.is_one_behind(extent.end)
        if self.format.rolls and not shared:
            first = self.extents.first()
            shared = first is not None and first < extent.end + count - self.room
        target = self.copy() if shared else self
        target.show(extent.first, extent.end)
        if target is self and (moved := self.forgettable(count)) > 0:
            first = self.extents.first()
            if first is not None and first < self.base + moved:  # an older tensor still has what is forgotten
                target = self.copy()
        target.reserve(count)
        return target

    def show(self, first: int, end: int) -> None:
        """Let the storage have the tokens ``first`` to ``end``, on the host and on the device, and drop later ones."""
        if (self.hidden, self.length) != (first, end):
            self.reset(first, end)

    def reset(self, first: int, end: int) -> None:
        """:meth:`show`, where the device may have something else than the host."""
        try:
            self.tensors.state[..., layout.HIDDEN] = first - self.base
            torch.ops.innerq.truncate_(*arguments_of("truncate_", self.tensors, end - first))
            self.hidden, self.length = first, end
        finally:
            CHANGES.tick()

    def advance(self, count: int, dropped: int = 0) -> None:
        """Count on the host what was done on the device.

        Args:
            count: How many tokens were appended.
            dropped: How many more at the front are hidden.
        """
        self.length += count
        self.hidden += dropped
        CHANGES.tick()

    # --- contents -----------------------------------------------------------------------------------------------

    def append(self, new: torch.Tensor) -> None:
        """Append the tokens ``new [B, H, N, D]`` to a storage that :meth:`writable_from` returned."""
        new = with_zeros(new.to(self.dtype), self.format)
        new = reference.normalize_keys(new, self.tensors.mean, self.tensors.norm)
        torch.ops.innerq.append_one_(*arguments_of("append_one_", self.tensors, new))
        self.advance(new.shape[2])

    def dequantize(self, length: int, first: int = 0) -> torch.Tensor:
        """``length`` tokens from ``first`` on as a dense tensor ``[B, H, length, D]``. Padding tokens are zero."""
        with self.lock:
            tensors = self.tensors
            if first != self.hidden:
                state = tensors.state.clone()
                state[..., layout.HIDDEN] = first - self.base
                tensors = dataclasses.replace(tensors, state=state)
            held = torch.ops.innerq.dequantize(*arguments_of("dequantize", tensors, length))
        return without_zeros(held, self.format)


def restore(tensors: dict[str, torch.Tensor], spec: str, length: int, hidden: int = 0, base: int = 0) -> CacheStorage:
    """Load a pickled storage.

    Args:
        tensors: The inner tensors by name.
        spec: The cache format (``CacheFormat.spec``).
        length: Number of tokens appended so far, padding included.
        hidden: How many of them are dropped.
        base: How many of those are not in ``tensors``.

    Raises:
        InnerQError: If another version of this package wrote it with another layout.
    """
    fmt = CacheFormat.parse(spec)
    rows = tensors["window"].shape[2]
    if rows != fmt.window or fmt.uses_queries != ("query_profile" in tensors):
        profile = " and a query profile" if fmt.uses_queries else ""
        raise InnerQError(
            f"a saved cache of format {spec} has {rows} rows of windows and the tensors {', '.join(tensors)}, where "
            f"this version has {fmt.window} rows{profile}: it was written by another version of innerq-compile; make "
            "the cache anew from its prompt"
        )
    return CacheStorage(CacheTensors.of(fmt, tensors), length, hidden, base)
