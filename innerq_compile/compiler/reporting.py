"""Builds the report of a graph from the context of its passes."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from ..config import InnerQConfig, describe
from ..kernels import dispatch
from ..kernels.attention_call import AttentionCall
from ..kernels.channels import with_zeros
from ..kernels.formats import CacheFormat
from ..kernels.internals.logs import compile_id
from ..passes import PassContext
from ..passes.analysis.buffer_writes import is_preallocated
from ..passes.context import AttentionMatch, CacheInput, CacheSource, CacheUse, MaskKind, NormPlaces, Quantized, Reason
from ..passes.graph.values import example, sizes_of
from ..runtime.report import (
    AttentionKernel,
    CacheForm,
    GraphKind,
    GraphReport,
    KeyNormOrigin,
    KeyNormReport,
    LayerReport,
    ServedBy,
)


def make_report(context: PassContext, config: InnerQConfig) -> GraphReport:
    """The report of a graph after the passes have run. It is not recorded yet."""
    for match in context.attentions:
        if match not in context.rewritten and match not in context.refused:  # its pass did not run
            why = "depend on a pass that failed" if context.failures else "are switched off"
            context.refuse(match, f"the passes that would rewrite it {why}")
    reasons = [*(Reason(str(failure)) for failure in context.failures), *context.reasons]
    if not reasons and not context.rewritten:
        off = " (match_attention is switched off)" if "match_attention" in config.disabled_passes else ""
        reasons.append(Reason(f"no attention was found in the graph{off}"))
    layers = _layers(context)
    return GraphReport(
        kind=_kind(context),
        attentions=len(layers),
        rewritten=len(context.rewritten),
        reasons=(*reasons, *dict.fromkeys(context.made_dense), *context.notes),
        made_dense=tuple(context.made_dense),
        layers=layers,
        config=describe(config),
        rewrite=config.rewrite,
        left_out=context.left_out,
        **_now(),
    )


def stamp(report: GraphReport) -> GraphReport:
    """The report of an earlier compilation for one of now."""
    return dataclasses.replace(report, **_now())


def _now() -> dict[str, Any]:
    return {"compile_id": compile_id(), "compiled_at": time.time_ns() // 1000}


def _kind(context: PassContext) -> GraphKind:
    if context.caches or context.shadows:
        return GraphKind.DECODE
    return GraphKind.PREFILL if context.rewritten else GraphKind.PLAIN


def _layers(context: PassContext) -> tuple[LayerReport, ...]:
    layers = [_layer(match, context) for match in context.attentions]
    of_matches = set(context.refused.values())
    others = [reason for reason in context.reasons if reason not in of_matches]
    return (*layers, *(LayerReport(reason.layer, reason.where, reason=reason.text) for reason in others))


def _layer(match: AttentionMatch, context: PassContext) -> LayerReport:
    mask = _mask(match)
    if match in context.refused:
        return LayerReport(match.layer, match.where, match.form.value, mask=mask, reason=context.refused[match].text)
    key_use, value_use = context.uses[match]
    key, value = _side(key_use, context), _side(value_use, context)
    return LayerReport(
        match.layer,
        match.where,
        match.form.value,
        mask=mask,
        cache=_form(key_use),
        window=_window(key_use, key.format),
        key=key.format.spec,
        value=value.format.spec,
        heads=sizes_of(match.key)[3 - match.tokens_dims[0]],
        head_dim=sizes_of(match.key)[3],
        value_dim=sizes_of(match.value)[3],
        dtype=str(example(match.key).dtype).removeprefix("torch."),
        key_norm=_key_norm(context.norm_places.get(match, NormPlaces()), key, key_use),
        kernel=_kernel(match, key_use, key, value, context),
        rewritten=True,
    )


def _side(use: CacheUse, context: PassContext) -> CacheInput | Quantized:
    """The quantized cache that an attention reads, or that is created from the keys or values that it reads."""
    if use.source.makes_cache:
        return context.quantized[use.returned]
    if use.source is not CacheSource.BUFFER:
        return use.cache
    if is_preallocated(use.buffer.buffer):
        return context.caches[use.buffer.buffer]
    pair = next(pair for pair in context.shadows if use.buffer.buffer in pair)
    shadow = context.shadows[pair]
    return shadow.key if pair[0] is use.buffer.buffer else shadow.value


def _form(use: CacheUse) -> CacheForm:
    if use.source is CacheSource.BUFFER:
        return CacheForm.BUFFER if is_preallocated(use.buffer.buffer) else CacheForm.SHADOW
    forms = {CacheSource.APPENDED: CacheForm.APPENDED, CacheSource.READ: CacheForm.READ}
    return forms.get(use.source, CacheForm.READ if use.source is CacheSource.BESIDE else CacheForm.FRESH)


def _window(use: CacheUse, fmt: CacheFormat) -> str:
    """What the program keeps of the tokens of a cache; empty if it keeps all."""
    if use.kept is None and use.window is None:
        return ""
    kept = "last tokens" if use.window is None else f"last {use.window:,}"
    return f"{kept}, in a ring" if fmt.rolls else kept


def _mask(match: AttentionMatch) -> str:
    """A description of everything that changes scores before the softmax: mask, causality, softcap, sink logits."""
    parts = list(dict.fromkeys("additive" if term.kind is MaskKind.ADDED else "boolean" for term in match.terms))
    if match.is_causal:
        parts.append("causal")
    parts = parts or ["none"]
    if match.softcap:
        parts.append(f"softcap {match.softcap:g}")
    if match.sink_logits is not None:
        parts.append("sink logits")
    return " + ".join(parts)


def _key_norm(places: NormPlaces, key: CacheInput | Quantized, use: CacheUse) -> KeyNormReport:
    if key.tensors.norm is None:
        return KeyNormReport()
    origin = KeyNormOrigin.FROM_PROMPT if use.source.makes_cache else KeyNormOrigin.WITH_DEQUANTIZED
    return KeyNormReport(str(places.query or ""), str(places.key or ""), origin)


def _kernel(
    match: AttentionMatch,
    use: CacheUse,
    key: CacheInput | Quantized,
    value: CacheInput | Quantized,
    context: PassContext,
) -> AttentionKernel:
    if use.source.makes_cache:
        return AttentionKernel(ServedBy.PROGRAM_EXACT)
    if use.source is CacheSource.BESIDE or not context.config.rewrite:
        return AttentionKernel(ServedBy.PROGRAM_DEQUANTIZED)
    form = context.standard[match]
    mask = None if form.mask is None else example(form.mask)
    keys, values = key.tensors.map(example), value.tensors.map(example)
    query, other = example(form.query), None
    if match.latent is not None:
        query, other = (query.new_empty((*query.shape[:3], side.window.shape[3])) for side in (keys, values))
    query = query if match.latent is not None else with_zeros(query, key.format)
    call = AttentionCall(query, keys, values, mask, None, None, match.scale, match.softcap, value_query=other)
    return AttentionKernel.of(dispatch.decode_kernel(call))
