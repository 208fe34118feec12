"""What stands behind an :class:`InnerQTensor`: the tensors of one cache side, and who may write to them.

Several tensors (views) of different length share a storage, as ``past`` and ``cat([past, new])`` do. A view of length L
may write behind its end, in place, as long as no other live view is longer; otherwise it gets a copy first.
"""

from __future__ import annotations

import dataclasses
import functools
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


class History:
    """What happens to caches: one is made, or changes its length or its tensors, or a tensor for one is made.

    Attributes:
        last: stands for the last that happened. Whoever remembers it knows later whether anything has happened since.
        rememberers: those that hold tensors of caches for a later time. They ``forget()`` before a storage takes
            others, so that the old ones are free.
    """

    def __init__(self) -> None:
        self.last = object()
        self.rememberers: weakref.WeakSet[Any] = weakref.WeakSet()

    def goes_on(self) -> None:
        self.last = object()


HISTORY = History()


class View:
    """A claim on the first ``length`` tokens of a storage; it lives as long as the tensor that holds it."""

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
        views: the views that are alive, and some that were.
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
    views: list[weakref.ref[View]] = dataclasses.field(default_factory=list)
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
        made = dataclasses.replace(self, **new, views=[], blocks=None, dtype=new["window"].dtype)
        made.resize(capacity or self.capacity)
        return made

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
        for rememberer in list(HISTORY.rememberers):
            rememberer.forget()
        for name in ("codes", "scales"):
            old = getattr(self, name)
            new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            kept = min(capacity, old.shape[2])
            new[:, :, :kept] = old[:, :, :kept]
            if old.is_cuda:  # whoever made the cache may have done so on another stream
                old.record_stream(torch.cuda.current_stream(old.device))
            setattr(self, name, new)
        self._derive()

    def _derive(self) -> None:
        """Bring what is derived from the tensors up to date; ``blocks`` is the same tensor as before."""
        HISTORY.goes_on()
        self.inputs = tuple(self.tensors().values())
        self.room = formats.longest(self.format, self.capacity)
        with without_modes(), torch.inference_mode(False):  # one kind of tensor, whoever is at work
            if self.blocks is None:
                self.blocks = torch.empty(0, dtype=torch.uint8, device="cpu")
                # a symbol from the first time on: a larger storage is no new graph
                mark_sizes(self.blocks, {0}, set())
            self.blocks.resize_(self.capacity)

    # --- views and writing --------------------------------------------------------------------------------------

    def view(self, length: int) -> View:
        """The claim of a tensor of ``length`` tokens that is being made."""
        HISTORY.goes_on()
        made = View(length)
        if len(self.views) > 4:  # a step makes one, and the one before it dies soon after
            self.views = self.live_views()
        self.views.append(weakref.ref(made))
        return made

    def live_views(self) -> list[weakref.ref[View]]:
        return [view for view in self.views if view() is not None]  # a WeakSet takes ten times as long

    def writable_from(self, view: View, count: int) -> CacheStorage:
        """The storage into which ``count`` tokens may be appended behind ``view``: this one, or a copy of it.

        Brings the device-side length to the view's, and makes room.
        """
        if self.length == view.length and view.length + count <= self.room:  # none is longer than the storage itself
            return self  # every cache, every step: what follows would find the same, in ten times the time
        target = self
        for other in self.views:
            alive = other()
            if alive is not None and alive.length > view.length:
                target = self.copy()
                break
        if target.length != view.length:
            target.truncate(view.length)
        target.reserve(view.length + count)
        return target

    def truncate(self, length: int) -> None:
        HISTORY.goes_on()
        torch.ops.innerq.truncate_(*self.four(), length, self.format.spec)
        self.length = length

    def advance(self, count: int) -> None:
        """Record on the host that ``count`` tokens were appended on the device."""
        HISTORY.goes_on()
        self.length += count

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
    if queries is not None and fmt.mode == "steered":
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
