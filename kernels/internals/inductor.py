"""Inductor's compilers of graphs and of C++, its options, caches and output. See ``table/inductor.py``.

Importing this module does not import Inductor; calling its functions does.
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
    """Compile a graph with Inductor.

    Args:
        gm: the graph; Inductor changes it.
        inputs: examples of its inputs.
        options: options of Inductor for this graph only.
    """
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(gm, inputs, config_patches=options)  # pyright: ignore[reportReturnType, reportArgumentType]


@functools.cache
def option_names() -> frozenset[str]:
    """The names of all options of Inductor."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def mode_options() -> dict[str, dict[str, Any]]:
    """The options of Inductor that each mode of ``torch.compile`` sets."""
    from torch._inductor import list_mode_options

    return list_mode_options()


def release_cuda_graphs() -> None:
    """Release the CUDA graphs that Inductor has recorded in this process."""
    from torch._inductor.cudagraph_trees import reset_cudagraph_trees

    reset_cudagraph_trees()


@contextlib.contextmanager
def wrappers_loaded() -> Iterator[list[str]]:
    """Context that collects the files of the graph wrappers that Inductor loads inside, in order.

    Files that this process has loaded before are included. Dynamo compiles one graph at a time, so a thread collects
    only its own.
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
    """Context in which graphs are loaded when compiled, not, as with AOTAutograd's cache, at their first call."""
    from torch._functorch import config

    return config.patch(enable_autograd_cache=False)


def cached_under(tag: str) -> contextlib.AbstractContextManager[Any]:
    """Context in which ``tag`` is part of the key of Inductor's and AOTAutograd's caches."""
    settings: Any = torch.compiler.config
    return settings.patch(cache_key_tag=settings.cache_key_tag + tag)


def vector_bits() -> int:
    """The vector width in bits of the CPU instruction set that Inductor compiles for; 0 if it found none."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    return isa.bit_width() if isa else 0


def compile_cpp(source: str, flags: Sequence[str]) -> ctypes.CDLL:
    """Compile a C++ source to a library, or load it from Inductor's cache.

    Args:
        source: the whole source. The cache is keyed by it, the compiler and all flags.
        flags: compiler flags, added after those of Inductor.
    """
    from torch._inductor.codecache import CppCodeCache

    # load passes its arguments on to load_async
    return CppCodeCache.load(source, "cpu", extra_flags=tuple(flags))  # pyright: ignore[reportReturnType]
