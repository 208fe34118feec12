"""What the passes tell one another: matches, cache inputs, the plan of inputs and outputs, reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.fx import Node

from ...kernels.formats import CacheFormat
from ..analysis.buffers import BufferUse
from ..graph.locations import module_path, source_line


class Config(Protocol):
    """What the passes need of ``innerq_compile.InnerQConfig``."""

    centre_keys: bool
    normalize_keys: bool
    rewrite: bool
    disabled_passes: tuple[str, ...]
    key_norm: str

    def format_for(self, role: str, head_dim: int, dtype: torch.dtype) -> CacheFormat: ...


class GraphError(ValueError):
    """A graph that can be compiled neither rewritten nor as it stands."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a place that looks like attention, or a whole graph, was left as it is.

    Attributes:
        text: the reason in words.
        where: the line of the user's program, or an empty string.
        layer: the module that runs it, as ``layers.0.self_attn``, or an empty string.
    """

    text: str
    where: str = ""
    layer: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.where})" if self.where else self.text


class NoMatch(Exception):
    """The reason why a place that looks like attention is none that is understood."""


@dataclasses.dataclass(eq=False)
class CacheInput:
    """A quantized cache among the inputs of a graph: its placeholder and those of its inner tensors."""

    placeholder: Node | None  # None for a shadow
    index: int | None  # position among the original inputs
    format: CacheFormat
    codes: Node
    scales: Node
    window: Node
    state: Node
    mean: Node | None
    norm: Node | None
    tokens_dim: int = 2  # 1 where the program keeps it as [B, S, H, D]

    @property
    def four(self) -> tuple[Node, Node, Node, Node]:
        return self.codes, self.scales, self.window, self.state

    @property
    def nodes(self) -> list[Node]:
        return [node for node in (*self.four, self.mean, self.norm) if node is not None]


@dataclasses.dataclass(frozen=True)
class MaskTerm:
    """One of the masks and biases of an attention.

    Attributes:
        node: a tensor that broadcasts to the scores.
        kind: ``add`` (to the scores), ``visible`` (boolean, True where a token is seen) or ``hidden`` (its opposite).
        factor: of what is added.
        dims: the axes of the scores' dimensions where it is applied, see ``attention/axes.py``.
    """

    node: Node
    kind: str
    factor: float
    dims: Any


@dataclasses.dataclass(frozen=True)
class AttentionAxes:
    """What the dimensions of the tensors of an attention run over, see ``attention/axes.py``.

    Attributes:
        query, out: of the query and the output as the program has them.
        batch, heads, rows, tokens, key_dim, value_dim: the axes of ``B``, ``Hq``, ``N``, ``S``, ``D``, ``Dv``.
        sinks: of the sink logits.
    """

    query: Any
    out: Any
    batch: Any
    heads: Any
    rows: Any
    tokens: Any
    key_dim: Any
    value_dim: Any
    sinks: Any = None


@dataclasses.dataclass(frozen=True)
class NormPlace:
    """Where the key normalization of an attention stands, see ``fold_key_norm.py``.

    Attributes:
        where: ``projection``, ``after rotary`` or ``none``.
        reason: why it does not stand at the projection.
    """

    where: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.where} ({self.reason})" if self.reason else self.where


@dataclasses.dataclass(eq=False)
class AttentionMatch:
    """One attention of the program.

    Found by `match_attention` in whatever layout the program has it; `standard_form` brings query, output, mask and
    sinks of those that will be rewritten into the layouts given here.

    Attributes:
        node: the node whose value is the attention output ``[B, Hq, N, Dv]``.
        query: ``[B, Hq, N, D]``; of a prompt's attention, which stays as it is, as found.
        key, value: ``[B, H, S, D]`` or ``[B, S, H, D]``, before heads were repeated.
        tokens_dims: the dimension of key and of value that the tokens are along, 2 or 1.
        scale: the factor of the scores.
        is_causal: SDPA's flag, which aligns the first query with the first key.
        kind: ``sdpa`` or ``eager``.
        axes: the layout of query, output, masks and sinks as found.
        terms: the masks as found.
        softcap: ``softcap * tanh(scores / softcap)`` where it is not 0.
        sink_logits: logits ``[Hq]`` of a token without a value that every query sees, or None.
        mask: all masks as one, additive or boolean, broadcasts to ``[B, Hq, N, S]``, or None.
        where, layer: the line of the user's program and the module, see :class:`Reason`.
        query_norm, key_norm: where the query is multiplied by the key normalization, and the new key divided by it,
            once `fold_key_norm` has decided that. None for what is not normalized in the graph.
    """

    node: Node
    query: Node
    key: Node
    value: Node
    scale: float
    is_causal: bool
    kind: str
    axes: AttentionAxes
    tokens_dims: tuple[int, int] = (2, 2)
    terms: tuple[MaskTerm, ...] = ()
    softcap: float = 0.0
    sink_logits: Node | None = None
    mask: Node | None = None
    where: str = ""
    layer: str = ""
    query_norm: NormPlace | None = None
    key_norm: NormPlace | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class KeyNormUse:
    """A query or a new key that is to be normalized.

    Attributes:
        op: the node that takes it.
        position: its place among the arguments.
        tensor: the query ``[B, Hq, N, D]`` or key ``[B, H, N, D]``.
        cache: whose statistics are meant.
        match: the attention.
        is_key: a new key, not a query.
    """

    op: Node
    position: int
    tensor: Node
    cache: CacheInput
    match: AttentionMatch
    is_key: bool


@dataclasses.dataclass(frozen=True, eq=False)
class CacheUse:
    """How an attention comes by its keys (or values).

    Attributes:
        kind: ``append`` (a quantized cache and new tokens behind it), ``read`` (a quantized cache as it is),
            ``buffer`` (a dense buffer that is written in place) or ``fresh`` (computed in this graph, and leaving it).
        cache: the quantized cache of ``append`` and ``read``.
        new: the new tokens of ``append``, in the layout of ``node``.
        buffer: the buffer of ``buffer``.
        node: what the attention reads, ``[B, H, S, D]`` or ``[B, S, H, D]``.
        tokens_dim: the dimension of ``node`` that the tokens are along, 2 or 1.
    """

    kind: str
    node: Node
    tokens_dim: int = 2
    cache: CacheInput | None = None
    new: Node | None = None
    buffer: BufferUse | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowInput:
    """The quantized shadow of a pair of buffers, an input that the backend adds to the graph.

    Attributes:
        key, value: its inner tensors.
        key_use, value_use: the buffers that it follows, and how they are written.
    """

    key: CacheInput
    value: CacheInput
    key_use: BufferUse
    value_use: BufferUse


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
    tokens_dim: int = 2


@dataclasses.dataclass
class PassContext:
    """State of one run of the pipeline over one graph."""

    config: Config
    caches: dict[Node, CacheInput] = dataclasses.field(default_factory=dict)
    attentions: list[AttentionMatch] = dataclasses.field(default_factory=list)
    shadows: dict[tuple[Node, Node], ShadowInput] = dataclasses.field(default_factory=dict)
    uses: dict[AttentionMatch, tuple[CacheUse, CacheUse]] = dataclasses.field(default_factory=dict)
    appended: dict[Node, Appended] = dataclasses.field(default_factory=dict)
    quantized: dict[Node, Quantized] = dataclasses.field(default_factory=dict)
    rewritten: list[AttentionMatch] = dataclasses.field(default_factory=list)
    key_norms: list[KeyNormUse] = dataclasses.field(default_factory=list)  # for `fold_key_norm`
    opened: dict[Any, Any] = dataclasses.field(default_factory=dict)  # `open_from` by mask, query tokens and length
    positions: dict[Any, Node] = dataclasses.field(default_factory=dict)  # numbers as tensors, by number and device
    outputs: list[Any] = dataclasses.field(default_factory=list)  # OutputPlan, an entry for each original output
    reasons: list[Reason] = dataclasses.field(default_factory=list)
    refused: dict[AttentionMatch, Reason] = dataclasses.field(default_factory=dict)  # matches among the reasons
    notes: list[Reason] = dataclasses.field(default_factory=list)  # what else a user may want to know
    static_lengths: bool = False  # whether the graph is to be recorded as a CUDA graph
    prelude: Any = None  # Prelude, where `hoist_lengths` has made one
    lengths_stay: str = ""  # why `hoist_lengths` left lengths in the graph

    def cache_inputs(self) -> Iterator[CacheInput]:
        """All quantized caches that enter the graph, shadows of dense buffers among them."""
        yield from self.caches.values()
        for pair in self.shadows.values():
            yield from (pair.key, pair.value)

    def refuse(self, place: AttentionMatch | Node, text: str) -> None:
        """Note why an attention, or what looks like one, stays as it is."""
        if isinstance(place, Node):
            self.reasons.append(Reason(text, source_line(place), module_path(place)))
        else:
            self.refused[place] = Reason(text, place.where, place.layer)
            self.reasons.append(self.refused[place])
