"""Errors for writes that a quantized cache does not support. The messages name those that it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedOperation
from ..kernels.internals.tensors import schema_of

if TYPE_CHECKING:
    from .buffer import InnerQBuffer
    from .tensor import InnerQTensor


def written_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operator writes to. Elements of lists are yielded one by one."""
    for position, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        yield from value if isinstance(value, (list, tuple)) else (value,)


def tensor_refusal(what: Any, tensor: InnerQTensor) -> UnsupportedOperation:
    """The error for a write to an :class:`InnerQTensor`. ``what`` names the write: an operator or a text."""
    return UnsupportedOperation(
        f"{what} would write into a quantized cache of shape {tuple(tensor.shape)}: allowed are appending with "
        "torch.cat, cropping, batch selection and zero_(); call .dequantize() for a dense copy to write into"
    )


def buffer_refusal(what: Any, tensor: InnerQBuffer) -> UnsupportedOperation:
    """The error for a write to an :class:`InnerQBuffer`. ``what`` names the write: an operator or a text."""
    return UnsupportedOperation(
        f"{what} would write into a quantized cache of shape {tuple(tensor.shape)}: allowed are writes of whole tokens "
        "in order, tensor[:, :, position] = k (or a mask of tokens that follow one another), tensor[:, :, a:b] = k, "
        "index_copy_(2, position, k), and zero_()"
    )
