"""Recognizes the attention whose output is a given node: a call of SDPA, or a product of attention weights and values.

Query, key and value are described by the axes of their dimensions (``axes.py``). An attention is recognized if

- the product of query and key sums over D, and the softmax is over the tokens S of the keys,
- the product of weights and values sums over the same S,
- B and H of keys and values are dimensions of the output, so that each query head reads one KV head.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch.fx import Node

from ..context import AttentionAxes, AttentionForm, AttentionMatch, MaskKind, MaskTerm, NoMatch, ProgramCache
from ..graph.aliases import Writes
from ..graph.constants import constant
from ..graph.operations import Kind
from ..graph.reading import Call, is_query, kinds, operand, read, source_of, writes_to
from ..graph.values import Sizes, dtype_of, example, is_float, same_size, same_sizes, shape, sizes_of
from .axes import Axis, Dims, axes_of_size, flat, resolve, resolve_dims, size_of, unify
from .gates import find_gate
from .products import Product, dims_of, product_of
from .scores import check_only_used_here, path_dims, read_scores
from .sides import Side, find_heads, find_side, find_values, read_through
from .steps import Added, Filled, Order, ScorePath
from .weights import find_scores

Caches = dict[Node, ProgramCache]


def match_attention_at(node: Node, caches: Caches, order: Order, changes: Writes) -> AttentionMatch | None:
    """The attention whose output is ``node``, before a gate if it has one; None if it is not the output of one.

    Raises:
        NoMatch: if it looks like an attention, but is not supported.
    """
    call = read(node)
    if call is not None and call.name == "sdpa":
        return _sdpa(call, caches, changes)
    product = product_of(node)
    if product is None:
        return None
    for index in (0, 1):
        path = find_scores(product.operands[index], node, order)
        if path is not None:
            return _eager(product, index, path, caches, order, changes)
    return None


# --- SDPA -----------------------------------------------------------------------------------------------------------


def _sdpa(call: Call, caches: Caches, changes: Writes) -> AttentionMatch:
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    if constant(call["dropout_p"]) != 0.0:
        raise NoMatch("dropout is active")
    is_causal = call["is_causal"]
    if not isinstance(is_causal, bool):
        raise NoMatch("is_causal is not constant")
    query_size, key_size = _matrices(query), _matrices(key)
    _matrices(value)
    scale = 1.0 / math.sqrt(_head_dim(query_size)) if call["scale"] is None else constant(call["scale"])
    if scale is None:
        raise NoMatch("the scale of the scores is not constant")
    repeat_heads = bool(call["enable_gqa"])
    key_side = find_side(key, -2, -1, caches, changes, "keys")
    value_side = find_values(value, -2, -1, caches, changes, key_side)
    batch = _shared_batch(query_size[:-2], key_side.dims[:-2], repeat_heads)
    rows = axes_of_size(query_size[-2])
    weights = (*batch, rows, key_side.dims[-2])
    _bind_values(weights, value_side.dims, repeat_heads)
    _bind_tokens(key_side.dims[-2], value_side.dims[-2])
    query_dims = (*batch, rows, key_side.dims[-1])
    if not same_size(query_size[-1], key_size[-1]):
        raise NoMatch("the shapes of query, key and value do not match")
    terms = ()
    if mask is not None:
        if is_causal:
            raise NoMatch("a mask is given together with is_causal")
        terms = (MaskTerm(mask, _mask_kind(mask), 1.0, weights),)
    axes = _axes(key_side, value_side, weights, rows, query_dims, (*batch, rows, value_side.dims[-1]))
    scale *= key_side.factor
    return _match(
        call.node, query, key_side, value_side, scale, axes, AttentionForm.SDPA, is_causal=is_causal, terms=terms
    )


def _matrices(node: Any) -> Sizes:
    """The shape of a query, key or value."""
    size = shape(node)
    if size is None or len(size) < 2:
        raise NoMatch("query, key or value is not a tensor of two or more dimensions")
    return size


def _mask_kind(mask: Any) -> MaskKind:
    dtype = dtype_of(mask)
    if dtype is None or writes_to(mask):
        raise NoMatch("the mask is not a tensor, or it is changed in place")
    if dtype.is_floating_point:
        return MaskKind.ADDED
    if dtype != torch.bool:
        raise NoMatch("the mask is neither boolean nor floating-point")
    return MaskKind.VISIBLE


def _head_dim(query: Sizes) -> int:
    head_dim = query[-1]
    if not isinstance(head_dim, int):
        raise NoMatch("head_dim is not constant")
    return head_dim


def _shared_batch(sizes: tuple[Any, ...], key_dims: Dims, repeat_heads: bool) -> Dims:
    """Axes of the query's leading dimensions: shared with the key, broadcast, or query heads per KV head."""
    if len(sizes) != len(key_dims):
        raise NoMatch("query and key have a different number of dimensions")
    batch = []
    for index, (size, dim) in enumerate(zip(sizes, key_dims, strict=True)):
        have = size_of(dim)
        if same_size(size, have):
            batch.append(dim)
        elif not dim:
            batch.append(axes_of_size(size))
        elif repeat_heads and index == len(sizes) - 1 and same_size(size % have, 0):
            batch.append((*dim, *axes_of_size(size // have)))
        else:
            raise NoMatch("the shapes of query, key and value do not match")
    return tuple(batch)


def _bind_values(weights: Dims, value_dims: Dims, repeat_heads: bool) -> None:
    """Unify the leading axes of the values with those of the weights."""
    if len(weights) != len(value_dims):
        raise NoMatch("query and value have a different number of dimensions")
    for index, (full, own) in enumerate(zip(weights[:-2], value_dims[:-2], strict=True)):
        if repeat_heads and index == len(weights) - 3 and own and not same_size(size_of(full), size_of(own)):
            own = (*own, *axes_of_size(size_of(full) // size_of(own)))
        if own:
            unify(own, full)


def _bind_tokens(keys: tuple[Axis, ...], values: tuple[Axis, ...]) -> None:
    """Unify the tokens of keys and values: SDPA requires their numbers to be equal, even if Dynamo has two symbols."""
    if len(keys) != 1 or len(values) != 1:
        unify(keys, values)
    else:
        values[0].parts = keys


# --- attention in single operations ---------------------------------------------------------------------------------


def _eager(
    values: Product, weights_at: int, path: ScorePath, caches: Caches, order: Order, changes: Writes
) -> AttentionMatch:
    product = path.product
    axes = product.axes()
    dims = path_dims(path, dims_of(product.out, axes))
    key_at, token_label = _key_operand(product, axes, path, dims)
    labels = product.labels[key_at]
    features = [label for label in labels if label in product.summed()]
    if len(features) != 1 or features[0] not in product.labels[1 - key_at]:
        raise NoMatch("the product of query and key does not sum over exactly one dimension, the head_dim")
    key = product.operands[key_at]
    key_side = find_side(key, labels.index(token_label), labels.index(features[0]), caches, changes, "keys")
    for label, dim in zip(labels, key_side.dims, strict=True):
        if dim:
            unify(axes[label], dim)

    tokens = resolve(axes[token_label])
    weights, value = values.operands[weights_at], values.operands[1 - weights_at]
    weight_dims = resolve_dims(dims[path.steps[0].node])
    own = dict(zip(values.labels[weights_at], weight_dims, strict=True))
    summed = [label for label in values.summed() if label in own]
    if values.alpha != 1.0 or values.added is not None:
        raise NoMatch("the product of weights and values also scales or adds (baddbmm)")
    if len(sizes_of(weights)) != len(weight_dims) or len(summed) != 1 or resolve(own[summed[0]]) != tokens:
        raise NoMatch("the product of weights and values does not sum over the tokens of the softmax")
    value_labels = values.labels[1 - weights_at]
    if summed[0] not in value_labels:
        raise NoMatch("the weights are summed without values")
    features = [label for label in value_labels if label not in own]
    if len(features) != 1:
        raise NoMatch("the values have other dimensions than heads, tokens and head_dim")
    dims_at = value_labels.index(summed[0]), value_labels.index(features[0])
    value_side = find_values(value, *dims_at, caches, changes, key_side)
    for label, dim in zip(value_labels, value_side.dims, strict=True):
        if label in own and dim:
            unify(dim, own[label])
    own[features[0]] = value_side.dims[dims_at[1]]

    query_labels = product.labels[1 - key_at]
    out, out_dims = values.node, dims_of(values.out, own)
    gate = find_gate(path, dims, out, out_dims, order)
    if gate is not None:
        out, out_dims = gate.node, gate.dims
    attention = _axes(
        key_side,
        value_side,
        weight_dims,
        _rows(product, key_at, axes),
        dims_of(query_labels, axes),
        out_dims,
    )
    scores = read_scores(path, dims, changes)
    check_only_used_here(path, out, gate.nodes if gate is not None else ())
    sinks, sink_dims = (scores.sinks, scores.sink_dims) if gate is None else (gate.sinks, gate.sink_dims)
    _check_unchanged(path, product.operands[1 - key_at], out, changes)
    if sinks is not None and sink_dims is not None:
        _check_sinks(sinks, product.node, changes)
        if not is_float(sinks):
            raise NoMatch("the sink logits are not a floating-point tensor")
        sinks, sink_dims = find_heads(sinks, attention.heads, sink_dims) or (sinks, _own_dims(sinks, sink_dims))
        attention = dataclasses.replace(attention, sinks=sink_dims)
    return _match(
        out,
        product.operands[1 - key_at],
        key_side,
        value_side,
        scores.scale * key_side.factor,
        attention,
        AttentionForm.EAGER,
        terms=scores.terms,
        softcap=scores.softcap,
        sink_logits=sinks,
    )


def _check_unchanged(path: ScorePath, query: Node, out: Node, changes: Writes) -> None:
    """A rewritten attention reads the query and the masks at its output, where they have to be what they were."""
    read_at = [(query, path.product.node)]
    read_at += [(step.term, step.node) for step in path.steps if isinstance(step, Added)]
    read_at += [(step.condition, step.node) for step in path.steps if isinstance(step, Filled)]
    if any(changes.between(one, reader, out) for one, reader in read_at):
        raise NoMatch("the query or a mask is changed in place before the output is computed")


#: Operations that read the shape and the dtype of their first argument only.
_SHAPED = {"new_zeros", "new_empty", "new_ones", "new_full", "zeros_like", "empty_like", "ones_like", "full_like"}


def _values_read(node: Node) -> set[Node]:
    """The tensors whose values a node reads, not their shape or dtype alone."""
    found, call = {*node.all_input_nodes}, read(node)
    if is_query(node) or call is None:
        return set() if is_query(node) else found
    if call.name in _SHAPED:
        return found - {operand(node)}
    other = call.get("other") if call.name in ("reshape", "expand", "to") else None
    return found - {other} if other is not call.source() else found


def _check_sinks(sinks: Node, scores: Node, changes: Writes) -> None:
    if any(changes.of(one) for one in read_through(sinks)):
        raise NoMatch("the sink logits are changed in place")
    pending, seen = [sinks], {sinks}
    while pending:
        node = pending.pop()
        if node is scores:
            raise NoMatch("the sink logits are computed from the scores")
        later = {one for one in _values_read(node) if changes.order[one] >= changes.order[scores]} - seen
        seen |= later
        pending += later


def _own_dims(node: Node, dims: Dims) -> Dims:
    """The dimensions of a tensor that broadcasts to one with dimensions ``dims``."""
    sizes = sizes_of(node)
    pairs = zip(sizes, dims[len(dims) - len(sizes) :], strict=True)
    return tuple(() if same_size(size, 1) else dim for size, dim in pairs)


def _key_operand(product: Product, axes: dict[Any, Any], path: ScorePath, dims: dict[Node, Dims]) -> tuple[int, Any]:
    """The index of the operand that is the key, and the label of its tokens: the dimension that the softmax is over."""
    softmax, dim = path.softmax.node, path.softmax.dim
    tokens = resolve(dims[softmax][dim])
    own = [{label for label in labels if label in product.out} for labels in product.labels]
    own = [own[0] - own[1], own[1] - own[0]]
    if tokens:
        found = [(at, label) for at in (0, 1) for label in own[at] if resolve(axes[label]) == tokens]
    else:  # a single token has no axis, so the position of the dimension decides
        label = product.out[dim] if len(dims[softmax]) == len(product.out) else product.out[-1]
        found = [(at, label) for at in (0, 1) if label in own[at]]
    if len(found) != 1:
        raise NoMatch("the softmax is not over the tokens of the keys")
    return found[0]


def _rows(product: Product, key_at: int, axes: dict[Any, Any]) -> tuple[Axis, ...]:
    """The axes of the query's tokens: the last symbolic dimension of the scores that only the query has.

    If none is symbolic, the last one. The other dimensions that only the query has are query heads per KV head, whose
    number is constant.
    """
    only = {*product.labels[1 - key_at]} - {*product.labels[key_at]}
    own = [axes[label] for label in product.out if label in only]
    symbolic = [dim for dim in own if not all(isinstance(axis.size, int) for axis in resolve(dim))]
    return (symbolic or own or [()])[-1]


# --- common to both forms -------------------------------------------------------------------------------------------


def _axes(key: Side, value: Side, weights: Dims, rows: Any, query: Dims, out: Dims) -> AttentionAxes:
    batch, kv_heads, tokens, key_dim = (resolve(dim) for dim in key.base)
    value_batch, value_heads, value_tokens, value_dim = (resolve(dim) for dim in value.base)
    met = kv_heads if value.heads is None else kv_heads[len(kv_heads) - len(value_heads) :]  # those next to each other
    if (batch, met, tokens) != (value_batch, value_heads, value_tokens):
        raise NoMatch("keys and values are not read by the same heads of the query")
    rows, all_axes = resolve(rows), flat(weights)
    known = {*batch, *kv_heads, *tokens, *rows}
    if not {*batch, *kv_heads, *tokens} <= {*all_axes} or len({*all_axes}) != len(all_axes):
        raise NoMatch("the scores are not those of each query head with one KV head")
    groups = tuple(axis for axis in all_axes if axis not in known)
    heads = (*kv_heads, *groups)
    if {*flat(query)} != {*batch, *heads, *rows, *key_dim} or {*flat(out)} != {*batch, *heads, *rows, *value_dim}:
        raise NoMatch("the dimensions of query and output are not those of an attention")
    return AttentionAxes(query, out, batch, heads, rows, tokens, key_dim, value_dim)


def _match(
    node: Node,
    query: Node,
    key: Side,
    value: Side,
    scale: float,
    axes: AttentionAxes,
    form: AttentionForm,
    *,
    is_causal: bool = False,
    terms: tuple[MaskTerm, ...] = (),
    softcap: float = 0.0,
    sink_logits: Node | None = None,
) -> AttentionMatch:
    if value.factor != 1.0:
        raise NoMatch("the values are scaled between the cache and the attention")
    if writes_to(query):
        raise NoMatch("the query is changed in place")
    (batch, kv_heads, head_dim), (value_batch, value_heads, value_dim) = _fixed_sizes(key), _fixed_sizes(value)
    if any(not isinstance(size, int) for size in (kv_heads, head_dim, value_dim)):
        raise NoMatch("the number of heads or head_dim is not constant")
    if not all(isinstance(axis.size, int) for axis in axes.heads):
        raise NoMatch("the number of query heads is not constant")
    if not math.isfinite(scale) or not same_sizes((batch, kv_heads), (value_batch, value_heads)):
        raise NoMatch("the shapes of query, key and value do not match")
    query = _without_upcasts(query, example(key.node).dtype)
    layouts = (key.tokens_dim, value.tokens_dim)
    return AttentionMatch(
        *(node, query, key.node, value.node, scale, is_causal, form, axes, layouts, terms, softcap, sink_logits),
        value_heads=value.heads,
    )


def _fixed_sizes(side: Side) -> tuple[Any, Any, Any]:
    """B, H and D of keys or values."""
    sizes = sizes_of(side.node)
    return sizes[0], sizes[3 - side.tokens_dim], sizes[3]


def _without_upcasts(query: Node, dtype: torch.dtype) -> Node:
    """The query before a cast from the dtype of the keys to a wider one, which does not change its values."""
    source, wide = source_of(query), dtype_of(query)
    if source is None or wide is None or not kinds(query) & Kind.CASTS or dtype_of(source) != dtype:
        return query
    return source if wide.is_floating_point and wide.itemsize > dtype.itemsize else query
