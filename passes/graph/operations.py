"""The table of operations that passes recognize: for each its name, its properties and all its spellings.

    x.swapaxes(1, 2)   torch.transpose(input=x, dim0=1, dim1=2)   torch.ops.aten.transpose.int(x, 1, 2)   x.mT
        -> four spellings of the operation transpose, with arguments input, dim0 and dim1

To add an operation, add an :class:`Operation` to `OPERATIONS`:

    Operation("roll", NEW, "roll(input, shifts, dims=())")

- ``"roll(...)"`` is a signature as in torch's documentation (see ``signatures.py``). It stands for the function of
  `torch`, the tensor method and the operator `torch.ops.aten` of that name, as far as they exist. Readers of a call get
  the defaults given here for arguments that are missing.
- A prefix restricts it to one module: ``F.`` (`torch.nn.functional`), ``torch.``, ``operator.``, ``aten.``,
  ``linalg.``, ``special.``. A dot alone (``.to``) means a tensor method, an ``@`` (``@mT``) a tensor attribute.
- Several signatures are tried in order, and the first that fits the arguments is used: put special ones first.
- ``in_place`` lists the spellings that write the result to their first argument.
- ``Fixed(signature, name=value)`` is a spelling that implies the value of an argument, such as ``.float()``.
- Kinds are properties that passes rely on. If in doubt, leave one out: passes give up on an operation without it.

Spellings with different arguments may share an operation if no pass reads these arguments: a reshape, for example, is
determined by its input and output shapes. If a kind needs a rule for each operation, such as the order of dimensions
for REORDERS, add the rule where that kind is handled. Add a row to ``tests/passes/graph/test_reading.py``.
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
    """Properties of an operation that passes rely on. A missing property means that it is not known."""

    NONE = 0
    #: The result has all elements of the input, with its dimensions in another order.
    REORDERS = enum.auto()
    #: The result has all elements of the input in the same order, possibly with another shape.
    RESHAPES = enum.auto()
    #: The result is the input or a copy of it.
    SAME = enum.auto()
    #: The result is the input, possibly in another dtype.
    CASTS = enum.auto()
    #: The result has each element of the input several times.
    REPEATS = enum.auto()
    #: The result has some of the input's elements.
    SELECTS = enum.auto()
    #: The result is a tuple of parts of the input.
    PIECES = enum.auto()
    #: The result is a product of two tensors, summed over one or more dimensions.
    PRODUCT = enum.auto()
    #: The result is a size or other metadata; no element is read.
    QUERY = enum.auto()
    #: Each element of the result is a sum of elements of one input, each times a factor independent of that input.
    LINEAR = enum.auto()
    #: The result is new memory, never a view of an input.
    NEW = enum.auto()
    #: The result is a tensor made of data on the host.
    FROM_HOST = enum.auto()
    #: The in-place form changes sizes or strides of a tensor, but no element.
    RESTRIDES = enum.auto()


REORDERS, RESHAPES, SAME, CASTS, REPEATS = Kind.REORDERS, Kind.RESHAPES, Kind.SAME, Kind.CASTS, Kind.REPEATS
SELECTS, PIECES, PRODUCT, QUERY, LINEAR = Kind.SELECTS, Kind.PIECES, Kind.PRODUCT, Kind.QUERY, Kind.LINEAR
NEW, FROM_HOST, RESTRIDES = Kind.NEW, Kind.FROM_HOST, Kind.RESTRIDES

#: The result has exactly the elements of the input.
VIEWS = REORDERS | RESHAPES | SAME


class Fixed:
    """A spelling that implies the values of some arguments: ``.float()`` is a cast to ``torch.float32``."""

    def __init__(self, signature: str, **arguments: Any) -> None:
        self.signature, self.arguments = signature, arguments


class Operation:
    """One operation and its spellings.

    Attributes:
        name: its name in passes.
        kinds: its properties.
        spellings: signatures of its functional spellings, see the module docstring.
        in_place: signatures of its in-place spellings.
    """

    def __init__(self, name: str, kinds: Kind, *spellings: str | Fixed, in_place: tuple[str | Fixed, ...] = ()) -> None:
        self.name, self.kinds, self.spellings, self.in_place = name, kinds, spellings, in_place

    def __repr__(self) -> str:
        return f"Operation({self.name!r})"


def _new(*names: str) -> tuple[Operation, ...]:
    """Operations that return new memory, and whose arguments no pass reads."""
    return tuple(Operation(name, NEW, f"{name}(...)") for name in names)


_DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
#: Parameters of every function that creates a tensor.
_FACTORY = "dtype=None, device=None, layout=None, requires_grad=False, pin_memory=None"
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
        "sigmoid",
        NEW,
        "sigmoid(input)",
        "F.sigmoid(input)",
        "special.expit(input)",
        in_place=("sigmoid_(input)",),
    ),
    Operation("logsumexp", NEW, "logsumexp(input, dim, keepdim=False)", "special.logsumexp(input, dim, keepdim=False)"),
    Operation(
        "masked_fill",
        NEW,
        "masked_fill(input, mask, value)",
        in_place=("masked_fill_(input, mask, value)",),
    ),
    Operation("where", NEW, ".where(input, condition, other)", "where(condition, input, other)"),
    Operation("max", NEW, "max(input, dim=None, keepdim=False)"),
    Operation("maximum", NEW, "maximum(input, other)", "max(input, other)"),
    Operation(
        "clamp",
        NEW,
        "clamp(input, min=None, max=None)",
        "clip(input, min=None, max=None)",
        Fixed("clamp_min(input, min)", max=None),
        in_place=(
            "clamp_(input, min=None, max=None)",
            "clip_(input, min=None, max=None)",
            Fixed("clamp_min_(input, min)", max=None),
        ),
    ),
    Operation("amax", NEW, "amax(input, dim=(), keepdim=False)"),
    Operation("nan_to_num", NEW, "nan_to_num(input, nan=None, posinf=None, neginf=None)"),
    *_new("sum", "mean", "min", "exp", "log", "cos", "sin", "abs", "gather", "index_select", "cumsum", "amin"),
    Operation("roll", NEW, "roll(input, shifts, dims=None)"),
    *(
        # torch 2.11 calls the method where one side is a tensor that the graph makes
        Operation(name, NEW, f"{name}(input, other)", f"operator.{name}(input, other)", f".__{name}__(input, other)")
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    *_new("any", "all", "logical_or"),
    Operation("logical_not", NEW, "logical_not(input)"),
    Operation("bitwise_not", NEW, "bitwise_not(input)", "operator.invert(input)", ".__invert__(input)"),
    Operation("logical_and", NEW, "logical_and(input, other)"),
    Operation("bitwise_and", NEW, "bitwise_and(input, other)", "operator.and_(input, other)"),
    # --- creation of tensors
    Operation("tensor", FROM_HOST | NEW, f"torch.tensor(data, *, {_FACTORY})"),
    Operation("scalar_tensor", NEW, f"scalar_tensor(data, *, {_FACTORY})"),
    Operation("from_host", FROM_HOST, "torch.as_tensor(...)", "asarray(...)", "from_numpy(...)", ".new_tensor(...)"),
    Operation("full", NEW, f"full(shape, fill_value, *, {_FACTORY})"),
    Operation(
        "arange",
        NEW,
        f"arange(end, *, {_FACTORY})",
        f"arange(start, end, step=1, *, {_FACTORY})",
    ),
    *_new("new_zeros", "new_empty", "new_ones", "new_full", "zeros_like", "empty_like", "ones_like", "full_like"),
    # --- concatenation
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
    Operation("constant_pad_nd", NEW, "constant_pad_nd(input, pad, value=0)"),
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

# --- lookup of operations by function, method, attribute or operator ------------------------------------------------


class Spelling:
    """One way to call an operation.

    Attributes:
        operation: the operation.
        signature: the parameters.
        in_place: whether the result is written to the first argument.
        fixed: arguments that the spelling implies.
    """

    def __init__(self, operation: Operation, signature: Signature, in_place: bool, fixed: dict[str, Any]) -> None:
        self.operation, self.signature, self.in_place, self.fixed = operation, signature, in_place, fixed


#: Modules by the prefix of a signature.
_MODULES: dict[str, tuple[Any, ...]] = {
    "torch": (torch, torch.functional),
    "F": (F,),
    "operator": (operator,),
    "linalg": (torch.linalg,),
    "special": (torch.special,),
}
#: C functions of torch that appear in graphs in place of the function of ``F`` with this name.
_BUILTINS_OF_F = {"linear": graphs.linear, "scaled_dot_product_attention": graphs.scaled_dot_product_attention}


class _Tables:
    """All spellings, indexed by function, method, attribute and aten operator."""

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
            # Graphs call methods as functions too, such as ``torch.Tensor.split`` while a default device is set.
            self.functions.setdefault(getattr(torch.Tensor, name), []).append(spelling)
        modules = _MODULES["torch"] if not dot else _MODULES.get(module, ())
        functions = [getattr(each, name, None) for each in modules]
        if module == "F":
            functions.append(_BUILTINS_OF_F.get(name))
        for function in dict.fromkeys(function for function in functions if function is not None):
            self.functions.setdefault(function, []).append(spelling)


_TABLES = _Tables()
_BY_NAME = {operation.name: operation for operation in OPERATIONS}


def named(name: str) -> Operation:
    """The operation with this name.

    Raises:
        KeyError: if there is none.
    """
    return _BY_NAME[name]


def of_function(function: Any) -> list[Spelling]:
    """The spellings that call a function of torch or of the module operator."""
    try:
        return _TABLES.functions.get(function, [])
    except TypeError:  # not hashable
        return []


def of_method(name: str) -> list[Spelling]:
    """The spellings that call a tensor method."""
    return _TABLES.methods.get(name, [])


def of_attribute(name: str) -> list[Spelling]:
    """The spellings that read a tensor attribute."""
    return _TABLES.attributes.get(name, [])


def of_operator(name: str) -> list[Spelling]:
    """The spellings that call any overload of an aten operator."""
    return _TABLES.operators.get(name, [])
