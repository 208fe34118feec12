"""The attentions of a graph: as they were found, in their one form, and what is done for their key normalization."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from torch.fx import Node

from .caches import CacheInput


class MaskKind(enum.Enum):
    """What a mask says of the scores that it broadcasts to."""

    ADDED = "added to the scores"
    VISIBLE = "True where a token is seen"
    HIDDEN = "True where a token is hidden"


@dataclasses.dataclass(frozen=True)
class MaskTerm:
    """One of the masks and biases of an attention.

    Attributes:
        node: a tensor that broadcasts to the scores.
        kind: what it says of them.
        factor: of what is added.
        dims: the axes of the scores' dimensions where it is applied, see ``attention/axes.py``.
    """

    node: Node
    kind: MaskKind
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


class AttentionForm(enum.Enum):
    """How the program writes an attention; the value is what reports show."""

    SDPA = "sdpa"
    EAGER = "eager"


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMatch:
    """One attention of the program as `match_attention` finds it, in whatever layout the program has it.

    Attributes:
        node: the node whose value is the attention output.
        query: the query before casts that change no number.
        key, value: ``[B, H, S, D]`` or ``[B, S, H, D]``, before heads were repeated.
        scale: the factor of the scores.
        is_causal: SDPA's flag, which aligns the first query with the first key.
        form: one call, or written out.
        axes: the layout of query, output, masks and sinks.
        tokens_dims: the dimension of key and of value that the tokens are along, 2 or 1.
        terms: the masks.
        softcap: ``softcap * tanh(scores / softcap)`` where it is not 0.
        sink_logits: logits ``[Hq]`` of a token without a value that every query sees, or None.
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
    where: str = ""
    layer: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class StandardForm:
    """An attention in the layout that all passes behind `standard_form` take for granted.

    Attributes:
        node: the output ``[B, Hq, N, Dv]``.
        query: ``[B, Hq, N, D]``.
        mask: all masks as one, additive or boolean, broadcasts to ``[B, Hq, N, S]``, or None.
        sink_logits: ``[Hq]``, or None.

    The attention of a prompt stays as it is: of it only the mask is in this form.
    """

    node: Node
    query: Node
    mask: Node | None
    sink_logits: Node | None


# --- the key normalization ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class KeyNormUse:
    """A query or a new key that is to be normalized.

    Attributes:
        op: the operator that takes it.
        argument: the name of its argument.
        tensor: the query ``[B, Hq, N, D]`` or key ``[B, H, N, D]``.
        cache: whose statistics are meant.
        match: the attention.
        is_key: a new key, not a query.
    """

    op: Node
    argument: str
    tensor: Node
    cache: CacheInput
    match: AttentionMatch
    is_key: bool


class NormSite(enum.Enum):
    """Where a key normalization stands; the value is what reports show."""

    PROJECTION = "projection"
    AFTER_ROTARY = "after rotary"
    NONE = "none"


@dataclasses.dataclass(frozen=True)
class NormPlace:
    """Where the key normalization of a query, or of a new key, stands, see ``fold_key_norm.py``.

    Attributes:
        site: the place.
        reason: why it does not stand at the projection.
    """

    site: NormSite
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.site.value} ({self.reason})" if self.reason else self.site.value


@dataclasses.dataclass(frozen=True)
class NormPlaces:
    """Where an attention is normalized; None for what is not normalized in the graph."""

    query: NormPlace | None = None
    key: NormPlace | None = None
