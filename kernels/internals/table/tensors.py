"""Undocumented API that ``internals/tensors.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_CACHE = "The cache tensor cannot be imported: nothing of the package works."

ENTRIES = (
    Internal(
        module="torch",
        names=("Tensor._make_wrapper_subclass",),
        why="Makes a tensor with a logical shape and no memory of its own: what the cache tensor is.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch._C",
        names=("_disabled_torch_function_impl",),
        why="Operations on the cache tensor go straight to __torch_dispatch__. The default __torch_function__ would "
        "make cache tensors of dense results.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch._subclasses.fake_tensor",
        names=("FakeTensor",),
        why="Tells a cache that is being traced, which has shapes only, from one that holds data.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch.utils._pytree",
        names=("tree_map_only", "tree_leaves"),
        why="Finds the tensors in the arguments of an operation, whatever they are nested in.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch.utils._python_dispatch",
        names=("_disable_current_modes",),
        why="A storage makes one ordinary tensor that Dynamo guards on. Made under fake tensors, it would be fake.",
        without=_NO_CACHE,
    ),
    Internal(
        module="torch.utils._python_dispatch",
        names=("is_traceable_wrapper_subclass",),
        why="A graph with an input that Inductor takes apart later is not one of our recordings.",
        without="The passes cannot be imported, and with them the backend.",
    ),
    Internal(
        module="torch",
        names=("_assert_async",),
        why="Checks on the device what the host cannot know without waiting: positions, and masks that show too much.",
        without="Operators and passes cannot be imported.",
    ),
    Internal(
        module="torch._dynamo.variables.builder",
        names=("_dynamo_weak_dynamic_indices",),
        on_objects=True,
        why="A cache is longer at every step, and its storage larger now and then. Dynamo would take the first size "
        "for a constant and compile a second time. torch._dynamo.maybe_mark_dynamic writes the same attribute; it "
        "imports Dynamo, and checks its argument for each of the tensors made at every step.",
        without="One more compilation for every decode graph.",
    ),
    Internal(
        module="torch._dynamo.variables.builder",
        names=("_dynamo_static_indices",),
        on_objects=True,
        why="Formats need the number of heads and head_dim as numbers, also with dynamic=True and where another model "
        "had others. torch._dynamo.mark_static writes the same attribute.",
        without="Caches of models that differ in heads or head_dim stay dense in graphs that several models share.",
    ),
    Internal(
        module="torch.storage",
        names=("UntypedStorage._cdata",),
        why="Whether two tensors share memory, asked of fake tensors, too, which have no address.",
        without="Compiling fails with an AttributeError where aliases are looked for.",
    ),
    Internal(
        module="torch._ops",
        names=("_schema", "OpOverload"),
        on_objects=True,
        why="Names, defaults and mutability of an operator's arguments.",
        without="No graph compiles, and the cache tensor answers nothing.",
    ),
)
