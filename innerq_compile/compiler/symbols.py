"""Which sizes and numbers a program takes as symbols in its first graph: those that differ in a later call.

A decoder is called with prompts of all lengths and with several sequences. One graph serves them all if it takes these
sizes as symbols, except where a size is 1, which is always a constant: a single sequence, or a step of a single token.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import torch

from ..cache.tensor import InnerQTensor
from ..kernels.internals.dynamo_sizes import Symbols

#: A number is a length or a position if its name contains one of these words.
_LENGTH = re.compile(r"(?:^|_)(?:pos|position|len|length|offset|start|past)(?:_|$)")
_IDENTIFIER = re.compile(r"\w+")
#: Keys and values ``[B, H, S, D]`` in a layer of a cache of transformers.
_OF_TRANSFORMERS = re.compile(r"\.layers\[\d+\]\.(?:keys|values)$")


def _sizes(name: str, tensor: torch.Tensor) -> Collection[int]:
    """The dimensions of an input that may count sequences or tokens.

    Those of token ids, positions and masks, the first two of ``[B, S, D]``, and of keys or values all but heads and
    head_dim, where it is known which dimension counts heads: in caches of this package and of transformers. Elsewhere
    heads could be taken for tokens, and an attention with a symbolic number of heads is not rewritten.
    """
    dims = tensor.dim()
    if not tensor.is_floating_point() or (dims == 4 and tensor.shape[1] == 1):
        return range(dims)
    if isinstance(tensor, InnerQTensor):  # which makes heads constants itself
        return range(3)
    if dims == 4:
        return (0, 2) if _OF_TRANSFORMERS.search(name) else (0,)
    return range(2 if dims == 3 else 0)


def _number(name: str) -> bool:
    """Whether a number is a length or a position, such as ``L['cache'].layers[0].cumulative_length``."""
    return _LENGTH.search(_IDENTIFIER.findall(name)[-1]) is not None


#: The symbols of every program that is compiled with this backend.
SYMBOLS = Symbols(_sizes, _number)
