"""The text of a template: an entry function, and the source of the ordinary ``triton.jit`` functions that it calls.

Each kernel is written once. The eager operator launches it, the interpreter runs it, and the code that Inductor
generates contains a copy of its source: a compiled graph does not depend on these modules, and Inductor can cache it.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from typing import Any

import triton.language as tl

from ..internals.templates import ConstexprFunction
from ..triton import dependent

#: Optional tensors, and the constants that say whether there is one. If not, the query is passed, and not read.
OPTIONAL = {"mask": "MASK", "open_from": "OPEN", "value_query": "VALUE_QUERY"}
#: Sizes with which a template is called: those of the grid, and arguments that are no sizes of tensors.
CALL_SIZES = ("sequences", "row_tiles", "splits", "dropped")
#: Arguments that may be symbolic, as hooks of Inductor's templates; strides may be, too. Others are constants.
_HOOKS = {
    "k_capacity": 'size("k_codes", 2)',
    "v_capacity": 'size("v_codes", 2)',
    "mask_tokens": 'size("mask", 3)',
    "dropped": f"call_size({CALL_SIZES.index('dropped')})",
}
_RESULTS = ("part_out", "part_max", "part_sum")


def tensors_of(kernel: Any) -> list[str]:
    """Names of the tensors that a partial kernel reads, in the order of its parameters."""
    return kernel.arg_names[: kernel.arg_names.index(_RESULTS[0])]


def _hook(name: str) -> str | None:
    if "_stride_" not in name:
        return _HOOKS.get(name)
    tensor, _, dim = name.partition("_stride_")
    return f'stride("{tensor}", {("bhns" if tensor == "mask" else "bhnd").index(dim)})'


def is_constant(name: str) -> bool:
    """Whether an argument of a partial kernel is a constant of the template, which the caller has to pass."""
    return _hook(name) is None


def entry(kernel: Any) -> str:
    """The Jinja template of the entry function, made from the parameters of the kernel.

    The output holds the three results one after another, each for all splits.
    """
    tensors = tensors_of(kernel)
    lines = [f"{{%- set tensors = {[name for name in tensors if name not in OPTIONAL]} -%}}"]
    optional = {name: constant for name, constant in OPTIONAL.items() if name in tensors}
    for name, constant in optional.items():
        lines.append(f'{{%- if {constant} %}}{{% set tensors = tensors + ["{name}"] %}}{{% endif -%}}')
    lines += [
        "{{ def_kernel(*tensors) }}",
        "    wait_for_others(PDL)",
        "    rows = tl.num_programs(2).to(tl.int64) * tl.num_programs(0) * (G * N)",
        "    part_out = {{ output_argument() }}",
        "    part_max = part_out + rows * V_D",
        "    part_sum = part_max + rows",
        f"    {kernel.fn.__name__}(",
    ]
    for name in kernel.arg_names:
        hook = _hook(name)
        value = name if hook is None else f"{{{{ {hook} }}}}"
        for tensor, constant in optional.items():
            if name == tensor or name.startswith(tensor + "_"):
                value = f"{{% if {constant} %}}{value}{{% else %}}{tensors[0] if name == tensor else 0}{{% endif %}}"
        lines.append(f"        {name}={value},")
    lines.append("    )")
    return "\n".join(lines) + "\n"


@functools.cache
def library(*kernels: Any) -> str:
    """The source of ``kernels`` and of all functions that they call, callees first, after the constants they use."""
    functions: dict[str, Any] = {}
    constants: dict[str, str] = {}

    def visit(function: Any) -> None:
        fn = function.fn
        for name in fn.__code__.co_names:
            value = fn.__globals__.get(name)
            if isinstance(value, tl.constexpr):
                constants[name] = f"tl.constexpr({value.value!r})"
            elif isinstance(value, (tuple, str, int, float)):  # of a function that runs while compiling
                constants[name] = repr(value)
            elif hasattr(value, "fn") and value.__module__ != "triton.language.standard" and name not in functions:
                functions[name] = None  # being visited
                visit(value)
                functions.pop(name)
                functions[name] = value

    for kernel in kernels:
        visit(kernel)
        functions[kernel.fn.__name__] = kernel
    text = [f"{name} = {value}\n" for name, value in sorted(constants.items())]
    for function in functions.values():
        decorator = "constexpr_function" if isinstance(function, ConstexprFunction) else "jit"
        source = textwrap.dedent(inspect.getsource(function.fn))
        text.append(f"\n\n@triton.{decorator}\n" + source[source.index("def ") :])
    return "".join(text)


def template_source(kernel: Any) -> str:
    """The complete Jinja template of a partial kernel."""
    return entry(kernel) + "\n\n{% raw %}\n" + library(kernel, dependent.wait_for_others) + "{% endraw %}\n"
