"""Chooses where to cut a graph into regions, so that as few nodes as possible have to be compiled.

Layers of a decoder are not marked in a graph. But each of them contains the same calls, so the graph is cut before all
occurrences of one call, for example before each projection of queries. The pieces between the cuts are whole layers,
though they begin in the middle of one. The last one, to which the head of the model belongs, is cut where the others
end. All calls of matrix products are tried, and the one with the least to compile is taken.

What a program computes once for all layers often stands in the first of them, where it is first used. It is moved in
front of that layer, which is then like the others (``shared.py``).
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Callable, Hashable, Sequence

import sympy
from torch.fx import Graph, Node

from ..graph.aliases import Writes
from ..graph.values import example_or_none
from .cuts import allowed_cuts, body_of, is_constant, is_product
from .description import Describer, Description
from .shared import movable, probably_shared, shared_first

#: Calls of a compiled function that take as much time as compiling one node: a cut has to save more than it costs.
_NODES_PER_KIND = 10

#: A call of a compiled function takes time in each call of a graph that is not recorded.
_NODES_PER_CALL = 0.5

#: So many ways to cut a graph are compared exactly: those that look best by the calls between the cuts.
_TRIED = 6

#: A graph is cut only if at most this part of its nodes has to be compiled then.
_WORTHWHILE = 2 / 3


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: the nodes, in order.
        inputs: the nodes outside of it that they use, in the order of first use. For sizes see ``cuts.same_sizes``.
        outputs: those of its nodes that other nodes use, in order; of the last layer, those that are used in others.
        kind: a number; regions with the same number do the same.
        symbols: the symbols of sizes in it. Regions of the same kind have corresponding symbols in the same order.
    """

    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]
    kind: int
    symbols: list[sympy.Symbol]


@dataclasses.dataclass(frozen=True)
class Regions:
    """A graph as a sequence of regions.

    Attributes:
        regions: all of them, in order. Every node that computes something is in one.
        reason: why the graph is left whole, if ``regions`` is empty.
    """

    regions: list[Region]
    reason: str = ""

    def __str__(self) -> str:
        return f"{len(self.regions)} regions of {len({region.kind for region in self.regions})} kinds"


def find_regions(graph: Graph) -> Regions:
    """Cut a graph into regions, or say why it is left whole."""
    body = body_of(graph)
    cutter = _Cutter(graph, body)
    candidates = cutter.candidates(is_product) or cutter.candidates(lambda node: True)
    if not candidates:
        return Regions([], "no computation is repeated")
    best = cutter.best(candidates)
    if _cost(best) > _WORTHWHILE * len(body):
        return Regions([], "too little of it is repeated")
    return Regions(best)


class _Cutter:
    """Cuts one graph in many ways.

    Finding out what a region does takes much longer than comparing the calls in it, so cuts are estimated by the calls
    between them first, and only the most promising are made.
    """

    def __init__(self, graph: Graph, body: Sequence[Node]) -> None:
        writes = Writes(graph)
        self._body = body
        self._may_cut = allowed_cuts(body, writes)
        self._movable = movable(body, writes)
        self._describer = Describer(graph)
        self._calls = [self._describer.call(node) for node in body]
        self._own = [True] * len(body)

    def candidates(self, wanted: Callable[[Node], bool]) -> list[list[int]]:
        """Positions before which a cut is allowed, each time those of the same call, or of some of the same calls.

        Args:
            wanted: whether cuts before a node are considered.
        """
        found = self._occurrences(wanted)
        start = min((places[0] for places in found), default=0)
        shared = probably_shared(self._body[:start], self._body[start:], self._movable)
        self._own = [node not in shared for node in self._body]
        return found + [same for places in found for same in self._same_starts(places)]

    def _occurrences(self, wanted: Callable[[Node], bool]) -> list[list[int]]:
        """For each call that occurs more than once, the positions of its occurrences.

        Those are also taken by themselves that the same two calls follow: a layer may contain the same call several
        times, as one whose projections are of one shape does. Cut before one of them, layers are whole.
        """
        indices = [index for index, node in enumerate(self._body) if wanted(node)]
        calls = [self._calls[index] for index in indices]
        found: dict[Hashable, list[int]] = {}
        for number, index in enumerate(indices):
            if self._may_cut[index]:
                found.setdefault(calls[number], []).append(index)
                found.setdefault(tuple(calls[number : number + 3]), []).append(index)
        return list({tuple(places): places for places in found.values() if len(places) > 1}.values())

    def _same_starts(self, places: Sequence[int]) -> list[list[int]]:
        """Of these places, those that begin pieces with the same calls."""
        found: dict[Hashable, list[int]] = {}
        for place, piece in zip(places, self._calls_between(places)[1:], strict=True):
            found.setdefault(piece, []).append(place)
        return [same for same in found.values() if 1 < len(same) < len(places)]

    def _calls_between(self, places: Sequence[int]) -> list[tuple[int, ...]]:
        """The calls in front of the first place, and those between the others, without what is shared by all."""
        return [tuple(itertools.compress(self._calls[piece], self._own[piece])) for piece in self._between(places)]

    def _between(self, places: Sequence[int]) -> list[slice]:
        """The positions in front of the first place, and those between the others."""
        return [slice(start, end) for start, end in itertools.pairwise([0, *places, len(self._body)])]

    def _estimate(self, places: Sequence[int]) -> float:
        """The cost of the regions between these places if those with the same calls do the same."""
        *pieces, last = self._calls_between(places)
        like = next((piece for piece in dict.fromkeys(pieces) if piece == last[: len(piece)]), ())
        pieces += [like, last[len(like) :]]  # the last layer, and what follows it
        return _price({piece: len(piece) for piece in pieces}, len(pieces))

    def best(self, candidates: Sequence[list[int]]) -> list[Region]:
        """The cheapest of the regions that begin at some of the most promising candidates."""
        promising = heapq.nsmallest(_TRIED, candidates, key=self._estimate)
        return min(map(self._cut, promising), key=_cost)

    def _cut(self, places: Sequence[int]) -> list[Region]:
        """The regions between these places."""
        nodes = shared_first([list(self._body[piece]) for piece in self._between(places)], self._movable)
        pieces = [_Piece.of(piece, self._describer) for piece in nodes if piece]
        counted = _repeated(pieces)
        repeated = {piece.does: piece for piece in pieces if piece.does in counted}
        may_cut = {node for node, may in zip(self._body, self._may_cut, strict=True) if may}
        last = pieces[-1]
        for like in repeated.values():
            if last.does in repeated or (start := last.start(like, self._describer)) is None:
                continue
            rest = last.nodes[len(start.nodes) :]
            if rest and rest[0] in may_cut:
                pieces[-1:] = [start, _Piece.of(rest, self._describer)]
                break
        return _regions(pieces, self._describer)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Nodes between two cuts, those whose values it returns, and what it does."""

    nodes: list[Node]
    outputs: list[Node]
    description: Description

    @classmethod
    def of(cls, nodes: list[Node], describer: Describer) -> _Piece:
        outputs = _outputs(nodes)
        return cls(nodes, outputs, describer.region(nodes, outputs))

    @property
    def does(self) -> Hashable:
        return self.description.value

    def start(self, like: _Piece, describer: Describer) -> _Piece | None:
        """The first nodes of this piece if they do what ``like`` does, also if not all its outputs are needed."""
        nodes = self.nodes[: len(like.nodes)]
        places = [like.nodes.index(node) for node in like.outputs]
        if len(nodes) < len(like.nodes) or not {*_outputs(nodes)} <= {nodes[place] for place in places}:
            return None
        outputs = [nodes[place] for place in places]
        found = _Piece(nodes, outputs, describer.region(nodes, outputs))
        return found if found.does == like.does else None


def _repeated(pieces: Sequence[_Piece]) -> set[Hashable]:
    """What more than one piece does."""
    times = collections.Counter(piece.does for piece in pieces)
    return {does for does, count in times.items() if count > 1}


def _regions(pieces: Sequence[_Piece], describer: Describer) -> list[Region]:
    """The regions of these pieces. Neighbours that occur once are one region."""
    repeated = _repeated(pieces)
    joined: list[_Piece] = []
    for piece in pieces:
        if joined and not {piece.does, joined[-1].does} & repeated:
            joined[-1] = _Piece.of(joined[-1].nodes + piece.nodes, describer)
        else:
            joined.append(piece)
    kinds: dict[Hashable, int] = {}
    return [
        Region(
            piece.nodes,
            describer.inputs(piece.nodes),
            piece.outputs,
            kinds.setdefault(piece.does, len(kinds)),
            piece.description.symbols,
        )
        for piece in joined
    ]


def _cost(regions: Sequence[Region]) -> float:
    return _price({region.kind: len(region.nodes) for region in regions}, len(regions))


def _price(kinds: dict[Hashable, int], calls: int) -> float:
    """The nodes to compile, and a little for each compiled function and each call of one.

    Args:
        kinds: the number of nodes of each kind of region.
        calls: the number of regions.
    """
    return sum(kinds.values()) + _NODES_PER_KIND * len(kinds) + _NODES_PER_CALL * calls


def _outputs(nodes: Sequence[Node]) -> list[Node]:
    inside = set(nodes)
    return [
        node
        for node in nodes
        if not is_constant(example_or_none(node)) and any(user not in inside for user in node.users)
    ]
