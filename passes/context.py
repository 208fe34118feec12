"""What the passes tell one another: matches, cache inputs, the plan of inputs and outputs, reasons."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch.fx import Node

from ..kernels.formats import CacheFormat


class Config(Protocol):
    """What the passes need of ``innerq_compile.InnerQConfig``."""

    centre_keys: bool
    normalize_keys: bool

    def format_for(self, role: str, head_dim: int, dtype: torch.dtype) -> CacheFormat: ...


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a place that looks like attention, or a whole graph, was left as it is.

    Attributes:
        text: the reason in words.
        where: the line of the user's program, or an empty string.
    """

    text: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.where})" if self.where else self.text


@dataclasses.dataclass(eq=False)
class CacheInput:
    """A quantized cache among the inputs of a graph: its placeholder and those of its inner tensors."""

    placeholder: Node
    index: int  # position among the original inputs
    format: CacheFormat
    codes: Node
    scales: Node
    window: Node
    state: Node
    mean: Node | None
    norm: Node | None

    @property
    def four(self) -> tuple[Node, Node, Node, Node]:
        return self.codes, self.scales, self.window, self.state

    @property
    def nodes(self) -> list[Node]:
        return [node for node in (*self.four, self.mean, self.norm) if node is not None]


@dataclasses.dataclass(eq=False)
class AttentionMatch:
    """One attention of the program.

    Attributes:
        node: the node whose value is the attention output ``[B, Hq, N, Dv]``.
        query: ``[B, Hq, N, D]``.
        key, value: ``[B, H, S, D]``, before heads were repeated.
        mask: additive or boolean, broadcasts to ``[B, Hq, N, S]``, or None.
        scale: the factor of the scores.
        is_causal: SDPA's flag, which aligns the first query with the first key.
        kind: ``sdpa`` or ``eager``.
    """

    node: Node
    query: Node
    key: Node
    value: Node
    mask: Node | None
    scale: float
    is_causal: bool
    kind: str


@dataclasses.dataclass(frozen=True, eq=False)
class CacheUse:
    """How an attention comes by its keys (or values).

    Attributes:
        kind: ``append`` (a quantized cache and new tokens behind it), ``read`` (a quantized cache as it is) or
            ``fresh`` (computed in this graph, and leaving it).
        cache: the quantized cache of ``append`` and ``read``.
        new: the new tokens ``[B, H, N, D]`` of ``append``.
        node: what the attention reads.
    """

    kind: str
    node: Node
    cache: CacheInput | None = None
    new: Node | None = None


# --- the plan of outputs --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Appended:
    """An output that is an input cache with ``count`` tokens more; it has no tensor of its own in the new graph."""

    cache: CacheInput
    count: Any  # int or SymInt


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """An output that was dense and leaves the new graph as the inner tensors of a cache."""

    format: CacheFormat
    tensors: tuple[Node, ...]  # codes, scales, window, state
    mean: Node | None
    norm: Node | None
    length: Any  # int or SymInt


@dataclasses.dataclass
class PassContext:
    """State of one run of the pipeline over one graph."""

    config: Config
    caches: dict[Node, CacheInput] = dataclasses.field(default_factory=dict)
    attentions: list[AttentionMatch] = dataclasses.field(default_factory=list)
    uses: dict[AttentionMatch, tuple[CacheUse, CacheUse]] = dataclasses.field(default_factory=dict)
    appended: dict[Node, Appended] = dataclasses.field(default_factory=dict)
    quantized: dict[Node, Quantized] = dataclasses.field(default_factory=dict)
    rewritten: list[AttentionMatch] = dataclasses.field(default_factory=list)
    outputs: list[Any] = dataclasses.field(default_factory=list)  # OutputPlan, an entry for each original output
    reasons: list[Reason] = dataclasses.field(default_factory=list)
