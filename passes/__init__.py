"""The pipeline: from the graph of a program with a key/value cache to the graph with a quantized one.

Each pass is a function ``(graph module, context) -> graph module`` in a file of its own, which opens with what it turns
into what. It changes the graph that it gets, a copy of Dynamo's. Passes depend on the graph and the config alone; what
they find is left in the context (``context/``) for those behind them. The list says what each reads there and writes,
and is checked: see ``pipeline/``. To add a pass, write its file and its entry here.
"""

from __future__ import annotations

from .context import PassContext
from .dequantize_rest import dequantize_rest
from .fold_key_norm import fold_key_norm
from .hoist_lengths import hoist_lengths
from .index_writes import index_writes
from .join_linears import join_linears
from .match_attention import match_attention
from .match_cache import match_cache
from .pipeline import Pass, Pipeline
from .plan_outputs import plan_outputs
from .quantize_prefill import quantize_prefill
from .rewrite_buffer import rewrite_buffer
from .rewrite_decode import rewrite_decode
from .standard_form import standard_form
from .unwrap_caches import unwrap_caches
from .write_preallocated import write_preallocated

_REFUSALS = ("reasons", "refused")

PIPELINE = Pipeline(
    (
        Pass(
            unwrap_caches,
            "placeholders for the inner tensors of quantized caches",
            writes=("caches",),
            required=True,
        ),
        Pass(
            match_attention,
            "find attentions: query, key, value, masks, scale",
            reads=("caches",),
            writes=("attentions", *_REFUSALS),
        ),
        Pass(
            match_cache,
            "where their keys and values come from",
            reads=("caches", "attentions"),
            writes=("uses", *_REFUSALS),
        ),
        Pass(
            standard_form,
            "their query, masks and output in one layout",
            writes=("uses", "standard", *_REFUSALS),
        ),
        Pass(
            rewrite_decode,
            "cache write + attention -> append_ + decode_attention",
            reads=("config", "uses", "standard"),
            writes=("rewritten", "appended", "key_norms", "opened", *_REFUSALS),
            needs=("standard_form", "fold_key_norm"),
        ),
        Pass(
            rewrite_buffer,
            "attention over a buffer written in place -> over a quantized shadow of it",
            reads=("config", "caches", "uses", "standard"),
            writes=("rewritten", "shadows", "key_norms", "opened", "positions", *_REFUSALS),
            needs=("standard_form", "fold_key_norm"),
        ),
        Pass(
            fold_key_norm,
            "query and new key normalized, at their projections where RoPE allows it",
            reads=("key_norms", "appended"),
            writes=("norm_places", "notes"),
        ),
        Pass(
            write_preallocated,
            "other writes to, and readers of, a buffer that is quantized itself",
            reads=("caches",),
            writes=("positions",),
            required=True,
        ),
        Pass(
            quantize_prefill,
            "fresh keys and values leave the graph quantized",
            reads=("config", "attentions", "uses", "standard"),
            writes=("rewritten", "quantized"),
            needs=("standard_form",),
        ),
        Pass(
            dequantize_rest,
            "any other reader of a cache reads it dequantized",
            reads=("caches", "appended"),
            required=True,
        ),
        Pass(
            plan_outputs,
            "outputs of the new graph, and how the program's are made of them",
            reads=("caches", "appended", "quantized"),
            writes=("outputs",),
            required=True,
        ),
        Pass(
            join_linears,
            "of a single token on a GPU: linear layers of one input, side by side",
            reads=("caches", "shadows"),
        ),
        Pass(
            index_writes,
            "for CUDA graphs: positions of writes as tensors",
            reads=("static_lengths", "shadows"),
            writes=("positions",),
        ),
        Pass(
            hoist_lengths,
            "for CUDA graphs: what depends on the length goes into a graph of its own",
            reads=("static_lengths", "caches", "shadows"),
            writes=("prelude", "lengths_not_hoisted", "notes"),
        ),
    )
)

__all__ = ["PIPELINE", "Pass", "PassContext", "Pipeline"]
