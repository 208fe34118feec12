"""Quantized shadows of dense buffers that a program writes in place (static caches).

The program still writes its dense buffer. The shadow is an attribute of the key buffer, so that all graphs that read
the buffer share it, and it is freed with the buffer. It is created from the contents of the buffer when a graph first
reads the buffer, and again whenever the version counters show that something else has changed the buffer.

The shadow of a full buffer whose oldest tokens new ones push out is another attribute. It holds all tokens of the
buffer; those that have left it stay in memory until the room is needed.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..cache.quantizing import quantize
from ..cache.storage import CacheStorage
from ..kernels.formats import FORGOTTEN_AT_ONCE, CacheFormat, shadow_capacity
from ..passes.context import Config, ShadowInput
from ..passes.graph.values import example
from .sizes import SizeReader

#: Versions of buffers whose shadow does not hold what they hold.
_UNKNOWN = (-1, -1)


@dataclasses.dataclass
class Shadow:
    """The quantized copy of a key and a value buffer.

    Attributes:
        key, value: the quantized caches.
        config: the config that they were created with.
        value_buffer: a weak reference to the value buffer.
        versions: version counters of both buffers when the shadow was last up to date.
    """

    key: CacheStorage
    value: CacheStorage
    config: Config
    value_buffer: weakref.ref[torch.Tensor]
    versions: tuple[int, int]

    def __reduce__(self):
        # Copying or pickling a buffer copies its attributes: leave the shadow out, the copy gets its own.
        return type(None), ()


class ShadowReader:
    """Finds or creates the shadow of a pair of buffers for the calls of one graph."""

    def __init__(self, plan: ShadowInput, original: GraphModule, config: Config, sizes: SizeReader) -> None:
        placeholders = original.graph.find_nodes(op="placeholder")
        names = [node.name for node in placeholders]
        self._key = names.index(plan.key_use.buffer.name)
        self._value = names.index(plan.value_use.buffer.name)
        self._key_dims, self._value_dims = plan.key_use.dims, plan.value_use.dims
        self._formats = (plan.key.format, plan.value.format)
        self._centred = plan.key.tensors.mean is not None
        self._attribute = plan.key_use.shadow
        #: how many tokens each call pushes out of the buffers
        self._pushed = int(plan.key_use.count) if plan.key_use.rolls else 0
        self._config = config
        self._suited: Callable[[], Shadow | None] = lambda: None  # a weak reference to the last shadow that `_suits`
        self._position: Callable[[tuple[Any, ...]], Any]
        position = plan.key_use.position
        if self._pushed:  # the buffers are full
            tokens = plan.key_use.dims[2]
            self._position = lambda args: args[self._key].shape[tokens]
        elif not isinstance(position, Node):
            self._position = sizes.reader(position)
        elif isinstance(example(position), torch.Tensor):
            self._position = _evaluator(original, position.name)
        else:
            self._position = sizes.reader(example(position))

    def __call__(self, args: tuple[Any, ...]) -> Shadow:
        """The shadow for a call with ``args``. It holds at least the tokens before the position of the write."""
        key, value = args[self._key], args[self._value]
        shadow: Shadow | None = getattr(key, self._attribute, None)
        if shadow is not None and shadow.key.tensors.state.is_inference() and not torch.is_inference_mode_enabled():
            shadow = None  # created in inference mode, so it can be changed only there
        if (
            shadow is None
            or shadow.versions != _versions(key, value)
            or shadow.value_buffer() is not value
            or not self._suits(shadow)
        ):
            shadow = self._import(key, value, int(self._position(args)), shadow)
            setattr(key, self._attribute, shadow)
        if self._pushed:
            _make_room(shadow, self._pushed)
            shadow.versions = _UNKNOWN  # until the call has succeeded
        return shadow

    def _suits(self, shadow: Shadow) -> bool:
        """Whether a shadow has the config and formats of the graph, and a mean if its keys do."""
        if self._suited() is shadow:  # a fast path, because comparing configs and formats is slow
            return True
        suits = shadow.config == self._config and (shadow.key.format, shadow.value.format) == self._formats
        suits = suits and (shadow.key.tensors.mean is not None) == self._centred
        if suits:
            self._suited = weakref.ref(shadow)
        return suits

    def followed(self, args: tuple[Any, ...], shadow: Shadow) -> None:
        """Mark the shadow as up to date, after the graph has written the same tokens to the buffers and to it."""
        if self._pushed:
            for side in (shadow.key, shadow.value):
                side.advance(self._pushed, self._pushed)
        shadow.versions = _versions(args[self._key], args[self._value])

    def _import(self, key: torch.Tensor, value: torch.Tensor, length: int, last: Shadow | None) -> Shadow:
        """A shadow of the contents of the buffers; in the memory of ``last`` if possible, for recorded CUDA graphs."""

        def side(buffer: torch.Tensor, dims: tuple[int, ...], fmt: CacheFormat) -> CacheStorage:
            dense = buffer.detach().permute(dims)
            capacity = shadow_capacity(fmt, dense.shape[2], bool(self._pushed))
            known = {"capacity": capacity, "fmt": fmt, "centre": self._centred}
            return quantize(dense[:, :, :length], self._config, fmt.role, **known)

        key_format, value_format = self._formats
        keys, values = side(key, self._key_dims, key_format), side(value, self._value_dims, value_format)
        if last is not None:
            keys, values = _moved(keys, last.key), _moved(values, last.value)
        return Shadow(keys, values, self._config, weakref.ref(value), _versions(key, value))


def _moved(storage: CacheStorage, into: CacheStorage) -> CacheStorage:
    """``storage`` copied to the memory of ``into``; ``storage`` itself if their formats, shapes or devices differ."""
    source, target = storage.tensors.present(), into.tensors.present()
    alike = source.keys() == target.keys() and all(
        (new.shape, new.dtype, new.device) == (target[name].shape, target[name].dtype, target[name].device)
        for name, new in source.items()
    )
    if not alike or storage.format != into.format:
        return storage
    for name, new in source.items():
        target[name].copy_(new)
    into.length, into.hidden, into.base = storage.length, storage.hidden, storage.base
    return into


def _make_room(shadow: Shadow, count: int) -> None:
    """Make room for ``count`` more tokens, on both sides at once: kernels take the lengths of keys for those of values.

    Shadows have no padding in front, so that nothing is asked of the device.
    """
    sides = (shadow.key, shadow.value)
    if not all(side.has_room(count) for side in sides):
        hidden = shadow.key.hidden - shadow.key.base
        for side in sides:
            side.forget(hidden // FORGOTTEN_AT_ONCE * FORGOTTEN_AT_ONCE)


def _versions(key: torch.Tensor, value: torch.Tensor) -> tuple[int, int]:
    # tensors made in inference mode have none: graphs with such buffers are not rewritten, see `PassContext.uncounted`
    return key._version, value._version


def _evaluator(original: GraphModule, name: str) -> Callable[[tuple[Any, ...]], Any]:
    """A function of the graph's arguments that computes the first element of the node ``name``, an integer tensor."""
    target = next(node for node in original.graph.nodes if node.name == name)
    needed, pending = set(), [target]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    graph, nodes = Graph(), {}
    for node in original.graph.nodes:
        if node in needed or node.op == "placeholder":
            nodes[node] = graph.node_copy(node, lambda old: nodes[old])
    graph.output(nodes[target])
    module = GraphModule(original, graph)
    return lambda args: module(*args).reshape(-1)[0]
