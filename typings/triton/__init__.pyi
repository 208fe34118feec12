# Triton for type checkers: anything.
#
# Triton's own annotations are those of its compiler. Code in kernels is another language: there tl.range is iterated
# over, a tl.constexpr is a number or a string, a tile takes part in arithmetic, and a jit function is called with all
# of these. Checked against the annotations, nearly every line of a kernel is an error; what kernels compute is checked
# by the tests that compile and run them.

from typing import Any

def __getattr__(name: str) -> Any: ...
