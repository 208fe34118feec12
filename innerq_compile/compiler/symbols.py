"""Which sizes and numbers a program takes as symbols in its first graph: those that differ in a later call.

A decoder is called with prompts of all lengths and with several sequences. One graph serves them all if it takes these
sizes as symbols, except where a size is 1, which is always a constant: a single sequence, or a step of a single token.
"""

from __future__ import annotations

import re

import torch

from ..kernels.internals.dynamo_sizes import Symbols

#: A number is a length or a position if its name contains one of these words.
_LENGTH = re.compile(r"(?:^|_)(?:pos|position|len|length|offset|start|past)(?:_|$)")
_IDENTIFIER = re.compile(r"\w+")


def _sizes(tensor: torch.Tensor) -> range:
    """The dimensions of an input that may count sequences or tokens.

    Those of token ids, positions and masks; of floating-point tensors ``[B, H, S, D]``, ``[B, S, H, D]`` and
    ``[B, S, D]`` all but the last, and of a mask ``[B, 1, N, S]`` the last, too. Heads are constants again where the
    program combines them with those of a weight.
    """
    dims = tensor.dim()
    if not tensor.is_floating_point() or (dims == 4 and tensor.shape[1] == 1):
        return range(dims)
    return range(dims - 1 if dims in (3, 4) else 0)


def _number(name: str) -> bool:
    """Whether a number is a length or a position, such as ``L['cache'].layers[0].cumulative_length``."""
    return _LENGTH.search(_IDENTIFIER.findall(name)[-1]) is not None


#: The symbols of every program that is compiled with this backend.
SYMBOLS = Symbols(_sizes, _number)
