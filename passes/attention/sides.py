"""From an operand of a product back to the keys or values that a cache holds.

    keys = cat([past, k], 2)                          <- what the cache holds, [B, H, S, D] or [B, S, H, D]
    x = keys[:, :, None].expand(..., G, ...)
    x = x.reshape(B, H * G, S, D).float() * 0.5       views, copies, repetition, casts, constant factors: walked through
    scores = matmul(q, x.transpose(2, 3))             <- the operand

Whatever else is on the way (rotation, normalization, a slice) ends it: then the cache holds something that is not what
the attention reads, and it is not touched.
"""

from __future__ import annotations

import dataclasses

from torch.fx import Node

from ..context import NoMatch, ProgramCache
from ..graph.operations import Kind
from ..graph.reading import is_output, is_pure, kinds, op_name, read, source_of, writes_to
from ..graph.values import is_float, same_sizes, shape, sizes_of
from .axes import Axis, Dims, flat, fresh_dims, resolve, resolve_dims, unify
from .views import behind_factor, behind_view, view_dims

#: The dimension of the tokens in the layouts that a cache may have.
_LAYOUTS = (2, 1)
_LAYOUT_NAMES = {2: "[B, H, S, D]", 1: "[B, S, H, D]"}


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """Keys or values.

    Attributes:
        node: what a cache holds, ``[B, H, S, D]`` or ``[B, S, H, D]``.
        tokens_dim: the dimension of ``node`` that the tokens are along, 2 or 1.
        base: its dimensions, in the order of ``[B, H, S, D]``.
        dims: the dimensions of the operand.
        factor: the constant that the operand is a multiple by.
    """

    node: Node
    tokens_dim: int
    base: Dims
    dims: Dims
    factor: float


def find_side(operand: Node, tokens: int, features: int, caches: dict[Node, ProgramCache], what: str) -> Side:
    """The keys or values behind an operand whose dimensions ``tokens`` and ``features`` are S and D.

    Raises:
        NoMatch: where the operand is not made of a tensor ``[B, H, S, D]`` or ``[B, S, H, D]``.
    """
    chain = _chain(operand)
    end = len(chain) - 1
    cache = _cache_behind(chain[end][0], caches)
    chosen = end if cache is not None else next((i for i, (node, _) in enumerate(chain) if is_output(node)), None)
    if chosen is not None:
        dims = _dims_on_the_way(chain, chosen)
        side = _side(chain, chosen, dims, tokens, features, _LAYOUTS if cache is None else (cache.tokens_dim,))
        if side is None:
            layout = "in a layout that is not understood" if dims is None else f"as {_layout(dims, tokens, features)}"
            if cache is not None:
                raise NoMatch(f"the {what} are read {layout} from a quantized cache {_LAYOUT_NAMES[cache.tokens_dim]}")
            raise NoMatch(f"the {what} are cached {layout}; a quantized cache is [B, H, S, D] or [B, S, H, D]")
    else:
        ways = [(index, _dims_on_the_way(chain, index)) for index in range(end, -1, -1)]
        tried = (_side(chain, i, dims, tokens, features, (layout,)) for layout in _LAYOUTS for i, dims in ways)
        side = next((side for side in tried if side is not None), None)
        if side is None:
            raise NoMatch(f"the {what} are not made of a tensor [B, H, S, D] or [B, S, H, D]")
    _check_not_written([node for node, _ in chain], side.node, what)
    return side


#: Nodes from an operand back, and the factor between each and the operand.
_Chain = list[tuple[Node, float]]


def _chain(operand: Node) -> _Chain:
    """From an operand back through views, copies, casts, repetitions and constant factors."""
    chain: _Chain = []
    factor, node = 1.0, operand
    while True:
        chain.append((node, factor))
        source = behind_view(node)
        if source is None and kinds(node) & Kind.REPEATS and shape(source_of(node)) is not None:
            source = source_of(node)
        if source is None and is_pure(node) and (found := behind_factor(node)) is not None:
            source, factor = found[0], factor * found[1]
            if not same_sizes(shape(source) or (), shape(node) or ()):
                return chain
        if source is None:
            return chain
        node = source


def _cache_behind(node: Node, caches: dict[Node, ProgramCache]) -> ProgramCache | None:
    """The quantized cache that a node is, or appends to."""
    call = read(node)
    if call is None or call.name != "cat":
        return caches.get(node)
    tensors = call["tensors"]
    tensors = tensors if isinstance(tensors, (list, tuple)) else ()
    return next((caches[tensor] for tensor in tensors if tensor in caches), None)


@dataclasses.dataclass(frozen=True)
class _Ends:
    """The dimensions of a tensor and of the operand that is made of it."""

    base: Dims
    operand: Dims


def _dims_on_the_way(chain: _Chain, index: int) -> _Ends | None:
    """Dimensions of ``chain[index]`` and of the operand; None where those of something between are not understood."""
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
    """The side that holds ``chain[index]`` with the tokens along one of ``layouts``, or None."""
    if ends is None or len(ends.base) != 4 or any(axis.parts for dim in ends.base for axis in dim):
        return None
    (node, factor), base, dims = chain[index], ends.base, ends.operand
    for layout in layouts:
        if dims[tokens] == base[layout] and dims[features] == base[3]:
            return Side(node, layout, (base[0], base[3 - layout], base[layout], base[3]), dims, factor)
    return None


def _layout(ends: _Ends, tokens: int, features: int) -> str:
    """The layout of a tensor in letters: what its dimensions are to an operand."""
    base, operand = resolve_dims(ends.base), resolve_dims(ends.operand)
    named = {operand[tokens]: "S", operand[features]: "D"}
    known = [[named.get((axis,), "") for axis in dim] for dim in base]
    merged = any(any(letters) and not all(letters) for letters in known)  # heads go with tokens or channels
    names = iter(("B", "H") if len(base) > 3 else ("B",) if merged else ("B*H",))
    words = ["*".join(letter or "H" for letter in letters) if any(letters) else next(names, "?") for letters in known]
    return f"[{', '.join(words)}]"


def _check_not_written(chain: list[Node], node: Node, what: str) -> None:
    views = chain[: chain.index(node)] + ([node] if op_name(node) == "cat" else [])
    if any(writes_to(view) for view in views):
        raise NoMatch(f"the {what} are changed in place between the cache and the attention")


def source_of_all(node: Node) -> Node:
    """The tensor at the end of the views, copies, casts, repetitions and factors that lead to ``node``."""
    return _chain(node)[-1][0]


def find_heads(node: Node, heads: tuple[Axis, ...], dims: Dims) -> tuple[Node, Dims] | None:
    """The tensor behind ``node`` that holds one number a head, and its dimensions.

    ``node`` broadcasts to a tensor with dimensions ``dims``, in which ``heads`` are the heads. None where it is not
    the same for every token and sequence.
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
