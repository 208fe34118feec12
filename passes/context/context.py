"""The state of one run of the pipeline over one graph."""

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
    """What the passes need of ``innerq_compile.InnerQConfig``."""

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
    def format_for(self, role: Role, head_dim: int, dtype: torch.dtype) -> CacheFormat: ...


@dataclasses.dataclass
class PassContext:
    """What is given to the passes, and what they find for those behind them.

    Which pass reads and writes which field is declared in ``passes/__init__.py``, and checked.

    Attributes:
        config: what was asked for (given).
        static_lengths: whether the graph is to be recorded as a CUDA graph (given).
        left_out: the passes that do not run, in order (given).
        failures: those among them that failed (given).
        caches: quantized caches among the inputs, by their placeholder.
        attentions: all attentions of the graph, in order.
        uses: how an attention comes by its keys and by its values, of those that have a cache.
        standard: these attentions in their one form.
        rewritten: the attentions that read or make a quantized cache in the new graph.
        appended: for what the program appended to a cache, the cache that the new graph has appended to.
        shadows: the quantized shadows of pairs of dense buffers, by the buffers of keys and values.
        quantized: for dense keys and values that leave the graph, the cache that leaves the new one.
        opened: ``open_from`` that was computed already, by what it depends on, with the position of the write.
        positions: numbers that were made tensors already, by number and device.
        key_norms: queries and new keys that are to be normalized.
        norm_places: where they are.
        outputs: an entry for each output of the original graph.
        prelude: what is computed before the graph, if anything.
        lengths_not_hoisted: why lengths stay in a graph that is to be recorded, or an empty string.
        reasons: why attentions, or what looks like one, stay as they are.
        refused: those of the reasons that concern an attention that was found.
        notes: what else a user may want to know.
    """

    config: Config
    static_lengths: bool = False
    left_out: tuple[str, ...] = ()
    failures: tuple[PassFailure, ...] = ()
    caches: dict[Node, ProgramCache] = dataclasses.field(default_factory=dict)
    attentions: list[AttentionMatch] = dataclasses.field(default_factory=list)
    uses: dict[AttentionMatch, tuple[CacheUse, CacheUse]] = dataclasses.field(default_factory=dict)
    standard: dict[AttentionMatch, StandardForm] = dataclasses.field(default_factory=dict)
    rewritten: list[AttentionMatch] = dataclasses.field(default_factory=list)
    appended: dict[Node, Appended] = dataclasses.field(default_factory=dict)
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
    notes: list[Reason] = dataclasses.field(default_factory=list)

    def format_for(self, role: Role, head_dim: int, dtype: torch.dtype) -> CacheFormat:
        """The format that the config wants for one side of an attention.

        Raises:
            GraphError: for keys or values that it cannot hold.
        """
        try:
            return self.config.format_for(role, head_dim, dtype)
        except ValueError as error:
            raise GraphError(str(error)) from error

    def cache_inputs(self) -> Iterator[CacheInput]:
        """All quantized caches that enter the graph, shadows of dense buffers among them."""
        yield from self.caches.values()
        for pair in self.shadows.values():
            yield from (pair.key, pair.value)

    def refuse(self, place: AttentionMatch | Node, text: str) -> None:
        """Note why an attention, or what looks like one, stays as it is."""
        if isinstance(place, Node):
            self.reasons.append(Reason.at(place, text))
        else:
            self.refused[place] = Reason(text, place.where, place.layer)
            self.reasons.append(self.refused[place])
