"""The report of one attention of one graph."""

from __future__ import annotations

import dataclasses
from typing import Any

from .kernel import AttentionKernel
from .key_norm import KeyNormReport
from .words import Word


class CacheForm(Word):
    """How the keys and values of an attention are cached."""

    APPENDED = "grows by cat"
    READ = "read, not written"
    FRESH = "begins here"
    BUFFER = "quantized buffer"
    SHADOW = "dense buffer with a quantized shadow"


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one attention of one graph.

    Attributes:
        layer: the module that runs it, as ``model.layers.0.self_attn``; may be empty.
        where: the line of the user's program, ``File "...", line N, in f: code``; may be empty.
        match: ``sdpa`` or ``eager``, the form that was recognized; empty where the attention was not recognized.
        cache: how its keys and values are cached; None where it was not rewritten.
        mask: its mask, in words.
        key: the format of its key cache (``CacheFormat.spec``); empty where it has none.
        value: the same for values.
        heads: number of KV heads.
        head_dim: channels of a key.
        value_dim: channels of a value.
        dtype: dtype of the tensors that the caches stand for, as ``float16``.
        key_norm: where the key normalization is applied; None where the attention was not rewritten.
        kernel: what computes it, and why nothing faster does.
        rewritten: whether it reads quantized caches, or makes them.
        reason: why it was not rewritten; empty where it was.
    """

    layer: str
    where: str
    match: str = ""
    cache: CacheForm | None = None
    mask: str = ""
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
        """``where`` in short: the file's name and the number of the line."""
        path, _, rest = self.where.removeprefix('File "').partition('", line ')
        number = rest.split(",")[0]
        return f"{path.rsplit('/', 1)[-1]}:{number}" if number else ""

    def to_dict(self) -> dict[str, Any]:
        """All attributes as strings, numbers and booleans, ready for JSON."""
        shown = {name: str(getattr(self, name) or "") for name in ("cache", "key_norm", "kernel")}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | shown
