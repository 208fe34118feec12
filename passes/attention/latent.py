"""Finds keys and values that are computed from a latent (MLA), of which and of a shared rotary key a cache consists.

    up = linear(latent, weight).view(B, S, H, n + v).transpose(1, 2)      latent [B, 1, S, R]    cached
    k_nope, values = split(up, [n, v], -1)
    keys = cat([k_nope, rotary.expand(B, H, S, P)], -1)                   rotary [B, 1, S, P]    cached

The attention is then one with the cache ``rotary, latent`` and one KV head, because the projections can be applied to
query and output instead (``emit/latent.py``):

    scores = q @ keys^T = (q_nope @ W_k) @ latent^T + q_rotary @ rotary^T
    out = weights @ values = (weights @ latent) @ W_v^T

Keys may also be a new tensor to whose parts both are written. Values and keys may be projected together or not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import Node

from ..context import AttentionMatch, Latent, NoMatch, ProgramCache, Projection
from ..graph.aliases import Writes, storage_of
from ..graph.operations import Kind
from ..graph.reading import Call, called_name, is_output, is_query, kinds, read
from ..graph.values import dtype_of, example_or_none, same_size, shape, sizes_of
from .axes import Axis, Dims, resolve, resolve_dims, size_of
from .parts import part_of, range_of
from .sides import Side, find_side
from .views import view_dims, view_source

#: Functions and methods that make a tensor to be written to.
_EMPTY = ("new_empty", "new_zeros", "empty_like", "zeros_like", "empty", "zeros")


def with_latent(match: AttentionMatch, caches: dict[Node, ProgramCache], changes: Writes) -> AttentionMatch:
    """An attention over the rotary key and the latent that its keys and values are computed from.

    Args:
        match: an attention over what is computed.
        caches: the quantized caches of the graph.
        changes: the in-place writes of the graph.

    Returns:
        ``match`` itself if its keys and values are not computed so.

    Raises:
        NoMatch: if they are, but not in a supported form.
    """
    parts = (user for user in match.key.users if kinds(user) & Kind.SELECTS)
    if is_output(match.key) or any(map(is_output, parts)):  # the keys themselves are cached, or a window of them
        return match
    if match.key in caches or match.tokens_dims[0] != match.tokens_dims[1]:
        return match
    assembled = _assembled(match.key, match.node, changes)
    values = _projected(match.value, match.tokens_dims[1], caches, changes)
    if assembled is None or values is None:
        return match
    found = [_projected(piece.source, match.tokens_dims[0], caches, changes) for piece in assembled.pieces]
    projected = [(piece, keys) for piece, keys in zip(assembled.pieces, found, strict=True) if keys is not None]
    shared = [piece for piece, keys in zip(assembled.pieces, found, strict=True) if keys is None]
    if len(projected) != 1 or len(shared) != 1:
        return match
    (nope, keys), rotary = projected[0], shared[0]
    if len(sizes_of(rotary.source)) != 4:  # it is broadcast to the keys
        return match
    side, latent = find_side(rotary.source, match.tokens_dims[0], 3, caches, changes, "keys"), keys.side
    if side.base[1] or latent.node is not values.side.node:
        return match
    batches = (sizes_of(side.node)[0], sizes_of(latent.node)[0])
    if resolve(side.dims[0]) != resolve(side.base[0]) or not same_size(*batches):  # one sequence serves all of a batch
        return match
    if any(one.bias for one in (keys, values)):
        raise NoMatch("keys or values are computed from a latent with a bias")
    if side.factor != 1.0 or latent.factor != 1.0:
        raise NoMatch("a latent or its rotary key is scaled between the cache and the attention")
    nodes = _between(
        {side.node, latent.node, keys.projection.weight, values.projection.weight},
        (match.key, match.value, *assembled.writes),
    )
    held = {storage_of(side.node), storage_of(latent.node)} - {None}  # `find_side` has looked at those
    computed = [node for node in nodes if storage_of(node) not in held]
    if any(set(changes.of(node)) - set(assembled.writes) for node in computed):
        raise NoMatch("what is computed from a latent is changed in place")
    of_one_dtype = (match.query, side.node, latent.node, keys.linear, values.linear, match.key, match.value)
    dtypes = {dtype_of(node) for node in of_one_dtype}
    dtypes |= {dtype_of(one.projection.weight) for one in (keys, values)}
    if len(dtypes) != 1:
        raise NoMatch("a query, a latent and what is computed from it differ in dtype")
    heads = size_of(match.axes.heads)
    if any(one.projection.heads != heads for one in (keys, values)):
        raise NoMatch("several heads of the query share what is computed from a latent")
    return dataclasses.replace(
        match,
        key=side.node,
        value=latent.node,
        tokens_dims=(side.tokens_dim, latent.tokens_dim),
        latent=Latent(
            keys.projection,
            values.projection,
            (nope.start, nope.stop),
            (rotary.start, rotary.stop),
            match.key,
            assembled.writes,
            nodes,
        ),
    )


def _between(first: set[Any], last: tuple[Node, ...]) -> frozenset[Node]:
    """The nodes that compute ``last`` from ``first``, the former included."""
    found: set[Node] = set()
    pending = [*last]
    while pending:
        node = pending.pop()
        if node in found or node in first or node.op in ("placeholder", "get_attr"):
            continue
        if isinstance(example_or_none(node), (torch.Tensor, tuple, list)):
            found.add(node)
            pending += node.all_input_nodes
    return frozenset(found)


# --- the parts of keys ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """Channels ``start`` to ``stop`` of keys."""

    source: Node
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Assembled:
    """Keys as pieces along their channels, and the nodes that write these to a new tensor, if there is one."""

    pieces: list[_Piece]
    writes: tuple[Node, ...] = ()


def _assembled(keys: Node, reader: Node, changes: Writes) -> _Assembled | None:
    """The pieces of keys ``[.., .., .., D]``; None if they do not consist of pieces, or may have others."""
    call, sizes = read(keys), sizes_of(keys)
    if call is not None and call.name == "cat":
        tensors, pieces, begin = call["tensors"], [], 0
        if call["dim"] not in (-1, len(sizes) - 1) or not isinstance(tensors, (list, tuple)) or changes.of(keys):
            return None
        for tensor in tensors:
            size = shape(tensor)
            if size is None or not isinstance(size[-1], int):
                return None
            pieces.append(_Piece(tensor, begin, begin + size[-1]))
            begin += size[-1]
        return _Assembled(pieces)
    return _written(keys, sizes, reader, changes) if called_name(keys) in _EMPTY else None


def _written(keys: Node, sizes: tuple[Any, ...], reader: Node, changes: Writes) -> _Assembled | None:
    pieces, writes, parts, width = [], [], [], sizes[-1]
    for write in changes.of(keys):
        call = read(write)
        if call is None or not isinstance(call.get("source"), Node) or not isinstance(width, int):
            return None
        part = call.source()
        view = read(part)
        if call.name == "copy" and view is not None and view.name == "getitem" and view.source() is keys:
            index = view["index"]
            parts.append(part)
        elif call.name == "setitem" and part is keys:
            index = call["index"]
        else:
            return None
        found = range_of(index, sizes, empty=True)  # as of a rotary key without channels
        if found is None or found[0] != len(sizes) - 1 or write.users:
            return None
        pieces.append(_Piece(call["source"], *found[1:]))
        writes.append(write)
    pieces.sort(key=lambda piece: (piece.start, piece.stop))
    if not pieces or [*(piece.start for piece in pieces), width] != [0, *(piece.stop for piece in pieces)]:
        return None
    if any(len(part.users) != 1 for part in parts):
        return None
    last = max(changes.order[write] for write in writes)
    readers = [user for user in keys.users if user not in parts and user not in writes and not is_query(user)]
    if any(changes.order[user] < last for user in (*readers, reader)):
        return None
    return _Assembled(pieces, tuple(writes))


# --- what is projected ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Projected:
    """Keys or values ``[B, H, S, d]`` that are computed from a latent.

    Attributes:
        side: the latent as it is cached, and the input of the linear layer.
        linear: the linear layer.
        bias: whether it has one.
        projection: the part of its weight.
    """

    side: Side
    linear: Node
    bias: bool
    projection: Projection


def _projected(node: Node, tokens_dim: int, caches: dict[Node, ProgramCache], changes: Writes) -> _Projected | None:
    """How keys or values are computed from a latent that may be cached; None if they are not."""
    steps: list[tuple[Node, tuple[int, int] | None]] = []  # each with the channels that it selects, if it does
    while (call := read(node)) is not None and call.name != "linear" and not call.in_place:
        source, bounds = view_source(node), None
        if source is None:
            part = part_of(node)
            if part is not None and part.dim == len(sizes_of(part.source)) - 1:
                source, bounds = part.source, (part.start, part.stop)
        if source is None or dtype_of(source) != dtype_of(node):
            return None
        steps.append((node, bounds))
        node = source
    if call is None or call.name != "linear" or not isinstance(call["weight"], Node):
        return None
    if changes.of(call["weight"]):  # it is read again, at the attention
        return None
    operand, rank = call.source(), len(sizes_of(node))
    weight = shape(call["weight"])
    if operand is None or weight is None or rank not in (3, 4) or not all(isinstance(size, int) for size in weight):
        return None
    for tokens in range(rank - 2, 0, -1):
        try:
            side = find_side(operand, tokens, rank - 1, caches, changes, "values")
            features = Axis(weight[0])
            dims = (*side.dims[:-1], (features,))
            projection = None if side.base[1] else _part(call, steps[::-1], dims, features, side, tokens_dim)
        except NoMatch:
            continue
        if projection is not None:
            return _Projected(side, node, call["bias"] is not None, projection)
    return None


def _part(
    call: Call,
    steps: list[tuple[Node, tuple[int, int] | None]],
    dims: Dims,
    features: Axis,
    side: Side,
    tokens_dim: int,
) -> Projection | None:
    """The part of the weight of a linear layer that heads and channels behind ``steps`` are computed by.

    Features may be selected before they are split into heads, and channels behind it.
    """
    rows, channels = (0, features.size), None  # of the weight; of a head
    split = features
    for node, bounds in steps:
        if bounds is None:
            dims = view_dims(node, dims)
            continue
        axes = resolve(dims[-1])
        if len(axes) != 1 or channels is not None:
            return None
        kept = Axis(bounds[1] - bounds[0])
        if axes[0] is split:
            rows, split = (rows[0] + bounds[0], rows[0] + bounds[1]), kept
        else:
            channels = (axes[0], kept, bounds)
        dims = (*dims[:-1], (kept,))
    dims = resolve_dims(dims)
    width, last, (start, stop) = channels or (None, None, (0, 0))
    if channels is None:
        if len(dims[-1]) != 1:
            return None
        width = last = dims[-1][0]
        start, stop = 0, width.size
    if len(dims) != 4 or dims[3] != (last,) or width is None:
        return None
    heads = dims[3 - tokens_dim]
    batch, _, tokens, _ = resolve_dims(side.base)
    if dims[0] != batch or dims[tokens_dim] != tokens or resolve((split,)) != (*heads, width):
        return None
    count = size_of(heads)
    return Projection(call["weight"], rows[0], count, width.size, start, stop) if isinstance(count, int) else None
