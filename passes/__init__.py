"""The pipeline: from the graph of a program with a key/value cache to the graph with a quantized one.

Each pass is a function ``(graph module, context) -> graph module`` in a file of its own, which opens with what it turns
into what. Passes depend on the graph and the config alone; what they find is left in the context for those behind
them. They run on the backend's copy of the graph, in this order:
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch.fx import GraphModule

from .complete_examples import complete_examples
from .context.context import PassContext
from .dequantize_rest import dequantize_rest
from .fold_key_norm import fold_key_norm
from .hoist_lengths import hoist_lengths
from .index_writes import index_writes
from .join_linears import join_linears
from .match_attention import match_attention
from .match_cache import match_cache
from .plan_outputs import plan_outputs
from .quantize_prefill import quantize_prefill
from .rewrite_buffer import rewrite_buffer
from .rewrite_decode import rewrite_decode
from .standard_form import standard_form
from .unwrap_caches import unwrap_caches
from .write_preallocated import write_preallocated

Pass = Callable[[GraphModule, PassContext], GraphModule]

PASSES: tuple[Pass, ...] = (
    unwrap_caches,  # placeholders for the inner tensors of quantized caches
    match_attention,  # find attentions: query, key, value, mask, scale
    match_cache,  # where their keys and values come from
    standard_form,  # their query, masks and output in one layout
    rewrite_decode,  # cache write + attention -> append_ + decode_attention
    rewrite_buffer,  # attention over a buffer written in place -> over a quantized shadow of it
    fold_key_norm,  # query and new key normalized, at their projections where RoPE allows it
    write_preallocated,  # other writes to, and readers of, a buffer that is quantized itself
    quantize_prefill,  # fresh keys and values leave the graph quantized
    dequantize_rest,  # any other reader of a cache reads it dequantized
    plan_outputs,  # outputs of the new graph, and how the program's are made of them
    join_linears,  # of a single token on a GPU: linear layers of one input, side by side
    index_writes,  # for CUDA graphs: positions of writes as tensors
    hoist_lengths,  # for CUDA graphs: what depends on the length goes into a graph of its own
    complete_examples,  # for the cache on disk: values of the nodes that were put in
)


#: Passes without which a graph with a quantized cache cannot run.
REQUIRED = frozenset({"unwrap_caches", "fold_key_norm", "write_preallocated", "dequantize_rest", "plan_outputs"})

#: Passes that a pass takes for granted, by name: it is left out where one of them is.
NEEDS: dict[str, tuple[str, ...]] = {
    "rewrite_decode": ("standard_form",),
    "rewrite_buffer": ("standard_form",),
    "quantize_prefill": ("standard_form",),
}


def pass_names() -> tuple[str, ...]:
    """The names of all passes, in order."""
    return tuple(graph_pass.__name__ for graph_pass in PASSES)


def left_out(disabled: Collection[str]) -> tuple[str, ...]:
    """The passes that do not run where those named in ``disabled`` are switched off, in order."""
    return tuple(
        name for name in pass_names() if name in disabled or any(need in disabled for need in NEEDS.get(name, ()))
    )


def run_passes(
    gm: GraphModule,
    context: PassContext,
    passes: tuple[Pass, ...] = PASSES,
    observe: Callable[[str, GraphModule], None] | None = None,
) -> GraphModule:
    """Run the pipeline over ``gm``, which is changed. ``observe`` is shown the graph after each pass, with its name."""
    skipped = left_out(context.config.disabled_passes)
    for graph_pass in passes:
        if graph_pass.__name__ in skipped:
            continue
        gm = graph_pass(gm, context)
        gm.graph.lint()
        if observe is not None:
            observe(graph_pass.__name__, gm)
    gm.recompile()
    return gm


__all__ = ["NEEDS", "PASSES", "REQUIRED", "Pass", "PassContext", "left_out", "pass_names", "run_passes"]
