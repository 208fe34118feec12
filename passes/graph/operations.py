"""Every operation that passes know: its name, what it does to its operand, and all that spells it. The only tables.

    x.swapaxes(1, 2)   torch.transpose(input=x, dim0=1, dim1=2)   torch.ops.aten.transpose.int(x, 1, 2)   x.mT
        -> all of them: transpose, with the arguments input, dim0 and dim1

To add an operation, add an :class:`Operation` to `OPERATIONS`:

    Operation("roll", NEW, "roll(input, shifts, dims=())")

- ``"roll(...)"`` is a signature as in torch's documentation (see ``signatures.py``). It holds for the function of
  `torch`, the method of tensors and the operator `torch.ops.aten` of that name, whichever there are. Defaults are
  stated here once: who reads a call gets them.
- A module in front of the name restricts it: ``F.`` (`torch.nn.functional`), ``torch.``, ``operator.``, ``aten.``,
  ``linalg.``, ``special.``; a dot alone (``.to``) is a method of tensors, an ``@`` (``@mT``) an attribute.
- Several signatures are tried in order; the first that the arguments fit to is taken, so the more special goes first.
- ``in_place`` are the spellings that write the result to their first argument.
- ``Fixed(signature, name=value)`` says arguments that a spelling gives without being told, as ``.float()`` does.
- The kinds say what passes may take for granted. If in doubt leave one out: a pass stops at what it does not know.

Spellings with different arguments share an operation where nobody needs them: of a reshape the shapes before and behind
say all. Then write the rule for it where the kind is read, if it has one that is new, and a row in
``tests/passes/graph/test_reading.py``.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ...kernels.internals import graphs
from .signatures import Signature


class Kind(enum.Flag):
    """What an operation does to its operand; what is not said is not known."""

    NONE = 0
    #: All elements of the operand, its dimensions in another order.
    REORDERS = enum.auto()
    #: All elements of the operand in the same order, in a tensor of another shape (or the same).
    RESHAPES = enum.auto()
    #: The operand itself, or a copy of it.
    SAME = enum.auto()
    #: The operand in another dtype, maybe.
    CASTS = enum.auto()
    #: Each element of the operand several times.
    REPEATS = enum.auto()
    #: Some of the operand's elements.
    SELECTS = enum.auto()
    #: Parts of the operand, in a tuple.
    PIECES = enum.auto()
    #: A product of two tensors, summed over a dimension.
    PRODUCT = enum.auto()
    #: Asks for a size or other metadata, no element.
    QUERY = enum.auto()
    #: Each element of the result is a sum of elements of an operand, each times what does not depend on it.
    LINEAR = enum.auto()
    #: Memory of its own: never a view of an operand.
    NEW = enum.auto()
    #: Brings numbers of the host to a tensor.
    FROM_HOST = enum.auto()
    #: In place it changes the sizes or strides of a tensor, and no element.
    RESTRIDES = enum.auto()


REORDERS, RESHAPES, SAME, CASTS, REPEATS = Kind.REORDERS, Kind.RESHAPES, Kind.SAME, Kind.CASTS, Kind.REPEATS
SELECTS, PIECES, PRODUCT, QUERY, LINEAR = Kind.SELECTS, Kind.PIECES, Kind.PRODUCT, Kind.QUERY, Kind.LINEAR
NEW, FROM_HOST, RESTRIDES = Kind.NEW, Kind.FROM_HOST, Kind.RESTRIDES

#: All elements of the operand, and nothing else.
VIEWS = REORDERS | RESHAPES | SAME


class Fixed:
    """A spelling that gives some arguments without being told: ``.float()`` is a cast to ``torch.float32``."""

    def __init__(self, signature: str, **arguments: Any) -> None:
        self.signature, self.arguments = signature, arguments


class Operation:
    """One operation and its spellings.

    Attributes:
        name: what passes call it.
        kinds: what it does to its operand.
        spellings, in_place: the signatures, see the manual above.
    """

    def __init__(self, name: str, kinds: Kind, *spellings: str | Fixed, in_place: tuple[str | Fixed, ...] = ()) -> None:
        self.name, self.kinds, self.spellings, self.in_place = name, kinds, spellings, in_place

    def __repr__(self) -> str:
        return f"Operation({self.name!r})"


def _new(*names: str) -> tuple[Operation, ...]:
    """Operations that give a new tensor, whose arguments nobody asks for."""
    return tuple(Operation(name, NEW, f"{name}(...)") for name in names)


_DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
#: What every function takes that makes a tensor.
_MADE = "dtype=None, device=None, layout=None, requires_grad=False, pin_memory=None"
_SDPA = (
    "scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, "
    "enable_gqa=False)"
)

OPERATIONS: tuple[Operation, ...] = (
    # --- attention and its products
    Operation("sdpa", NEW, f"F.{_SDPA}", f"aten.{_SDPA}"),
    Operation(
        "matmul",
        PRODUCT | NEW,
        "matmul(input, other)",
        "linalg.matmul(input, other)",
        "mm(input, other)",
        "aten.mm(input, mat2)",
        "operator.matmul(input, other)",
        ".__matmul__(input, other)",
    ),
    Operation("bmm", PRODUCT | NEW, "bmm(input, mat2)"),
    Operation("baddbmm", PRODUCT | NEW, "baddbmm(input, batch1, batch2, *, beta=1, alpha=1)"),
    Operation("einsum", PRODUCT | NEW, "aten.einsum(equation, operands, *, path=None)", "einsum(equation, *operands)"),
    Operation("linear", NEW, "F.linear(input, weight, bias=None)", "aten.linear(input, weight, bias=None)"),
    Operation("addmm", NEW, "addmm(input, mat1, mat2, *, beta=1, alpha=1)"),
    Operation(
        "softmax",
        NEW,
        "softmax(input, dim, dtype=None)",
        "special.softmax(input, dim, *, dtype=None)",
        "F.softmax(input, dim=None, _stacklevel=3, dtype=None)",
    ),
    Operation(
        "dropout",
        Kind.NONE,
        "F.dropout(input, p=0.5, training=True, inplace=False)",
        "torch.dropout(input, p, training)",
        "aten.dropout(input, p, training)",
    ),
    Operation("rms_norm", NEW, "rms_norm(...)", "F.rms_norm(...)"),
    Operation("layer_norm", NEW, "layer_norm(...)", "F.layer_norm(...)"),
    # --- arithmetic
    Operation(
        "add",
        LINEAR | NEW,
        "add(input, other, *, alpha=1)",
        "operator.add(input, other)",
        ".__add__(input, other)",
        ".__radd__(other, input)",
        in_place=("add_(input, other, *, alpha=1)", "operator.iadd(input, other)"),
    ),
    Operation(
        "sub",
        LINEAR | NEW,
        "sub(input, other, *, alpha=1)",
        "subtract(input, other, *, alpha=1)",
        "operator.sub(input, other)",
        ".__sub__(input, other)",
        ".__rsub__(other, input)",
        in_place=("sub_(input, other, *, alpha=1)", "operator.isub(input, other)"),
    ),
    Operation(
        "mul",
        LINEAR | NEW,
        "mul(input, other)",
        "multiply(input, other)",
        "operator.mul(input, other)",
        ".__mul__(input, other)",
        ".__rmul__(other, input)",
        in_place=("mul_(input, other)", "operator.imul(input, other)"),
    ),
    Operation(
        "div",
        LINEAR | NEW,
        "div(input, other, *, rounding_mode=None)",
        "divide(input, other, *, rounding_mode=None)",
        "true_divide(input, other)",
        "operator.truediv(input, other)",
        ".__truediv__(input, other)",
        in_place=("div_(input, other, *, rounding_mode=None)", "operator.itruediv(input, other)"),
    ),
    Operation("neg", LINEAR | NEW, "neg(input)", "negative(input)", "operator.neg(input)", ".__neg__(input)"),
    Operation("pow", NEW, "pow(input, exponent)", "operator.pow(input, exponent)"),
    Operation("sqrt", NEW, "sqrt(input)"),
    Operation("rsqrt", NEW, "rsqrt(input)"),
    Operation("tanh", NEW, "tanh(input)", "F.tanh(input)", in_place=("tanh_(input)",)),
    Operation(
        "masked_fill",
        NEW,
        "masked_fill(input, mask, value)",
        in_place=("masked_fill_(input, mask, value)",),
    ),
    Operation("where", NEW, ".where(input, condition, other)", "where(condition, input, other)"),
    Operation("max", NEW, "max(input, dim=None, keepdim=False)", "max(input, other)"),
    Operation("amax", NEW, "amax(input, dim=(), keepdim=False)"),
    Operation("nan_to_num", NEW, "nan_to_num(input, nan=None, posinf=None, neginf=None)"),
    *_new("sum", "mean", "min", "exp", "log", "cos", "sin", "abs", "roll", "gather", "index_select", "cumsum", "amin"),
    *(Operation(name, NEW, f"{name}(...)", f"operator.{name}(...)") for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    *_new("any", "all", "logical_not", "logical_and", "logical_or"),
    # --- tensors that are made
    Operation("tensor", FROM_HOST | NEW, f"torch.tensor(data, *, {_MADE})"),
    Operation("scalar_tensor", NEW, f"scalar_tensor(data, *, {_MADE})"),
    Operation("from_host", FROM_HOST, "torch.as_tensor(...)", "asarray(...)", "from_numpy(...)", ".new_tensor(...)"),
    Operation("full", NEW, f"full(shape, fill_value, *, {_MADE})"),
    Operation(
        "arange",
        NEW,
        f"arange(end, *, {_MADE})",
        f"arange(start, end, step=1, *, {_MADE})",
    ),
    *_new("new_zeros", "new_empty", "new_ones", "new_full", "zeros_like", "empty_like", "ones_like", "full_like"),
    # --- tensors put together
    Operation(
        "cat",
        LINEAR | NEW,
        "cat(tensors, dim=0)",
        "concat(tensors, dim=0)",
        "concatenate(tensors, dim=0)",
    ),
    Operation("stack", LINEAR | NEW, "stack(tensors, dim=0)"),
    # --- views and copies of all elements
    Operation(
        "transpose",
        REORDERS | LINEAR,
        "transpose(input, dim0, dim1)",
        "swapaxes(input, dim0, dim1)",
        "swapdims(input, dim0, dim1)",
        *(Fixed(f"{spelled}(input)", dim0=-2, dim1=-1) for spelled in ("@mT", "aten.mT", "@mH", "aten.mH", "adjoint")),
        *(Fixed(f"{spelled}(input)", dim0=-2, dim1=-1) for spelled in ("@H", "aten.matrix_H")),
        in_place=("transpose_(input, dim0, dim1)", "swapaxes_(input, dim0, dim1)", "swapdims_(input, dim0, dim1)"),
    ),
    Operation("reverse", REORDERS | LINEAR, "@T(input)", "aten.numpy_T(input)", "t(input)", in_place=("t_(input)",)),
    Operation("permute", REORDERS | LINEAR, "permute(input, *dims)"),
    Operation(
        "movedim",
        REORDERS | LINEAR,
        "movedim(input, source, destination)",
        "moveaxis(input, source, destination)",
    ),
    Operation(
        "reshape",
        RESHAPES | LINEAR,
        "reshape(input, *shape)",
        ".view(input, *shape)",
        "aten.view(input, *shape)",
        "aten._unsafe_view(input, *shape)",
        "view_as(input, other)",
        "reshape_as(input, other)",
        "flatten(input, start_dim=0, end_dim=-1)",
        "ravel(input)",
        "unflatten(input, dim, sizes)",
        "squeeze(input, dim=None)",
        in_place=("squeeze_(input, dim=None)",),
    ),
    Operation("unsqueeze", RESHAPES | LINEAR, "unsqueeze(input, dim)", in_place=("unsqueeze_(input, dim)",)),
    Operation("contiguous", SAME | LINEAR, "contiguous(input, *, memory_format=None)"),
    Operation("detach", SAME | LINEAR, "detach(input)", in_place=("detach_(input)",)),
    Operation("clone", SAME | LINEAR | NEW, "clone(input, *, memory_format=None)"),
    Operation("positive", SAME | LINEAR, "operator.pos(input)", "positive(input)"),
    Operation(
        "to",
        CASTS | LINEAR,
        ".to(input, dtype, non_blocking=False, copy=False, *, memory_format=None)",
        ".to(input, device=None, dtype=None, non_blocking=False, copy=False, *, memory_format=None)",
        ".to(input, other, non_blocking=False, copy=False, *, memory_format=None)",
        ".type(input, dtype, non_blocking=False)",
        ".type_as(input, other)",
        "aten.to(input, dtype, non_blocking=False, copy=False, memory_format=None)",
        "aten._to_copy(input, *, dtype=None, memory_format=None)",
        *(Fixed(f".{name}(input, *, memory_format=None)", dtype=dtype) for name, dtype in _DTYPES.items()),
    ),
    Operation("view_as_complex", LINEAR, "view_as_complex(input)"),
    Operation("view_as_real", LINEAR, "view_as_real(input)"),
    # --- repetition
    Operation(
        "expand",
        REPEATS | LINEAR,
        "expand(input, *shape, implicit=False)",
        "broadcast_to(input, *shape)",
        "expand_as(input, other)",
    ),
    Operation("repeat", REPEATS | NEW, "repeat(input, *repeats)", "tile(input, *repeats)"),
    Operation("repeat_interleave", REPEATS | NEW, "repeat_interleave(input, repeats, dim=None, *, output_size=None)"),
    # --- parts
    Operation("getitem", SELECTS | LINEAR, "operator.getitem(input, index)", ".__getitem__(input, index)"),
    Operation("narrow", SELECTS, "narrow(input, dim, start, length)"),
    Operation("select", SELECTS, "select(input, dim, index)"),
    Operation("chunk", PIECES | LINEAR, "chunk(input, chunks, dim=0)"),
    Operation(
        "split",
        PIECES | LINEAR,
        "split(input, split_size_or_sections, dim=0)",
        "split_with_sizes(input, split_size_or_sections, dim=0)",
    ),
    Operation("tensor_split", PIECES | LINEAR, "tensor_split(input, indices_or_sections, dim=0)"),
    Operation("unbind", PIECES | LINEAR, "unbind(input, dim=0)"),
    # --- writes
    Operation(
        "setitem",
        Kind.NONE,
        in_place=("operator.setitem(input, index, source)", ".__setitem__(input, index, source)"),
    ),
    Operation("copy", Kind.NONE, in_place=("copy_(input, source, non_blocking=False)",)),
    Operation(
        "index_copy",
        NEW,
        "index_copy(input, dim, index, source)",
        in_place=("index_copy_(input, dim, index, source)",),
    ),
    Operation(
        "index_put",
        NEW,
        "index_put(input, indices, values, accumulate=False)",
        in_place=("index_put_(input, indices, values, accumulate=False)",),
    ),
    Operation("resize", RESTRIDES, in_place=("as_strided_(...)", "resize_(...)", "resize_as_(...)", ".set_(...)")),
    # --- metadata
    Operation("size", QUERY, "size(input, dim=None)", "aten.sym_size(input, dim=None)"),
    Operation("numel", QUERY, "numel(input)", "nelement(input)", "aten.sym_numel(input)"),
    Operation("dim", QUERY, ".dim(input)", ".ndimension(input)", "aten.dim(input)", "@ndim(input)"),
    Operation("stride", QUERY, "stride(input, dim=None)"),
    *(Operation(name, QUERY, f"@{name}(input)") for name in ("shape", "dtype", "device", "is_cuda")),
)

# --- from what a node calls to its operation ------------------------------------------------------------------------


class Spelling:
    """One way to call an operation.

    Attributes:
        operation: the operation.
        signature: the parameters.
        in_place: whether the result is written to the first argument.
        fixed: arguments that are given without being told.
    """

    def __init__(self, operation: Operation, signature: Signature, in_place: bool, fixed: dict[str, Any]) -> None:
        self.operation, self.signature, self.in_place, self.fixed = operation, signature, in_place, fixed


#: Modules by the word in front of a name.
_MODULES: dict[str, tuple[Any, ...]] = {
    "torch": (torch, torch.functional),
    "F": (F,),
    "operator": (operator,),
    "linalg": (torch.linalg,),
    "special": (torch.special,),
}
#: What a program may call in place of a function of ``F``.
_BEHIND_F = {"linear": graphs.linear, "scaled_dot_product_attention": graphs.scaled_dot_product_attention}


class _Tables:
    """All spellings, by the function, the method, the attribute and the aten operator that they are."""

    def __init__(self) -> None:
        self.functions: dict[Callable[..., Any], list[Spelling]] = {}
        self.methods: dict[str, list[Spelling]] = {}
        self.attributes: dict[str, list[Spelling]] = {}
        self.operators: dict[str, list[Spelling]] = {}
        for operation in OPERATIONS:
            for in_place, spellings in ((False, operation.spellings), (True, operation.in_place)):
                for spelled in spellings:
                    fixed = spelled if isinstance(spelled, Fixed) else Fixed(spelled)
                    signature = Signature.parse(fixed.signature)
                    self._add(signature.name, Spelling(operation, signature, in_place, fixed.arguments))

    def _add(self, name: str, spelling: Spelling) -> None:
        if name.startswith("@"):
            self.attributes.setdefault(name[1:], []).append(spelling)
            return
        module, dot, name = name.rpartition(".")
        if module == "aten" or not dot:
            self.operators.setdefault(name, []).append(spelling)
        if not module and hasattr(torch.Tensor, name):
            self.methods.setdefault(name, []).append(spelling)
        modules = _MODULES["torch"] if not dot else _MODULES.get(module, ())
        functions = [getattr(each, name, None) for each in modules]
        if module == "F":
            functions.append(_BEHIND_F.get(name))
        for function in dict.fromkeys(function for function in functions if function is not None):
            self.functions.setdefault(function, []).append(spelling)


_TABLES = _Tables()
_BY_NAME = {operation.name: operation for operation in OPERATIONS}


def named(name: str) -> Operation:
    """The operation of a name.

    Raises:
        KeyError: if there is none.
    """
    return _BY_NAME[name]


def of_function(function: Any) -> list[Spelling]:
    """What a function of torch or of Python's operators spells."""
    try:
        return _TABLES.functions.get(function, [])
    except TypeError:  # not hashable
        return []


def of_method(name: str) -> list[Spelling]:
    """What a method of tensors spells."""
    return _TABLES.methods.get(name, [])


def of_attribute(name: str) -> list[Spelling]:
    """What an attribute of tensors spells."""
    return _TABLES.attributes.get(name, [])


def of_operator(name: str) -> list[Spelling]:
    """What an aten operator, all overloads of it, spells."""
    return _TABLES.operators.get(name, [])
