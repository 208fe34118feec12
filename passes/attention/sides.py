"""Walks from an operand of a product back to the keys or values that a cache holds.

    keys = cat([past, k], 2)                          <- keys as cached, [B, H, S, D] or [B, S, H, D]
    x = keys[:, :, None].expand(..., G, ...)
    x = x.reshape(B, H * G, S, D).float() * 0.5       views, copies, repetitions, casts and constant factors
    scores = matmul(q, x.transpose(2, 3))             <- the operand

The walk stops at any other operation, such as a rotary embedding, a normalization or a slice. If it stops before it
reaches a cached tensor, the attention does not read what the cache holds, and is not rewritten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch.fx import Node

from ..context import HeadRange, NoMatch, ProgramCache
from ..graph.aliases import Writes, storage_of
from ..graph.operations import Kind
from ..graph.reading import is_output, is_pure, kinds, op_name, read, source_of, writes_to
from ..graph.values import is_float, same_size, same_sizes, shape, sizes_of
from .axes import Axis, Dims, flat, fresh_dims, resolve, resolve_dims, unify
from .parts import part_of
from .views import split_factor, view_dims, view_source

#: The dimension that counts tokens, in each layout that a cache may have.
_LAYOUTS = (2, 1)
_LAYOUT_NAMES = {2: "[B, H, S, D]", 1: "[B, S, H, D]"}


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """The keys or the values of an attention.

    Attributes:
        node: keys or values as cached, ``[B, H, S, D]`` or ``[B, S, H, D]``.
        tokens_dim: the dimension of ``node`` that counts tokens, 2 or 1.
        base: the dimensions of ``node``, in the order B, H, S, D.
        dims: the dimensions of the operand that is computed from it.
        factor: the constant by which the operand was multiplied.
        heads: the heads of ``node`` that ``base`` has; None if all.
    """

    node: Node
    tokens_dim: int
    base: Dims
    dims: Dims
    factor: float
    heads: HeadRange | None = None


def find_side(
    operand: Node, tokens: int, features: int, caches: dict[Node, ProgramCache], changes: Writes, what: str
) -> Side:
    """The cached keys or values that an operand is computed from.

    Args:
        operand: an operand of a product.
        tokens, features: its dimensions S and D.
        caches: the quantized caches of the graph.
        changes: the in-place writes of the graph.
        what: ``"keys"`` or ``"values"``, for messages.

    Raises:
        NoMatch: if the operand is not computed from a tensor ``[B, H, S, D]`` or ``[B, S, H, D]``.
    """
    chain = _chain(operand)
    end = len(chain) - 1
    cache = _cache_of(chain[end][0], caches)
    chosen = end if cache is not None else next((i for i, (node, _) in enumerate(chain) if is_output(node)), None)
    if chosen is not None:
        dims = _chain_dims(chain, chosen)
        side = _side(chain, chosen, dims, tokens, features, _LAYOUTS if cache is None else (cache.tokens_dim,))
        if side is None:
            layout = "in an unsupported layout" if dims is None else f"as {_layout(dims, tokens, features)}"
            if cache is not None:
                raise NoMatch(f"the {what} are read {layout} from a quantized cache {_LAYOUT_NAMES[cache.tokens_dim]}")
            raise NoMatch(f"the {what} are cached {layout}; a quantized cache is [B, H, S, D] or [B, S, H, D]")
    else:
        ways = [(index, _chain_dims(chain, index)) for index in range(end, -1, -1)]
        tried = (_side(chain, i, dims, tokens, features, (layout,)) for layout in _LAYOUTS for i, dims in ways)
        side = next((side for side in tried if side is not None), None)
        if side is None:
            raise NoMatch(f"the {what} are not computed from a tensor [B, H, S, D] or [B, S, H, D]")
    _check_not_written([node for node, _ in chain], side.node, changes, what)
    return side


def find_values(
    operand: Node, tokens: int, features: int, caches: dict[Node, ProgramCache], changes: Writes, key: Side
) -> Side:
    """As `find_side`, for the values that belong to the keys ``key``, of which only some heads may be read."""
    side = find_side(operand, tokens, features, caches, changes, "values")
    part = part_of(side.node)
    if part is None or part.dim != 3 - side.tokens_dim or is_output(side.node):
        return side
    whole = find_side(part.source, side.tokens_dim, 3, caches, changes, "values")
    _, _, whole_tokens, channels = whole.base
    layout = {0: whole.base[0], part.dim: whole.base[1], side.tokens_dim: whole_tokens, 3: channels}
    if whole.dims != tuple(layout[dim] for dim in range(4)):
        return side
    if not same_size(*(sizes_of(one.node)[3 - one.tokens_dim] for one in (key, whole))):  # as of a joint projection
        return side
    for own, full in zip((side.base[0], *side.base[2:]), (whole.base[0], whole_tokens, channels), strict=True):
        unify(own, full)
    _check_no_writes(part.nodes, whole.node, changes, "values")
    heads = HeadRange(part.start, part.stop - part.start, part.nodes)
    return dataclasses.replace(
        side, node=whole.node, tokens_dim=whole.tokens_dim, factor=side.factor * whole.factor, heads=heads
    )


#: An operand and, going back, the nodes that it is computed from; each with the factor between it and the operand.
_Chain = list[tuple[Node, float]]


def _chain(operand: Node) -> _Chain:
    """The chain of views, copies, casts, repetitions and constant factors that ends in ``operand``."""
    chain: _Chain = []
    factor, node = 1.0, operand
    while True:
        chain.append((node, factor))
        source = view_source(node)
        if source is None and kinds(node) & Kind.REPEATS and shape(source_of(node)) is not None:
            source = source_of(node)
        if source is None and is_pure(node) and (found := split_factor(node)) is not None:
            source, factor = found[0], factor * found[1]
            if not same_sizes(shape(source) or (), shape(node) or ()):
                return chain
        if source is None:
            return chain
        node = source


def _cache_of(node: Node, caches: dict[Node, ProgramCache]) -> ProgramCache | None:
    """The quantized cache that a node is or appends to; None if there is none."""
    call = read(node)
    if call is None or call.name != "cat":
        return caches.get(node)
    tensors = call["tensors"]
    tensors = tensors if isinstance(tensors, (list, tuple)) else ()
    return next((caches[tensor] for tensor in tensors if tensor in caches), None)


@dataclasses.dataclass(frozen=True)
class _Ends:
    """The dimensions of a tensor and of the operand that is computed from it."""

    base: Dims
    operand: Dims


def _chain_dims(chain: _Chain, index: int) -> _Ends | None:
    """Dimensions of ``chain[index]`` and of the operand; None if those of a node between cannot be determined."""
    sizes = shape(chain[index][0])
    if sizes is None:
        return None
    base = dims = fresh_dims(sizes)
    try:
        for step, _ in chain[index - 1 :: -1] if index else ():
            dims = dims if op_name(step) in ("mul", "div") else view_dims(step, dims)
    except NoMatch:
        return None
    return _Ends(base, dims)


def _side(
    chain: _Chain, index: int, ends: _Ends | None, tokens: int, features: int, layouts: tuple[int, ...]
) -> Side | None:
    """The side whose cached tensor is ``chain[index]`` in one of ``layouts``; None if it has another layout."""
    if ends is None or len(ends.base) != 4 or any(axis.parts for dim in ends.base for axis in dim):
        return None
    (node, factor), base, dims = chain[index], ends.base, ends.operand
    for layout in layouts:
        if dims[tokens] == base[layout] and dims[features] == base[3]:
            return Side(node, layout, (base[0], base[3 - layout], base[layout], base[3]), dims, factor)
    return None


def _layout(ends: _Ends, tokens: int, features: int) -> str:
    """The layout of a tensor as letters, such as ``[B*H, S, D]``, for messages."""
    base, operand = resolve_dims(ends.base), resolve_dims(ends.operand)
    named = {operand[tokens]: "S", operand[features]: "D"}
    known = [[named.get((axis,), "") for axis in dim] for dim in base]
    merged = any(any(letters) and not all(letters) for letters in known)  # heads merged with tokens or channels
    names = iter(("B", "H") if len(base) > 3 else ("B",) if merged else ("B*H",))
    words = ["*".join(letter or "H" for letter in letters) if any(letters) else next(names, "?") for letters in known]
    return f"[{', '.join(words)}]"


def _check_not_written(chain: list[Node], node: Node, changes: Writes, what: str) -> None:
    views = chain[: chain.index(node)] + ([node] if op_name(node) == "cat" else [])
    _check_no_writes(views, node, changes, what)


def _check_no_writes(views: Iterable[Node], cached: Node, changes: Writes, what: str) -> None:
    """Check that nothing is written to ``views``, nor to the memory of those that copy what is cached.

    Writes to the memory of the cached tensor itself are those that fill it, which are looked at where it is matched.
    """
    memory = {storage_of(cached), None}
    if any(writes_to(view) or (storage_of(view) not in memory and changes.of(view)) for view in views):
        raise NoMatch(f"the {what} are changed in place between the cache and the attention")


def root_of(node: Node) -> Node:
    """The tensor that ``node`` is computed from by views, copies, casts, repetitions and constant factors only."""
    return _chain(node)[-1][0]


def read_through(node: Node) -> list[Node]:
    """``node``, and what it is computed from by views, copies, casts, repetitions and constant factors only."""
    return [one for one, _ in _chain(node)]


def may_be_cached(node: Node) -> bool:
    """Whether a tensor is computed by views, repetitions and the like from one that is a ``cat``, or is returned."""
    chain = (one for one, _ in _chain(node) if one.op not in ("placeholder", "get_attr"))
    return any(op_name(one) == "cat" or is_output(one) for one in chain)


def find_heads(node: Node, heads: tuple[Axis, ...], dims: Dims) -> tuple[Node, Dims] | None:
    """The tensor with one number for each head that ``node`` is expanded from, and its dimensions.

    Args:
        node: a tensor that broadcasts to a tensor with dimensions ``dims``.
        heads: the axes of the heads in ``dims``.
        dims: the dimensions of the scores.

    Returns:
        None if ``node`` is not the same for all tokens and sequences.
    """
    chain = _chain(node)
    for index in range(len(chain) - 1, -1, -1):
        source, factor = chain[index]
        if factor != 1.0 or not is_float(source):
            continue
        base = found = fresh_dims(sizes_of(source))
        own = flat(base)
        try:
            for step, _ in chain[index - 1 :: -1] if index else ():
                found = view_dims(step, found)
            for small, large in zip(found, dims[len(dims) - len(found) :], strict=True):
                if any(axis in own for axis in resolve(small)):
                    unify(small, large)
        except (NoMatch, ValueError):
            continue
        if all(axis in heads for axis in flat(base)):
            return source, base
    return None
