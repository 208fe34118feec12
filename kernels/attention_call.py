"""One call of decode attention: the one list of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from .cache import CacheTensors
from .schemas import SCHEMAS

T = TypeVar("T")
U = TypeVar("U")
_SCHEMA = SCHEMAS["decode_attention"]


@dataclasses.dataclass(eq=False)
class AttentionCall(Generic[T]):
    """What attention to a quantized cache takes: tensors, nodes of a graph, or nodes of Inductor's IR.

    The fields are in the order of the operator's schema. Nobody changes them; ``frozen`` would cost each layer of each
    step more than the rest of making one.

    Attributes:
        query: ``[B, Hq, N, D]``, float16, bfloat16 or float32, multiplied by the key normalization already.
        keys, values: the cache, head_dim ``D`` and ``Dv``, with equal B, H and lengths; H divides Hq.
        mask: broadcasts to ``[B, Hq, N, S]``, S counted from the first padding position: boolean (True: seen), or of a
            floating-point dtype and added to the scores. None shows everything.
        open_from: ``[B]`` int32 of ``masks.open_from``, or None. It changes nothing in the result.
        sink_logits: ``[Hq]``, the logit of one more token without a value, or None.
        scale: what the products of query and keys are multiplied by.
        softcap: scores are ``softcap * tanh(score / softcap)`` before the mask; 0 leaves them.
        causal: whether query token i sees all but the last ``N - 1 - i`` tokens.
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

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> AttentionCall[Any]:
        """From the arguments of ``innerq::decode_attention``."""
        return cls(*_SCHEMA.values(arguments))

    def arguments(self) -> tuple[Any, ...]:
        """The arguments of ``innerq::decode_attention``."""
        return _SCHEMA.arguments(*(getattr(self, field.name) for field in dataclasses.fields(self)))

    def map(self, function: Callable[[T], U]) -> AttentionCall[U]:
        """The same with ``function`` applied to each tensor that there is."""

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
        )
