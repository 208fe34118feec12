"""Inductor's GPU code without a GPU: its source, and its results in Triton's interpreter.

Inductor is told that Triton serves the CPU and that an H100 is there. It then makes the very kernels that it would make
for the GPU. Where it would have them compiled, the interpreter runs their text instead.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import triton
from torch._inductor import async_compile
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.utils import fresh_cache
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from innerq_compile.kernels import lowering
from innerq_compile.kernels.triton import attention, support


class _Driver:
    """Answers Triton's questions as an H100 does."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def is_active(self):
        return True


class Interpreted:
    """A kernel of Inductor, launched in the interpreter by the grid that its launcher would compute."""

    def __init__(self, fn, config: triton.Config, inductor_meta: dict[str, Any], triton_meta: dict[str, Any]) -> None:
        self.fn, self.config, self.inductor_meta, self.triton_meta = fn, config, inductor_meta, triton_meta

    def compile_for(self, capability: int):
        """Machine code for ``sm_<capability>``, made as Inductor's launcher has it made."""
        constants = {**self.triton_meta["constants"], **self.config.kwargs}
        constants = {name: value for name, value in constants.items() if name in self.fn.arg_names}
        source = ASTSource(self.fn, self.triton_meta["signature"], constants, self.triton_meta["configs"][0])
        options = {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}
        if "maxnreg" in self.inductor_meta:
            options["maxnreg"] = self.inductor_meta["maxnreg"]
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    def run(self, *args: Any, stream: Any = None, **options: Any) -> None:
        extra = self.inductor_meta.get("extra_launcher_args", ())
        names = [name for name in self.fn.arg_names if name not in self.config.kwargs]
        values = dict(zip([*names, *extra], args, strict=True))
        grid = triton_heuristics.GridExpr.from_meta(self.inductor_meta, self.config)
        for line in grid.prefix:
            exec(line, values)
        sizes = tuple(int(eval(str(size), {}, values)) for size in (grid.x_grid, grid.y_grid, grid.z_grid))
        given = [value.view(torch.uint8) if _is_bool(value) else value for value in args[: len(names)]]
        self.fn[sizes](**dict(zip(names, given, strict=True)), **self.config.kwargs)


class _Libdevice:
    """CUDA's functions by the names of the language's own, which the interpreter knows."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: getattr(triton.language, name)(*args)


def _max2(values: Any, axis: int) -> Any:
    """Inductor's maximum of two tensors; its own code is slow in the interpreter."""
    return triton.language.max(values, axis)


def _is_bool(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _cached_autotune(size_hints, configs, triton_meta, *, inductor_meta=None, **options):
    largest = max(configs, key=lambda config: math.prod(v for v in config.kwargs.values() if isinstance(v, int)))
    return lambda fn: Interpreted(fn, largest, inductor_meta or {}, triton_meta)


def _load(self, name: str, source: str, device_str: str = "cuda") -> Interpreted:
    """What ``AsyncCompile.triton`` is for: the kernel in ``source``, which has to be in a file for the interpreter."""
    from torch._inductor.codecache import PyCodeCache

    aside = {"set_sys_modules": False} if "set_sys_modules" in inspect.signature(PyCodeCache.load).parameters else {}
    return getattr(PyCodeCache.load(source, **aside), name)


@contextlib.contextmanager
def as_on_a_gpu(multiprocessors: int = 132, **options: Any) -> Iterator[None]:
    """Inductor compiles for an H100, with its own ``options``, and the interpreter runs what it makes."""
    lowering.register()
    with (
        fresh_cache(),
        inductor_config.patch({"cpu_backend": "triton", "compile_threads": 1, "force_pointwise_cat": True, **options}),
        mock.patch.object(triton_heuristics, "cached_autotune", _cached_autotune),
        mock.patch.object(async_compile.AsyncCompile, "triton", _load),
        mock.patch.object(
            triton_helpers, "libdevice", _Libdevice() if support.interpreted() else triton_helpers.libdevice
        ),
        mock.patch.object(triton_helpers, "max2", _max2 if support.interpreted() else triton_helpers.max2),
        mock.patch.object(triton.runtime.driver, "_active", _Driver()),
        mock.patch.object(support, "runs_on", lambda tensor: True),
        mock.patch.object(support, "on_gpu", lambda tensor: True),
        mock.patch.object(attention, "_multiprocessors", lambda device: multiprocessors),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def compile_for_gpu(
    program: Callable[..., Any],
    inputs: tuple[torch.Tensor, ...],
    dynamic: dict[int, list[int]] | None = None,
    run: bool = True,
) -> types.SimpleNamespace:
    """``program`` compiled inside :func:`as_on_a_gpu`: ``call`` it, and look at its ``code``.

    Args:
        dynamic: dimensions of inputs that are symbolic.
        run: False to compile only; what a call returns is then meaningless.
    """
    torch._dynamo.reset()
    for index, dims in (dynamic or {}).items():
        for dim in dims:
            torch._dynamo.mark_dynamic(inputs[index], dim)
    graphs, codes = [], []

    def backend(gm, examples):
        graphs.append(gm)
        compiled = compile_fx(gm, examples)
        outputs = [node.meta["example_value"] for node in gm.graph.output_node().args[0]]
        return compiled if run else lambda *args: [torch.empty(1, dtype=output.dtype) for output in outputs]

    with mock.patch("torch._inductor.graph.GraphLowering.save_output_code", codes.append):
        call = torch.compile(program, backend=backend, fullgraph=True)
        result = call(*inputs)
    return types.SimpleNamespace(call=call, result=result, code="\n".join(codes), count=lambda: len(graphs))


def kernels_of(code: str) -> dict[str, str]:
    """The source of each kernel in Inductor's output, by name."""
    return dict(re.findall(r"^(\w+) = async_compile\.triton\('\w+', '''\n(.*?)^'''", code, re.DOTALL | re.MULTILINE))


def outline(code: str) -> str:
    """The parts of Inductor's output that goldens show: signatures and bodies of kernels, allocations and launches.

    The functions that a template carries are left out: they are the package's own source.
    """
    parts = []
    for name, source in kernels_of(code).items():
        body = source[source.index(f"def {name}(") :]
        parts.append(body.split("\n\n\n")[0].rstrip() + "\n")
    lines = [line.strip() for line in code[code.index("    def call(self, args):") :].splitlines()]
    wanted = re.compile(r"^buf\d+ = |\.run\(|^extern_kernels|^torch\.ops|^return \(")
    parts.append("\n".join(line for line in lines if wanted.search(line)) + "\n")
    return "\n".join(parts)
