"""What the compiler did with each graph, for logs and for the user to ask."""

from __future__ import annotations

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..config import InnerQConfig, describe
from ..kernels import ops
from ..kernels.internals.logs import compile_id
from ..passes import PassContext, left_out
from ..passes.analysis.buffers import is_preallocated
from ..passes.context.context import AttentionMatch, CacheInput, CacheUse, Quantized, Reason
from ..passes.graph.values import example, shape
from .logs import trace_json

log = logging.getLogger(__name__)

#: Reports of the graphs compiled last, oldest first.
_REPORTS: collections.deque[GraphReport] = collections.deque(maxlen=1000)
_count = 0
_warned: set[tuple[str, ...]] = set()

#: What ``GraphReport.cuda_graphs`` says until Dynamo's metrics tell why (see ``explanation.py``).
SKIPPED = "no: Inductor skipped them"

#: Called with the report of a graph and the storages of its caches whenever a compiled graph has run.
OBSERVERS: list[Callable[[GraphReport, list[Any]], None]] = []


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one attention of one graph.

    Attributes:
        layer: the module that runs it, as ``model.layers.0.self_attn``; may be empty.
        where: the line of the user's program, ``File "...", line N, in f: code``; may be empty.
        match: ``sdpa`` or ``eager``; empty where the attention was not understood.
        cache: how its keys and values come about, in words.
        mask: what its mask is, in words.
        key, value: the formats of its caches (``CacheFormat.spec``); empty where it has none.
        heads, head_dim, value_dim: of its caches.
        dtype: of what the caches stand for.
        key_norm: where the key normalization went, in words.
        kernel: what computes it, and why nothing faster does.
        rewritten: whether it works on quantized caches, or makes them.
        reason: why it does not.
    """

    layer: str
    where: str
    match: str = ""
    cache: str = ""
    mask: str = ""
    key: str = ""
    value: str = ""
    heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    dtype: str = ""
    key_norm: str = ""
    kernel: str = ""
    rewritten: bool = False
    reason: str = ""

    @property
    def line(self) -> str:
        """``where`` in short: the file's name and the number of the line."""
        path, _, rest = self.where.removeprefix('File "').partition('", line ')
        number = rest.split(",")[0]
        return f"{path.rsplit('/', 1)[-1]}:{number}" if number else ""


@dataclasses.dataclass(eq=False)
class GraphReport:
    """What became of one graph.

    Attributes:
        kind: ``prefill`` (caches leave it quantized), ``decode`` (quantized caches enter it) or ``plain``.
        attentions: places that look like attention.
        rewritten: how many of them were rewritten.
        reasons: why the others were not, or why there is none.
        index: the number of the graph in this process.
        layers: what became of each attention.
        config: the config in words.
        rewrite: the config's switch; without it, "rewritten" attentions read dequantized caches.
        left_out: passes that were switched off, or needed one that was.
        cuda_graphs: whether CUDA graphs were asked for and are used, and why not, in words.
        compile_id: Dynamo's id of the compilation, ``frame/how often``.
        compiled_at: time of the compilation, microseconds since the epoch.
        calls: how often the graph has run.
        recorded: how many CUDA graphs were recorded of it (``recordings.py``; those of Inductor are not counted).
    """

    kind: str
    attentions: int
    rewritten: int
    reasons: tuple[Reason, ...]
    index: int = 0
    layers: tuple[LayerReport, ...] = ()
    config: str = ""
    rewrite: bool = True
    left_out: tuple[str, ...] = ()
    cuda_graphs: str = "not asked for"
    compile_id: str = ""
    compiled_at: int = 0
    calls: int = 0
    recorded: int = 0

    @property
    def headline(self) -> str:
        """The report in one line."""
        done = "rewritten" if self.rewrite else "served dequantized"
        line = f"graph {self.index}: {self.rewritten}/{self.attentions} attentions {done}, {self.kind}, {self.config}"
        if self.left_out:
            line += f", without {', '.join(self.left_out)}"
        return line

    def __str__(self) -> str:
        return "\n  ".join([self.headline, *map(str, self.reasons)])

    def ran(self, storages: list[Any]) -> None:
        """Note that the graph was called; ``storages`` are those of its caches."""
        self.calls += 1
        for observer in OBSERVERS:
            observer(self, storages)


def make_report(context: PassContext) -> GraphReport:
    """The report of a graph that the passes are done with. Not recorded yet."""
    config: InnerQConfig = context.config
    for match in context.attentions:  # what was found, and whose pass did not run
        if match not in context.rewritten and match not in context.refused:
            context.refuse(match, "the passes that would rewrite it are switched off")
    reasons = list(context.reasons)
    if not reasons and not context.rewritten:
        reasons.append(Reason("the graph holds no attention" + _because_off(config)))
    kind = "decode" if context.caches or context.shadows else "prefill" if context.rewritten else "plain"
    layers = _layers(context)
    return GraphReport(
        kind=kind,
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


def _because_off(config: InnerQConfig) -> str:
    return "" if "match_attention" not in config.disabled_passes else ", or none was looked for: match_attention is off"


def record(report: GraphReport) -> None:
    """Number a report, keep it, and log it."""
    global _count
    report.index, _count = _count, _count + 1
    _REPORTS.append(report)
    trace_json("innerq_report", lambda: to_dict(report))
    reasons = tuple(str(reason) for reason in report.reasons)
    log.info("%s", report.headline)
    if not report.rewritten and report.kind != "decode" and reasons not in _warned:
        _warned.add(reasons)  # once: other graphs of the program would say the same again
        if report.attentions or not any(other.rewritten for other in _REPORTS):  # else it is a piece of a whole
            text = "; ".join(dict.fromkeys(reasons))
            log.warning("nothing was rewritten in graph %d (%s): %s", report.index, report.config, text)
    for reason in reasons:
        log.debug("graph %d: %s", report.index, reason)


def compiled_graphs() -> list[GraphReport]:
    """Reports of the graphs that this process compiled, oldest first (the last 1000)."""
    return list(_REPORTS)


def clear_reports() -> None:
    """Forget the reports; the next graph is number 0, and what was warned of once is warned of again."""
    global _count
    _REPORTS.clear()
    _warned.clear()
    _count = 0


def to_dict(report: GraphReport) -> dict[str, Any]:
    """A report as JSON takes it."""
    return dataclasses.asdict(report)


# --- rows -----------------------------------------------------------------------------------------------------------


def _layers(context: PassContext) -> tuple[LayerReport, ...]:
    rows = [_layer(match, context) for match in context.attentions]
    known = set(context.refused.values())
    others = [reason for reason in context.reasons if reason not in known]
    return (*rows, *(LayerReport(reason.layer, reason.where, reason=reason.text) for reason in others))


def _layer(match: AttentionMatch, context: PassContext) -> LayerReport:
    row = {"layer": match.layer, "where": match.where, "match": match.kind, "mask": _mask(match)}
    if match in context.refused:
        return LayerReport(**row, reason=context.refused[match].text, kernel="the program's own attention")
    key, value = context.uses[match]
    sides = [_side(use, context) for use in (key, value)]
    heads, head_dim = shape(match.key)[3 - match.tokens_dims[0]], shape(match.key)[3]
    return LayerReport(
        **row,
        cache=_form(key),
        key=sides[0].format.spec,
        value=sides[1].format.spec,
        heads=heads,
        head_dim=head_dim,
        value_dim=shape(match.value)[3],
        dtype=str(example(match.key).dtype).removeprefix("torch."),
        key_norm=_key_norm(match, sides[0], key),
        kernel=_kernel(match, key, sides, context),
        rewritten=True,
    )


def _side(use: CacheUse, context: PassContext) -> CacheInput | Quantized:
    if use.kind == "fresh":
        return context.quantized[use.node]
    if use.kind != "buffer":
        return use.cache
    if is_preallocated(use.buffer.buffer):
        return context.caches[use.buffer.buffer]
    pair = next(pair for pair in context.shadows if use.buffer.buffer in pair)
    shadow = context.shadows[pair]
    return shadow.key if pair[0] is use.buffer.buffer else shadow.value


def _form(use: CacheUse) -> str:
    if use.kind == "buffer":
        return "quantized buffer" if is_preallocated(use.buffer.buffer) else "dense buffer with a quantized shadow"
    return {"append": "grows by cat", "read": "read, not written", "fresh": "begins here"}[use.kind]


def _mask(match: AttentionMatch) -> str:
    parts = list(dict.fromkeys("additive" if term.kind == "add" else "boolean" for term in match.terms))
    if match.is_causal:
        parts.append("causal")
    parts = parts or ["none"]
    if match.softcap:
        parts.append(f"softcap {match.softcap:g}")
    if match.sink_logits is not None:
        parts.append("sink logits")
    return " + ".join(parts)


def _key_norm(match: AttentionMatch, key: CacheInput | Quantized, use: CacheUse) -> str:
    if key.norm is None:
        return "none"
    places = [f"{what}: {place}" for what, place in (("query", match.query_norm), ("new key", match.key_norm)) if place]
    return ", ".join(places) or ("taken from the prompt" if use.kind == "fresh" else "in the dequantized keys")


def _kernel(match: AttentionMatch, use: CacheUse, sides: Iterable[CacheInput | Quantized], context: PassContext) -> str:
    if use.kind == "fresh":
        return "the program's own attention, on exact keys and values"
    if not context.config.rewrite:
        return "the program's own attention, on dequantized keys and values"
    key, value = sides
    mask = None if match.mask is None else example(match.mask)
    query, windows = example(match.query), (example(key.window), example(value.window))
    return ops.decode_kernel(query, *windows, mask, key.format, value.format)
