"""The report of a graph, made of what the passes have left in their context."""

from __future__ import annotations

import time

from ..config import InnerQConfig, describe
from ..kernels import ops
from ..kernels.internals.logs import compile_id
from ..passes import PassContext, left_out
from ..passes.analysis.buffer_writes import is_preallocated
from ..passes.context.context import AttentionMatch, CacheInput, CacheUse, Quantized, Reason
from ..passes.graph.values import example, shape
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
    """The report of a graph that the passes are done with. Not recorded yet."""
    for match in context.attentions:  # what was found, and whose pass did not run
        if match not in context.rewritten and match not in context.refused:
            context.refuse(match, "the passes that would rewrite it are switched off")
    reasons = list(context.reasons)
    if not reasons and not context.rewritten:
        off = ", or none was looked for: match_attention is off" if "match_attention" in config.disabled_passes else ""
        reasons.append(Reason(f"the graph holds no attention{off}"))
    layers = _layers(context)
    return GraphReport(
        kind=_kind(context),
        attentions=len(layers),
        rewritten=len(context.rewritten),
        reasons=(*reasons, *context.notes),
        layers=layers,
        config=describe(config),
        rewrite=config.rewrite,
        left_out=left_out(config.disabled_passes),
        compile_id=compile_id(),
        compiled_at=time.time_ns() // 1000,
    )


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
        return LayerReport(match.layer, match.where, match.kind, mask=mask, reason=context.refused[match].text)
    key_use, value_use = context.uses[match]
    key, value = _side(key_use, context), _side(value_use, context)
    return LayerReport(
        match.layer,
        match.where,
        match.kind,
        mask=mask,
        cache=_form(key_use),
        key=key.format.spec,
        value=value.format.spec,
        heads=shape(match.key)[3 - match.tokens_dims[0]],
        head_dim=shape(match.key)[3],
        value_dim=shape(match.value)[3],
        dtype=str(example(match.key).dtype).removeprefix("torch."),
        key_norm=_key_norm(match, key, key_use),
        kernel=_kernel(match, key_use, key, value, context),
        rewritten=True,
    )


def _side(use: CacheUse, context: PassContext) -> CacheInput | Quantized:
    """The quantized cache that an attention reads, or that is made of what it reads."""
    if use.kind == "fresh":
        return context.quantized[use.node]
    if use.buffer is None:
        assert use.cache is not None, "attentions without a cache are not rewritten"
        return use.cache
    if is_preallocated(use.buffer.buffer):
        return context.caches[use.buffer.buffer]
    pair = next(pair for pair in context.shadows if use.buffer.buffer in pair)
    shadow = context.shadows[pair]
    return shadow.key if pair[0] is use.buffer.buffer else shadow.value


def _form(use: CacheUse) -> CacheForm:
    if use.buffer is not None:
        return CacheForm.BUFFER if is_preallocated(use.buffer.buffer) else CacheForm.SHADOW
    return {"append": CacheForm.APPENDED, "read": CacheForm.READ, "fresh": CacheForm.FRESH}[use.kind]


def _mask(match: AttentionMatch) -> str:
    """All that decides which scores count, in words."""
    parts = list(dict.fromkeys("additive" if term.kind == "add" else "boolean" for term in match.terms))
    if match.is_causal:
        parts.append("causal")
    parts = parts or ["none"]
    if match.softcap:
        parts.append(f"softcap {match.softcap:g}")
    if match.sink_logits is not None:
        parts.append("sink logits")
    return " + ".join(parts)


def _key_norm(match: AttentionMatch, key: CacheInput | Quantized, use: CacheUse) -> KeyNormReport:
    if key.norm is None:
        return KeyNormReport()
    origin = KeyNormOrigin.FROM_PROMPT if use.kind == "fresh" else KeyNormOrigin.WITH_DEQUANTIZED
    return KeyNormReport(str(match.query_norm or ""), str(match.key_norm or ""), origin)


def _kernel(
    match: AttentionMatch,
    use: CacheUse,
    key: CacheInput | Quantized,
    value: CacheInput | Quantized,
    context: PassContext,
) -> AttentionKernel:
    if use.kind == "fresh":
        return AttentionKernel(ServedBy.PROGRAM_EXACT)
    if not context.config.rewrite:
        return AttentionKernel(ServedBy.PROGRAM_DEQUANTIZED)
    mask = None if match.mask is None else example(match.mask)
    query, windows = example(match.query), (example(key.window), example(value.window))
    return _chosen(ops.decode_kernel(query, *windows, mask, key.format, value.format))


def _chosen(words: str) -> AttentionKernel:
    """What the operators choose, which they say in words."""
    name, _, reason = words.partition(": ")
    servers = {
        "Triton, on packed fields": ServedBy.TRITON_FIELDS,
        "Triton, portable": ServedBy.TRITON_PORTABLE,
        "C++": ServedBy.CPP,
        "reference": ServedBy.REFERENCE,
    }
    return AttentionKernel(servers[name], reason)
