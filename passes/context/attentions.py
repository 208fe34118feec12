"""The attentions of a graph: as matched, in standard form, and where their key normalization is applied."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from torch.fx import Node

from .caches import CacheInput


class MaskKind(enum.Enum):
    """How a mask acts on the scores."""

    ADDED = "added to the scores"
    VISIBLE = "True for tokens that are attended to"
    HIDDEN = "True for tokens that are masked out"


@dataclasses.dataclass(frozen=True)
class MaskTerm:
    """One of the masks and biases of an attention.

    Attributes:
        node: a tensor that broadcasts to the scores.
        kind: how it acts on them.
        factor: a constant that an added mask is multiplied by.
        dims: the axes of the scores' dimensions at the operation that applies it, see ``attention/axes.py``.
    """

    node: Node
    kind: MaskKind
    factor: float
    dims: Any


@dataclasses.dataclass(frozen=True)
class AttentionAxes:
    """The axes of the dimensions of an attention's tensors, see ``attention/axes.py``.

    Attributes:
        query, out: axes of each dimension of query and output, in the program's layout.
        batch, heads, rows, tokens, key_dim, value_dim: axes of ``B``, ``Hq``, ``N``, ``S``, ``D`` and ``Dv``.
        sinks: axes of the dimensions of the sink logits; None if there are none.
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


class AttentionForm(enum.Enum):
    """How the program writes an attention: as a call of SDPA, or in single operations. Reports show the value."""

    SDPA = "sdpa"
    EAGER = "eager"


@dataclasses.dataclass(frozen=True)
class Projection:
    """The part of the weight of a linear layer by which heads of keys or values are computed from a latent.

    ``weight[first : first + heads * width].view(heads, width, R)[:, start:stop]``
    """

    weight: Node
    first: int
    heads: int
    width: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class Latent:
    """How the keys and values that a program attends to are computed from a cached latent, see ``attention/latent.py``.

    Attributes:
        keys: what projects the latent to a part of the keys, ``[H, n, R]``.
        values: what projects it to the values, ``[H, v, R]``.
        projected: that part of the keys: its first channel, and the one behind its last.
        rotary: the other part, which all heads share.
        computed: the keys that the program attends to.
        writes: the nodes that write these, where they are a new tensor.
        nodes: what the program computes between the cache and the attention.
    """

    keys: Projection
    values: Projection
    projected: tuple[int, int]
    rotary: tuple[int, int]
    computed: Node
    writes: tuple[Node, ...]
    nodes: frozenset[Node]


@dataclasses.dataclass(frozen=True, eq=False)
class HeadRange:
    """The heads of the cached values that an attention reads, where each head of keys does not meet its own.

    Head h of the keys meets head ``first + h % count`` of the values: those of ``values[:, first : first + count]``,
    one after another and again from the first one on.

    Attributes:
        first, count: the first of them, and how many.
        nodes: what takes them from the values.
    """

    first: int
    count: int
    nodes: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenPart:
    """One of several caches whose tokens an attention of the program reads one behind another.

    Attributes:
        index: which of them, in the program's order.
        sizes: the number of tokens of each of them.
        nodes: what puts the keys and the values together.
    """

    index: int
    sizes: tuple[Any, ...]
    nodes: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMatch:
    """One attention as `match_attention` finds it, in the program's own layout.

    Attributes:
        node: the node of the attention output.
        query: the query, before any cast to a wider dtype.
        key, value: ``[B, H, S, D]`` or ``[B, S, H, D]``, before heads are repeated for GQA; the rotary key and the
            latent of a latent attention.
        scale: the factor of the scores.
        is_causal: SDPA's flag, which aligns the first query with the first key.
        form: how the program writes the attention.
        axes: the layout of query, output, masks and sinks.
        tokens_dims: the dimensions of key and value that count tokens, each 2 or 1.
        terms: masks and biases.
        softcap: scores become ``softcap * tanh(scores / softcap)``; 0 for no softcap.
        sink_logits: logits that take part in the softmax without a value (attention sinks): one for each head, or for
            each head and token of the query; None if there are none.
        latent: how keys and values are computed from a latent; None in any other attention.
        value_heads: the heads of ``value`` that are read; None if each head of keys meets its own.
        part: which of several caches that the attention reads ``key`` and ``value`` are; there is a match for each of
            them, with the same ``node``. None if they are all that it reads.
        where, layer: the line of the user's program and the module, see :class:`Reason`.
    """

    node: Node
    query: Node
    key: Node
    value: Node
    scale: float
    is_causal: bool
    form: AttentionForm
    axes: AttentionAxes
    tokens_dims: tuple[int, int] = (2, 2)
    terms: tuple[MaskTerm, ...] = ()
    softcap: float = 0.0
    sink_logits: Node | None = None
    latent: Latent | None = None
    value_heads: HeadRange | None = None
    part: TokenPart | None = None
    where: str = ""
    layer: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class StandardForm:
    """An attention in the one layout that passes after `standard_form` expect.

    The attention of a prefill is not replaced, so only its mask is brought into this form.

    Attributes:
        node: the output ``[B, Hq, N, Dv]``.
        query: ``[B, Hq, N, D]``.
        mask: all masks merged into one, additive or boolean, that broadcasts to ``[B, Hq, N, S]``; None for no mask.
        sink_logits: ``[Hq]``, or ``[B, Hq, N]``, or None.
    """

    node: Node
    query: Node
    mask: Node | None
    sink_logits: Node | None


# --- the key normalization ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class KeyNormUse:
    """A query or new key to which `fold_key_norm` applies the key normalization.

    Attributes:
        op: the operation that takes it: the operator, or one that puts zeros behind its channels for the operator.
        argument: the name of the operation's parameter.
        tensor: the query ``[B, Hq, N, D]`` or key ``[B, H, N, D]``, not normalized.
        cache: the key cache, which holds mean and norm.
        match: the attention.
        is_key: True for a new key, False for a query.
    """

    op: Node
    argument: str
    tensor: Node
    cache: CacheInput
    match: AttentionMatch
    is_key: bool

    @classmethod
    def of(
        cls,
        op: Node,
        argument: str,
        given: Node,
        tensor: Node,
        cache: CacheInput,
        match: AttentionMatch,
        *,
        is_key: bool,
    ) -> KeyNormUse:
        """The use of ``tensor`` by an operator that is ``given`` it, or it with zeros behind its channels."""
        op, argument = (op, argument) if given is tensor else (given, "input")
        return cls(op, argument, tensor, cache, match, is_key)


class NormSite(enum.Enum):
    """Where a key normalization is applied. Reports show the value."""

    PROJECTION = "projection"
    AFTER_ROTARY = "after rotary"
    NONE = "none"


@dataclasses.dataclass(frozen=True)
class NormPlace:
    """Where the key normalization is applied to a query or a new key, see ``fold_key_norm.py``.

    Attributes:
        site: where.
        reason: why not at the projection; empty if it is.
    """

    site: NormSite
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.site.value} ({self.reason})" if self.reason else self.site.value


@dataclasses.dataclass(frozen=True)
class NormPlaces:
    """Where the key normalization is applied to query and new key; None for one that the graph does not normalize."""

    query: NormPlace | None = None
    key: NormPlace | None = None
