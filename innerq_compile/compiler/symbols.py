"""Which sizes and numbers a program takes as symbols in its first graph: those that differ in a later call.

A decoder is called with prompts of all lengths and with several sequences. Its first graph serves all of them, except
where a size is 1: Dynamo and Inductor compile a single sequence, and a step of a single token, for themselves.
"""

from __future__ import annotations

import torch

from ..kernels.internals.dynamo_sizes import Symbols

#: Attributes of transformers' cache layers that hold a number of tokens: of those that it has seen, and of its room.
_LENGTHS = (".cumulative_length", ".cumulative_length_int", ".max_cache_len")


def _sizes(tensor: torch.Tensor) -> range:
    """The dimensions of an input that may count sequences or tokens.

    Those of token ids, positions and masks; of floating-point tensors ``[B, H, S, D]``, ``[B, S, H, D]`` and
    ``[B, S, D]``, all but the last, and of a mask ``[B, 1, N, S]`` the last, too. Heads become constants again where
    the program puts them next to those of a weight.
    """
    dims = tensor.dim()
    if not tensor.is_floating_point() or (dims == 4 and tensor.shape[1] == 1):
        return range(dims)
    return range(dims - 1 if dims > 2 else 0)


def _number(name: str) -> bool:
    return name.endswith(_LENGTHS)


SYMBOLS = Symbols(_sizes, _number)
