"""What stands behind an :class:`InnerQTensor`: the tensors of one cache side, and who may write to them.

Several tensors of different length share a storage, as ``past`` and ``cat([past, new])`` do. A tensor of length L may
have tokens written behind its end, in place, as long as no other tensor that is alive is longer; otherwise the storage
is copied first.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import torch

from ..errors import InnerQError
from ..kernels import formats, layout, reference
from ..kernels.cache import GROWING, STATISTICS, CacheTensors
from ..kernels.formats import CacheFormat
from ..kernels.internals.tensors import mark_sizes, without_modes
from ..kernels.schemas import arguments_of
from .changes import CHANGES
from .extents import Extent, Extents
from .traced import Flattened, flattened


@dataclasses.dataclass(eq=False)
class CacheStorage:
    """The tensors of one cache side (``kernels/layout.py``) and its logical length on the host.

    Attributes:
        tensors: the inner tensors, by name.
        length: logical tokens held, padding included; the host's copy of ``state``.
        blocks: what Dynamo sees of it, ``[capacity]`` uint8 on the CPU, see ``InnerQTensor.__tensor_flatten__``.
        extents: how many tokens each tensor shows that stands before it.
        lock: held by whoever appends to it or reads its contents. Storages that are made together may share one.
        format: the cache format.
        dtype, device: of the logical tensor.
        batch, heads, head_dim: sizes of the logical tensor.
        room: the longest sequence that it has room for.
        flat: for each ``tokens_dim``, what ``InnerQTensor.__tensor_flatten__`` returns.
        inputs: all inner tensors that there are, in the order in which compiled graphs take them.
    """

    tensors: CacheTensors[torch.Tensor]
    length: int
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

    def __post_init__(self) -> None:
        window = self.tensors.window
        self.format, self.dtype, self.device = self.tensors.format, window.dtype, window.device
        self.batch, self.heads, _, self.head_dim = window.shape
        statistics = tuple(name for name in self.tensors.present() if name in STATISTICS)
        self.flat = flattened(self.format.spec, self.dtype, statistics, str(self.device))
        self._derive()

    # --- making one ---------------------------------------------------------------------------------------------

    def copy(
        self, capacity: int | None = None, transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> CacheStorage:
        """An independent storage with the same content, ``transform`` (a tensor function) applied to each tensor."""
        with self.lock:
            made = CacheStorage(self.tensors.map(transform or torch.clone), self.length)
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
        shapes = layout.shapes(self.format, self.batch, self.heads, self.head_dim, self.capacity)
        in_dtype = {id(getattr(self.tensors, name)) for name, (_, own) in shapes.items() if own is None}

        def move(inner: torch.Tensor) -> torch.Tensor:
            target = dtype if id(inner) in in_dtype else None
            moved = inner.to(device=device, dtype=target, non_blocking=non_blocking, copy=True)
            return moved.pin_memory() if pin_memory else moved

        copy = self.copy(transform=move)
        if copy.dtype != self.dtype and self.format.uses_queries:  # it lies behind the windows, as bytes
            profile = reference.held_query_profile(self.tensors.window, self.format)
            reference.set_query_profile_(copy.tensors.window, self.format, profile.to(copy.device))
        return copy

    def __reduce__(self):
        # pickled as an object of its own: tensors that share a storage share it again when they are loaded
        return restore, (self.tensors.present(), self.format.spec, self.length)

    # --- size ---------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Blocks of the quantized region that there is room for."""
        return self.tensors.codes.shape[2]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens. Grows by a sixteenth at least, so that appending stays linear."""
        if length > self.room:
            self.resize(formats.grown_capacity(self.format, length))

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` blocks. The caller knows that no more than that are held."""
        if capacity == self.capacity:
            return
        CHANGES.forget_tensors()
        tensors = self.tensors.present()
        for name in GROWING:
            old = tensors[name]
            tensors[name] = new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            kept = min(capacity, old.shape[2])
            new[:, :, :kept] = old[:, :, :kept]
            if old.is_cuda:  # whoever made the cache may have done so on another stream
                old.record_stream(torch.cuda.current_stream(old.device))
        self.tensors = CacheTensors.of(self.format, tensors)  # all at once, or none where there is no memory
        self._derive()

    def _derive(self) -> None:
        """Bring what is derived from the tensors up to date; ``blocks`` is the same tensor as before."""
        self.inputs = tuple(self.tensors)
        self.room = formats.longest(self.format, self.capacity)
        with without_modes(), torch.inference_mode(False):  # one kind of tensor, whoever is at work
            if self.blocks is None:
                self.blocks = torch.empty(0, dtype=torch.uint8, device="cpu")
                # a symbol from the first time on: a larger storage is no new graph
                mark_sizes(self.blocks, {0}, set())
            self.blocks.resize_(self.capacity)
        CHANGES.tick()

    # --- tensors and writing ------------------------------------------------------------------------------------

    def writable_from(self, extent: Extent, count: int) -> CacheStorage:
        """The storage that takes ``count`` more tokens behind the tensor of ``extent``: this one, or a copy of it.

        Brings the device-side length to the tensor's, and makes room. The caller holds ``lock`` until the tensor with
        the new tokens is made: before that nothing shows that they are there.
        """
        if self.length == extent.length and self.length + count <= self.room:  # none is longer than the storage itself
            return self  # every cache, every step: what follows would find the same, in ten times the time
        target = self.copy() if self.extents.is_one_longer_than(extent.length) else self
        if target.length != extent.length:
            target.truncate(extent.length)
        target.reserve(extent.length + count)
        return target

    def truncate(self, length: int) -> None:
        try:
            torch.ops.innerq.truncate_(*arguments_of("truncate_", self.tensors, length))
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
        new = reference.normalize_keys(new.to(self.dtype), self.tensors.mean, self.tensors.norm)
        torch.ops.innerq.append_one_(*arguments_of("append_one_", self.tensors, new))
        self.advance(new.shape[2])

    def dequantize(self, length: int) -> torch.Tensor:
        """The first ``length`` tokens, dense: ``[B, H, length, D]`` in the cache's dtype; padding tokens are zero."""
        with self.lock:
            return torch.ops.innerq.dequantize(*arguments_of("dequantize", self.tensors, length))


def restore(tensors: dict[str, torch.Tensor], spec: str, length: int) -> CacheStorage:
    """A storage from what ``CacheStorage.__reduce__`` wrote."""
    fmt = CacheFormat.parse(spec)
    rows = tensors["window"].shape[2]
    if rows != fmt.window_rows:
        raise InnerQError(
            f"a saved cache of format {spec} has {rows} rows of windows where this version has {fmt.window_rows}: it "
            "was written by another version of innerq-compile; make the cache anew from its prompt"
        )
    return CacheStorage(CacheTensors.of(fmt, tensors), length)
