"""The context of one run of the pipeline over one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.fx import Node

from ...kernels.formats import CacheFormat, Role
from .attentions import AttentionMatch, KeyNormUse, NormPlaces, StandardForm
from .caches import CacheInput, CacheUse, ProgramCache, ShadowInput
from .outputs import Appended, OutputPlan, Quantized
from .prelude import Prelude
from .reasons import GraphError, PassFailure, Reason


class Config(Protocol):
    """The part of ``innerq_compile.InnerQConfig`` that the passes use."""

    @property
    def centre_keys(self) -> bool: ...
    @property
    def normalize_keys(self) -> bool: ...
    @property
    def rewrite(self) -> bool: ...
    @property
    def strict(self) -> bool: ...
    @property
    def disabled_passes(self) -> tuple[str, ...]: ...
    @property
    def key_norm(self) -> str: ...
    def format_for(self, role: Role, head_dim: int, dtype: torch.dtype, *, latent: bool = False) -> CacheFormat: ...


@dataclasses.dataclass
class PassContext:
    """Inputs of the pipeline, and results that passes leave for later passes and for the compiler.

    ``passes/__init__.py`` declares which pass reads and writes which field; the pipeline checks it. Fields marked
    (input) are set before the first pass and never change.

    Attributes:
        config: the user's config (input).
        static_lengths: whether the graph is to be recorded as a CUDA graph (input).
        uncounted: names of the inputs that do not count what is written to them, as those that were made under
            ``torch.inference_mode()`` (input).
        left_out: names of the passes that do not run, in order (input).
        failures: the failures of those passes among them that raised an exception (input).
        caches: quantized caches among the inputs, by their placeholders.
        attentions: all attentions that were matched, in graph order.
        unmatched: the outputs of attentions that were not recognized.
        uses: for each attention with a cache, where its keys and its values come from.
        standard: the standard form of each of these attentions.
        rewritten: the attentions that read or create a quantized cache in the rewritten graph.
        appended: the caches that the rewritten graph appends to, by the program's node of the longer cache.
        pairs: the key and the value cache that an attention reads.
        shadows: the quantized shadows of dense buffers, by the placeholders of the key and the value buffer.
        quantized: the caches that the rewritten graph creates, by the program's dense keys or values.
        opened: results of ``open_from`` for reuse, by what they depend on, with the position of the write.
        positions: tensors that hold a number of the graph, for reuse, by number and device.
        key_norms: queries and new keys that have to be normalized.
        norm_places: where the key normalization of each attention is applied.
        outputs: an entry for each output of the original graph.
        prelude: the graph that runs before this one, or None.
        lengths_not_hoisted: why a graph to be recorded still depends on a length; empty if it does not.
        reasons: why attentions, recognized or not, were not rewritten.
        refused: those of the reasons that belong to a matched attention.
        made_dense: for each quantized cache that the program returns dense, where it becomes so.
        notes: further remarks for the user.
    """

    config: Config
    static_lengths: bool = False
    uncounted: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()
    failures: tuple[PassFailure, ...] = ()
    caches: dict[Node, ProgramCache] = dataclasses.field(default_factory=dict)
    attentions: list[AttentionMatch] = dataclasses.field(default_factory=list)
    unmatched: set[Node] = dataclasses.field(default_factory=set)
    uses: dict[AttentionMatch, tuple[CacheUse, CacheUse]] = dataclasses.field(default_factory=dict)
    standard: dict[AttentionMatch, StandardForm] = dataclasses.field(default_factory=dict)
    rewritten: list[AttentionMatch] = dataclasses.field(default_factory=list)
    appended: dict[Node, Appended] = dataclasses.field(default_factory=dict)
    pairs: dict[tuple[ProgramCache, ProgramCache], None] = dataclasses.field(default_factory=dict)
    shadows: dict[tuple[Node, Node], ShadowInput] = dataclasses.field(default_factory=dict)
    quantized: dict[Node, Quantized] = dataclasses.field(default_factory=dict)
    opened: dict[tuple[Any, ...], tuple[Node, Node | None]] = dataclasses.field(default_factory=dict)
    positions: dict[tuple[Node, torch.device], Node] = dataclasses.field(default_factory=dict)
    key_norms: list[KeyNormUse] = dataclasses.field(default_factory=list)
    norm_places: dict[AttentionMatch, NormPlaces] = dataclasses.field(default_factory=dict)
    outputs: list[OutputPlan] = dataclasses.field(default_factory=list)
    prelude: Prelude | None = None
    lengths_not_hoisted: str = ""
    reasons: list[Reason] = dataclasses.field(default_factory=list)
    refused: dict[AttentionMatch, Reason] = dataclasses.field(default_factory=dict)
    made_dense: list[Reason] = dataclasses.field(default_factory=list)
    notes: list[Reason] = dataclasses.field(default_factory=list)

    def format_for(self, role: Role, head_dim: int, dtype: torch.dtype, *, latent: bool = False) -> CacheFormat:
        """The cache format for the keys or values of an attention, or of a latent one, according to the config.

        Raises:
            GraphError: if the config does not support this head_dim or dtype.
        """
        try:
            return self.config.format_for(role, int(head_dim), dtype, latent=latent)  # perhaps a symbolic int
        except ValueError as error:
            raise GraphError(str(error)) from error

    def cache_inputs(self) -> Iterator[CacheInput]:
        """All quantized caches among the inputs of the rewritten graph, shadows of dense buffers included."""
        yield from self.caches.values()
        for pair in self.shadows.values():
            yield from (pair.key, pair.value)

    def caches_with_room(self) -> list[tuple[int, CacheInput]]:
        """A cache for each of the capacities that the caches have, and the index of its codes among all inner tensors.

        Those that grow have one, and those that are only read, of an encoder, another. A mask may have a column for
        each token of all of these.
        """
        growing = {longer.cache for longer in self.appended.values()}
        found: dict[bool, tuple[int, CacheInput]] = {}
        index = 0
        for cache in self.cache_inputs():
            is_read = isinstance(cache, ProgramCache) and cache not in growing and bool(growing)
            found.setdefault(is_read, (index, cache))
            index += len([*cache.tensors])
        return [*found.values()]

    def for_calls(self) -> PassContext:
        """A context with the fields that calls of the compiled graph need, without those that are about its nodes."""
        about_calls = ("caches", "appended", "pairs", "shadows", "outputs", "prelude")
        needed = ("left_out", "failures", *about_calls, "lengths_not_hoisted", "reasons", "notes")
        return PassContext(self.config, self.static_lengths, **{name: getattr(self, name) for name in needed})

    def refuse(self, attention: AttentionMatch | Node, text: str) -> None:
        """Record why an attention is not rewritten.

        Args:
            attention: the attention, or the output node of one that was not recognized.
            text: the reason.
        """
        if isinstance(attention, Node):
            self.reasons.append(Reason.at(attention, text))
        else:
            self.refused[attention] = Reason(text, attention.where, attention.layer)
            self.reasons.append(self.refused[attention])
