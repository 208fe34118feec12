"""Loops over tokens or chunks of a prompt, whose number is a symbol: one operator runs such a loop.

    capture     decide whether a loop can be an operator, and what its arguments and results are (capture.py)
    source      the statements of a loop as a function (source.py)
    operator    what runs this function in a compiled graph (operator.py)

Dynamo runs loops symbolically and unrolls them: a graph of thousands of nodes, for one length of a prompt.
"""

from __future__ import annotations

from .capture import LOOPS

__all__ = ["LOOPS"]
