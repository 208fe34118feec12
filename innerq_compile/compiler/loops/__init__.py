"""Loops over chunks of a prompt, whose number is a symbol: one operator runs the function that has such a loop.

    finding     the source of a function, which is the code that runs (finding.py)
    allowed     what such a function and those that it calls may do (allowed.py)
    source      its statements as a function that can be tried (source.py)
    capture     decide whether a call can be an operator, and what its arguments and results are (capture.py)
    operator    what runs the function in a compiled graph (operator.py)

Dynamo runs loops symbolically and unrolls them: a graph of thousands of nodes, for one length of a prompt.
"""

from __future__ import annotations

from .capture import LOOPS

__all__ = ["LOOPS"]
