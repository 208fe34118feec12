"""The pass pipeline: rewrites the graph of a program with a KV cache into one with a quantized KV cache.

A pass is a function ``(graph module, context) -> graph module`` in a file of its own, whose docstring shows the graph
before and after. It changes the graph in place; that graph is a copy of the one that Dynamo captured. Passes depend on
nothing but the graph and the config, and hand results to later passes through the context (``context/``). The list
below is the order in which they run, and declares which fields of the context each pass reads and writes; ``pipeline/``
checks that. To add a pass, write its file and add it to the list.
"""

from __future__ import annotations

from .causal_prefill import causal_prefill
from .context import PassContext
from .dequantize_rest import dequantize_rest
from .fill_constants import fill_constants
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
from .skip_whole_slices import skip_whole_slices
from .standard_form import standard_form
from .unwrap_caches import unwrap_caches
from .write_preallocated import write_preallocated

_REFUSALS = ("reasons", "refused")

PIPELINE = Pipeline(
    (
        Pass(
            unwrap_caches,
            "add placeholders for the inner tensors of quantized caches",
            writes=("caches",),
            required=True,
        ),
        Pass(skip_whole_slices, "skip slices that take everything, such as that of a window which is not reached"),
        Pass(
            match_attention,
            "find attentions with their query, key, value, masks and scale",
            reads=("caches",),
            writes=("attentions", "unmatched", *_REFUSALS),
        ),
        Pass(
            match_cache,
            "find where the keys and values of each attention come from",
            reads=("config", "uncounted", "caches", "attentions", "unmatched"),
            writes=("uses", *_REFUSALS),
        ),
        Pass(
            standard_form,
            "bring query, masks and output of attentions with a cache into one layout",
            reads=("attentions",),
            writes=("uses", "standard", *_REFUSALS),
        ),
        Pass(
            rewrite_decode,
            "replace cat and attention by append_ and decode_attention",
            reads=("config", "attentions", "uses", "standard"),
            writes=("rewritten", "appended", "pairs", "key_norms", "opened", *_REFUSALS),
            needs=("standard_form", "fold_key_norm"),
        ),
        Pass(
            rewrite_buffer,
            "let attentions over a preallocated buffer read a quantized shadow of it",
            reads=("config", "caches", "uses", "standard"),
            writes=("rewritten", "shadows", "key_norms", "opened", "positions", *_REFUSALS),
            needs=("standard_form", "fold_key_norm"),
        ),
        Pass(
            fold_key_norm,
            "apply the key normalization to query and new key, at their projections if RoPE allows it",
            reads=("key_norms", "appended"),
            writes=("norm_places", "notes"),
        ),
        Pass(
            write_preallocated,
            "replace the remaining writes to and reads of quantized buffers",
            reads=("caches",),
            writes=("positions",),
            required=True,
        ),
        Pass(
            quantize_prefill,
            "quantize keys and values that a prefill returns",
            reads=("config", "attentions", "uses", "standard"),
            writes=("rewritten", "quantized"),
            needs=("standard_form",),
        ),
        Pass(
            causal_prefill,
            "give a prompt's attention a mask only where a batch has padding",
            reads=("uses", "standard"),
            needs=("standard_form",),
        ),
        Pass(
            dequantize_rest,
            "let all remaining readers of a quantized cache read it dequantized",
            reads=("caches", "appended", "quantized"),
            writes=("made_dense",),
            required=True,
        ),
        Pass(
            plan_outputs,
            "return inner tensors instead of caches, and plan how to rebuild the program's outputs",
            reads=("caches", "appended", "quantized"),
            writes=("outputs",),
            required=True,
        ),
        Pass(
            join_linears,
            "join linear layers with the same single-row input on a GPU",
            reads=("caches", "shadows"),
        ),
        Pass(
            index_writes,
            "for CUDA graphs: hold the positions of writes in tensors",
            reads=("static_lengths", "shadows"),
            writes=("positions",),
        ),
        Pass(
            fill_constants,
            "for CUDA graphs: make tensors of constant numbers on their device",
            reads=("static_lengths",),
        ),
        Pass(
            hoist_lengths,
            "for CUDA graphs: move what depends on the length of the cache to a prelude",
            reads=("static_lengths", "caches", "shadows", "appended"),
            writes=("prelude", "lengths_not_hoisted", "notes"),
        ),
    )
)

__all__ = ["PIPELINE", "Pass", "PassContext", "Pipeline"]
