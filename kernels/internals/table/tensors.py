"""Undocumented API that ``internals/tensors.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_CACHE = "The cache tensor cannot be imported, and with it the package."

ENTRIES = (
    Internal(
        module="torch",
        names=("Tensor._make_wrapper_subclass",),
        why="Creates the cache tensor, which has a logical shape but no memory of its own.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch._C",
        names=("_disabled_torch_function_impl",),
        why="Operations on the cache tensor go directly to __torch_dispatch__. The default __torch_function__ would "
        "convert dense results to cache tensors.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch._subclasses.fake_tensor",
        names=("FakeTensor",),
        why="Distinguishes a cache that is being traced, which has shapes only, from one that holds data.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch._dispatch.python",
        names=("enable_python_dispatcher",),
        why="Without it some operations on fake tensors make their symbolic sizes constants, as padding does, and some "
        "fail.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch.utils._mode_utils",
        names=("no_dispatch",),
        why="Fake tensors are made of tensors without data, which no mode may see.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch.utils._pytree",
        names=("tree_map_only", "tree_leaves"),
        why="Finds the tensors in the nested arguments of an operation.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch.utils._python_dispatch",
        names=("_disable_current_modes",),
        why="A storage creates one ordinary tensor that Dynamo guards on. Created in a fake mode, it would be fake.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch.utils._python_dispatch",
        names=("is_traceable_wrapper_subclass",),
        why="A graph with an input that Inductor unwraps later, such as a DTensor, is left to Inductor's CUDA graphs.",
        without="The passes cannot be imported, and with them the backend.",
    ),
    Internal(
        module="torch",
        names=("_assert_async",),
        why="Checks positions and masks on the device, where the host could check them only with a synchronization.",
        without="Operators and passes cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.variables.builder",
        names=("_dynamo_weak_dynamic_indices",),
        on_objects=True,
        why="A cache is longer at every step, and its storage larger now and then. Dynamo would specialize on the "
        "first size and compile a second time. torch._dynamo.maybe_mark_dynamic sets the same attribute, but imports "
        "Dynamo, and checks each of the tensors that are created at every step.",
        without="One more compilation for every decode graph.",
    ),
    Internal(
        module="torch._dynamo.variables.builder",
        names=("_dynamo_static_indices",),
        on_objects=True,
        why="Formats need constant numbers of heads and head_dim, even with dynamic=True and with several models. "
        "torch._dynamo.mark_static sets the same attribute.",
        without="Models that share a code object but differ in heads or head_dim have dense caches.",
    ),
    Internal(
        module="torch.storage",
        names=("UntypedStorage._cdata",),
        why="Whether two tensors share a storage, even two fake tensors, which have no addresses.",
        without="Compiling fails with an AttributeError.",
    ),
    Internal(
        module="torch._ops",
        names=("_schema", "OpOverload"),
        on_objects=True,
        why="Names, defaults and mutability of an operator's arguments.",
        without="No graph compiles, and the cache tensor supports no operation.",
    ),
)
