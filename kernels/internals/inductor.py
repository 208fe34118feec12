"""Inductor's compilers for graphs and C++, its options and its caches. See ``table/inductor.py``.

Importing this module does not import Inductor; its functions do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from .explicit_sizes import hidden_sizes, with_inputs
from .graphs import as_size, is_constant_size, own_symbol

#: Torch 2.11 generates C++ that does not compile where it checks an index into a dimension of symbolic size, as it does
#: for masks of transformers: the check names a variable of another scope.
_CHECKS_OF_INDICES_FAIL = torch.__version__ < "2.12"
_CHECKS_OF_INDICES = "assert_indirect_indexing"
#: Torch 2.11 defines an input number's own symbol only, where code has the symbol that it was found to be equal to.
_SYMBOLS_OF_INPUTS_FAIL = torch.__version__ < "2.12"


def compile_graph(gm: GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph from Dynamo with Inductor.

    Args:
        gm: the graph, which Inductor modifies.
        inputs: example inputs. Sizes that are no inputs are further inputs of what is compiled.
        options: options of Inductor for this graph only.
    """
    from torch._inductor.compile_fx import compile_fx

    if _SYMBOLS_OF_INPUTS_FAIL:
        inputs = list(map(_by_its_equal, inputs))
    if _CHECKS_OF_INDICES_FAIL and _on_cpu(inputs) and _has_symbols(gm):
        options = {_CHECKS_OF_INDICES: False, **options}
    hidden = hidden_sizes(gm)
    gm, inputs = with_inputs(gm, list(hidden.values())), [*inputs, *hidden.values()]
    compiled: Any = compile_fx(gm, inputs, config_patches=options)
    if not hidden:
        return compiled
    places = list(hidden)  # without the sizes, which hold what was traced
    return lambda *values: compiled(*values, *(place.value(values) for place in places))


def start_workers() -> None:
    """Start the processes in which Inductor compiles Triton kernels, if it uses any. They take seconds to be ready.

    Until they are, kernels are compiled one after the other in this process. Without a GPU nothing is started.
    """
    if torch.cuda.is_available():
        from torch._inductor.async_compile import maybe_warm_pool

        maybe_warm_pool()
        _hash_triton()


@functools.cache
def _hash_triton() -> None:
    """Hash Triton's files, as keys of compiled graphs need, in a thread: reading and hashing hold no lock of Python."""
    from torch._inductor.runtime.triton_compat import HAS_TRITON, triton_key

    if HAS_TRITON:
        threading.Thread(target=triton_key, name="innerq-triton-key", daemon=True).start()


def _on_cpu(inputs: Sequence[Any]) -> bool:
    return any(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in inputs)


def _by_its_equal(value: Any) -> Any:
    """A symbolic number that was found to be equal to another symbol, as that one; else ``value``."""
    if not isinstance(value, torch.SymInt) or own_symbol(value) in (None, value.node.expr):
        return value
    if not value.node.expr.is_Symbol:
        return value
    return as_size(value.node.expr, value)


def _has_symbols(gm: GraphModule) -> bool:
    values = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
    sizes = [size for value in values for size in (value.shape if isinstance(value, torch.Tensor) else (value,))]
    # what has become a constant is a number in a graph that was kept, which has to be compiled with the same options
    return any(isinstance(size, torch.SymInt) and not is_constant_size(size) for size in sizes)


def boxed(compiled: Callable[..., Any]) -> Callable[[list[Any]], Sequence[Any]]:
    """The result of `compile_graph` as a function that takes a list of the inputs and empties it.

    So inputs that nobody else holds are freed after their last use in the graph, not after the call. If torch's
    functions are not wrapped as expected, the result is the same, but inputs are freed later.
    """
    function: Any = getattr(compiled, "_torchdynamo_orig_callable", None)  # without torch.compiler.disable
    inner: Any = getattr(function, "__wrapped__", None)  # without AOTAutograd's star
    if getattr(inner, "_boxed_call", False) and not _holds_tensors(function):
        return inner

    def call(inputs: list[Any]) -> Sequence[Any]:
        values = tuple(inputs)
        inputs.clear()
        return compiled(*values)

    return call


def _holds_tensors(function: Any) -> bool:
    """Whether AOTAutograd's function passes tensors of the module that it was made of on, in front of the inputs."""
    names = ("named_parameters", "named_buffers")
    return any(next(iter(getattr(function, name, tuple)()), None) is not None for name in names)


#: Inductor's options for passes of the user, which expect to see a graph as a whole.
_CUSTOM_PASSES = (
    "pre_grad_custom_pass",
    "joint_custom_pre_pass",
    "joint_custom_post_pass",
    "post_grad_custom_pre_pass",
    "post_grad_custom_post_pass",
)


def custom_passes(options: dict[str, Any]) -> list[str]:
    """The names of Inductor's options, given or of the process, by which the user has passes of their own run."""
    from torch._inductor import config

    return [name for name in _CUSTOM_PASSES if options.get(name, getattr(config, name, None)) is not None]


@functools.cache
def option_names() -> frozenset[str]:
    """Names of all options of Inductor."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def mode_options() -> dict[str, dict[str, Any]]:
    """The options of Inductor for each mode of ``torch.compile``."""
    from torch._inductor import list_mode_options

    return list_mode_options()


def uses_cuda_graphs() -> bool:
    """Whether Inductor's configuration, which applies where no option is given, turns CUDA graphs on."""
    from torch._inductor import config

    return bool(config.triton.cudagraphs)


def release_cuda_graphs() -> None:
    """Release the CUDA graphs that Inductor has recorded in this process."""
    from torch._inductor.cudagraph_trees import reset_cudagraph_trees

    reset_cudagraph_trees()


@contextlib.contextmanager
def wrappers_loaded() -> Iterator[list[str]]:
    """A context that collects the paths of the wrapper modules that Inductor loads in it, in the order
    in which they are loaded: one that was compiled while another waited is loaded before it.

    Modules that this process has loaded before are included. Dynamo compiles one graph at a time, so the paths are
    those of the calling thread.
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
    """A context in which compiling a graph loads its code; AOTAutograd's cache would load it at the first call."""
    from torch._functorch import config

    return config.patch(enable_autograd_cache=False)


class _Tag(str):
    """The user's tag and ours for keys of compiled graphs.

    As part of a longer text it is the user's alone. So are keys of launch configurations that were found by timing:
    Inductor computes them in other processes, too, which do not know our tag, and would time them in every process.
    """

    users: str

    def __new__(cls, users: str, ours: str) -> _Tag:
        tag = super().__new__(cls, users + ours)
        tag.users = users
        return tag

    def __format__(self, spec: str) -> str:
        return format(self.users, spec)

    def __reduce__(self) -> tuple[Any, ...]:  # as a plain text: keys of compiled graphs are hashes of pickles
        return str, (str.__str__(self),)


def cached_under(tag: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which the keys of Inductor's and AOTAutograd's graphs contain ``tag``, after the user's own tag."""
    settings: Any = torch.compiler.config
    return settings.patch(cache_key_tag=_Tag(settings.cache_key_tag, tag))


def caches_enabled() -> bool:
    """Whether Inductor keeps compiled graphs on disk."""
    from torch._inductor import config

    return bool(config.fx_graph_cache) and not config.force_disable_caches


def cache_directory() -> str:
    """The folder in which Inductor and AOTAutograd cache compiled graphs: ``TORCHINDUCTOR_CACHE_DIR`` or a default."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def set_triton_folder() -> None:
    """Let Triton keep compiled kernels where Inductor lets it, which does so later, behind the first kernels."""
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir

    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    os.environ.setdefault("TRITON_CACHE_DIR", triton_cache_dir(device))


def settings_hash() -> str:
    """A hash of Inductor's settings."""
    from torch._inductor import config

    return config.get_hash().hex()


def vector_bits() -> int:
    """Vector width, in bits, of the CPU instruction set that Inductor compiles for; 0 if it found none."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    return isa.bit_width() if isa else 0


def compile_cpp(source: str, flags: Sequence[str]) -> ctypes.CDLL:
    """Compile C++ source to a shared library and load it. Inductor caches libraries on disk.

    Args:
        source: the whole source, which is part of the cache key, with the compiler and all flags.
        flags: compiler flags, which are placed after Inductor's own.
    """
    from torch._inductor.codecache import CppCodeCache

    # load passes its arguments on to load_async
    return CppCodeCache.load(source, "cpu", extra_flags=tuple(flags))  # pyright: ignore[reportReturnType]
