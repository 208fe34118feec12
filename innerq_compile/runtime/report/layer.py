"""The report of one attention of one graph."""

from __future__ import annotations

import dataclasses
from typing import Any

from .kernel import AttentionKernel
from .key_norm import KeyNormReport
from .words import StrEnum


class CacheForm(StrEnum):
    """How an attention gets its keys and values.

    Attributes:
        APPENDED: Cached tokens and new ones, concatenated.
        READ: Cached tokens only, as in cross-attention.
        FRESH: The tokens of a prompt, which become a new cache.
        BUFFER: An :class:`InnerQBuffer`.
        SHADOW: A preallocated dense buffer of the program, of which a quantized copy is kept.
    """

    APPENDED = "grows by cat"
    READ = "read, not written"
    FRESH = "created here"
    BUFFER = "quantized buffer"
    SHADOW = "dense buffer with a quantized shadow"


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How one attention of a graph was compiled.

    Attributes:
        layer: The module that calls it, as ``model.layers.0.self_attn``; may be empty.
        where: The line of the user's program, as ``File "...", line N, in f: code``; may be empty.
        match: ``sdpa`` or ``eager``; empty if the attention was not recognized.
        cache: How it gets its keys and values; None if it was not rewritten.
        mask: A description of its mask, such as ``none``.
        window: What the program keeps of a cache with a sliding window, such as ``last 511``; empty if it keeps all.
        key: The format of its key cache (``CacheFormat.spec``); empty if it has none.
        value: The format of its value cache; empty if it has none.
        heads: Number of KV heads.
        head_dim: Elements of a key.
        value_dim: Elements of a value.
        dtype: The dtype of keys and values before quantization, as ``bfloat16``.
        key_norm: Where the key normalization is applied; None if it was not rewritten.
        kernel: What computes it.
        rewritten: Whether it reads or creates quantized caches.
        reason: Why it was not rewritten; empty if it was.
    """

    layer: str
    where: str
    match: str = ""
    cache: CacheForm | None = None
    mask: str = ""
    window: str = ""
    key: str = ""
    value: str = ""
    heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    dtype: str = ""
    key_norm: KeyNormReport | None = None
    kernel: AttentionKernel = dataclasses.field(default_factory=AttentionKernel)
    rewritten: bool = False
    reason: str = ""

    @property
    def line(self) -> str:
        """``where`` in short: ``FILE:LINE`` without folders."""
        path, _, rest = self.where.removeprefix('File "').partition('", line ')
        number = rest.split(",")[0]
        return f"{path.rsplit('/', 1)[-1]}:{number}" if number else ""

    def to_dict(self) -> dict[str, Any]:
        """The report as a dict of JSON values."""
        shown = {name: str(getattr(self, name) or "") for name in ("cache", "key_norm", "kernel")}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown
