"""Inductor's compilers of graphs and of C++, its options and what it leaves. See ``table/inductor.py``.

Importing this module imports nothing of Inductor: its functions do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule


def compile_graph(gm: GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph of Dynamo's with Inductor.

    Args:
        gm: the graph; Inductor changes it.
        inputs: examples of its inputs.
        options: settings of Inductor, for this graph only.
    """
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(gm, inputs, config_patches=options)  # pyright: ignore[reportReturnType, reportArgumentType]


@functools.cache
def option_names() -> frozenset[str]:
    """All options of Inductor."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def mode_options() -> dict[str, dict[str, Any]]:
    """The modes of ``torch.compile`` and the options of Inductor that each stands for."""
    from torch._inductor import list_mode_options

    return list_mode_options()


def release_cuda_graphs() -> None:
    """Release the CUDA graphs that Inductor has recorded in this process."""
    from torch._inductor.cudagraph_trees import reset_cudagraph_trees

    reset_cudagraph_trees()


@contextlib.contextmanager
def wrappers_loaded() -> Iterator[list[str]]:
    """Collects the files of the wrappers of graphs that Inductor loads inside, in order.

    Those among them, too, that this process has loaded before. Dynamo compiles one graph at a time, so that a thread
    collects its own.
    """
    from torch._inductor.codecache import PyCodeCache

    cache: Any = PyCodeCache
    known, load, found = cache.__dict__["load_by_key_path"], cache.load_by_key_path, []

    def collecting(*args: Any, **kwargs: Any) -> Any:
        module = load(*args, **kwargs)
        if hasattr(module, "call"):
            found.append(str(module.__file__))
        return module

    cache.load_by_key_path = collecting
    try:
        yield found
    finally:
        cache.load_by_key_path = known


def compiled_at_once() -> contextlib.AbstractContextManager[Any]:
    """Inside, a compiled graph is loaded when it is compiled. AOTAutograd's cache loads none until it is called."""
    from torch._functorch import config

    return config.patch(enable_autograd_cache=False)


def cached_under(tag: str) -> contextlib.AbstractContextManager[Any]:
    """Inside, graphs are cached under ``tag``, too, beside what Inductor takes into account and the user's own tag."""
    settings: Any = torch.compiler.config
    return settings.patch(cache_key_tag=settings.cache_key_tag + tag)


def vector_bits() -> int:
    """Bits of a vector of the CPU's instruction set that Inductor compiles for, 0 where it found none."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    return isa.bit_width() if isa else 0


def compile_cpp(source: str, flags: Sequence[str]) -> ctypes.CDLL:
    """The library that a C++ source compiles to, from Inductor's cache if it was compiled before.

    Args:
        source: the whole source. The cache is keyed by it, by the compiler and by all flags.
        flags: of the compiler, behind Inductor's own.
    """
    from torch._inductor.codecache import CppCodeCache

    # load hands its arguments to load_async
    return CppCodeCache.load(source, "cpu", extra_flags=tuple(flags))  # pyright: ignore[reportReturnType]
