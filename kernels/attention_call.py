"""One call of decode attention: the one list of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

from .cache import CacheTensors
from .formats import compute_dtype
from .schemas import SCHEMAS

T = TypeVar("T")
U = TypeVar("U")
_SCHEMA = SCHEMAS["decode_attention"]


@dataclasses.dataclass(eq=False)
class AttentionCall(Generic[T]):
    """The arguments of decode attention: tensors, nodes of a graph, or nodes of Inductor's IR.

    The fields are in the order of the operator's schema, and must not be changed. (``frozen`` would double the time of
    making one, for each layer and step.)

    Attributes:
        query: ``[B, Hq, N, D]``, of a dtype in ``formats.DTYPES``, already multiplied by the key normalization.
        keys, values: the cache, with head_dim ``D`` and ``Dv`` and equal B, H and lengths; H divides Hq.
        mask: broadcasts to ``[B, Hq, N, S]``, where S includes padding: boolean (True: visible), or of a floating-point
            dtype and added to the scores. With None all tokens are visible.
        open_from: ``[B]`` int32 of ``masks.open_from``, or None. It does not change the result.
        sink_logits: ``[Hq]``, or ``[B, Hq, N]`` for each query token: the logit of an additional token without a value;
            or None.
        scale: factor of the products of query and keys.
        softcap: scores become ``softcap * tanh(score / softcap)`` before the mask; 0 for no cap.
        causal: whether the last ``N - 1 - i`` tokens are hidden from query token i.
        dropped: how many tokens the tensor that the program attends to has at its front which the state already counts
            as dropped; negative where it lacks tokens that the state does not count.
        value_query: ``[B, Hq, N, Dv]`` in the query's dtype, or None: a second part of the query, whose products with
            the values are added to those of query and keys, before the scale. The values are then a latent that keys
            are computed of, too.
        value_heads: the value heads that the KV heads read, ``(first, count)``, where these are not their own: keys of
            head h meet values of head ``first + h % count``. ``count`` divides H. None where every head reads its own.
    """

    query: T
    keys: CacheTensors[T]
    values: CacheTensors[T]
    mask: T | None
    open_from: T | None
    sink_logits: T | None
    scale: float
    softcap: float = 0.0
    causal: bool = False
    dropped: Any = 0
    value_query: T | None = None
    value_heads: Sequence[int] | None = None

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> AttentionCall[Any]:
        """Make a call from the arguments of ``innerq::decode_attention`` or ``innerq::decode_attention_lse``."""
        return cls(*_SCHEMA.values(arguments))

    def arguments(self) -> tuple[Any, ...]:
        """The arguments of both operators. Those at the end are left out where they are the defaults."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        nothing_dropped = isinstance(self.dropped, int) and not self.dropped
        for absent in (self.value_heads is None, self.value_query is None, nothing_dropped):
            if not absent:
                break
            values.pop()
        return _SCHEMA.arguments(*values)

    @property
    def compute_dtype(self: AttentionCall[Any]) -> torch.dtype:
        """The dtype to compute in, of a call of tensors: float64 if the query or a cache is float64, else float32."""
        return compute_dtype(self.query.dtype, self.keys.window.dtype, self.values.window.dtype)

    def map(self, function: Callable[[T], U]) -> AttentionCall[U]:
        """A call with ``function`` applied to each tensor that is not None."""

        def optional(tensor: T | None) -> U | None:
            return None if tensor is None else function(tensor)

        return AttentionCall(
            function(self.query),
            self.keys.map(function),
            self.values.map(function),
            optional(self.mask),
            optional(self.open_from),
            optional(self.sink_logits),
            self.scale,
            self.softcap,
            self.causal,
            self.dropped,
            optional(self.value_query),
            self.value_heads,
        )


def value_range(call: AttentionCall[Any]) -> tuple[int, int]:
    """The first of the value heads that a call reads, and how many: all of them where every head reads its own."""
    first, count = call.value_heads or (0, call.keys.window.shape[1])
    return first, count


def sinks_by_row(sink_logits: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The sink logits of a call as ``[B, Hq, N]``."""
    logits = sink_logits[:, None] if sink_logits.dim() == 1 else sink_logits
    return logits.expand(query.shape[:3])
