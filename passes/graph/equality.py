"""Whether two nodes have the same value, because they are computed in the same way from the same inputs.

hidden = mask.view(B, 1, N, S) == False          computed for the scores
again = mask.view(B, 1, N, S) == False           computed once more, for the weights
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from .aliases import Writes
from .reading import is_pure, op_name, spelling
from .values import dtype_of, same_sizes, shape

#: Operations that may give other numbers for the same arguments: random ones, and memory that nothing was written to.
_NEW_EACH_TIME = frozenset({"dropout", "sdpa", "new_empty", "empty_like", "baddbmm"})


def have_same_value(a: Any, b: Any, changes: Writes) -> bool:
    """Whether two arguments, nodes among them or not, are known to have the same value whenever they are read.

    Args:
        a, b: nodes, numbers, and tuples, lists and slices of these.
        changes: the in-place writes of the graph. What is written at all is not known to be the same.
    """
    return _Comparison(changes).same(a, b)


class _Comparison:
    def __init__(self, changes: Writes) -> None:
        self._changes = changes
        self._known: dict[tuple[Node, Node], bool] = {}

    def same(self, a: Any, b: Any) -> bool:
        if isinstance(a, Node) and isinstance(b, Node):
            if (a, b) not in self._known:
                self._known[a, b] = self._same_nodes(a, b)
            return self._known[a, b]
        if type(a) is not type(b):
            return False
        if isinstance(a, (tuple, list)):
            return len(a) == len(b) and all(map(self.same, a, b))
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(self.same(a[key], b[key]) for key in a)
        if isinstance(a, slice):
            return self.same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
        return bool(a == b)

    def _same_nodes(self, a: Node, b: Node) -> bool:
        if self._changes.of(a) or self._changes.of(b):
            return False
        if a is b:
            return True
        if not (is_pure(a) and is_pure(b)) or op_name(a) in _NEW_EACH_TIME or dtype_of(a) != dtype_of(b):
            return False
        sizes, others = shape(a), shape(b)
        if (sizes is None) != (others is None) or (sizes is not None and not same_sizes(sizes, others or ())):
            return False
        return self.same(spelling(a), spelling(b))
