"""Undocumented API that ``internals/dynamo_limits.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_IMPORT = "The backend cannot be imported."
_NO_ATTRIBUTE = "Compiling fails with an AttributeError."

ENTRIES = (
    Internal(
        module="torch._dynamo.convert_frame",
        names=("exceeds_recompile_limit",),
        why="Dynamo asks it whether a function is compiled once more. It is wrapped to give each module a limit of its "
        "own, and because Dynamo's warning does not say what a limit means: new caches are dense.",
        without=_NO_IMPORT,
    ),
    Internal(
        module="torch._dynamo.convert_frame",
        names=("ConvertFrameAssert.__call__(frame, cache_entry, hooks, frame_state, skip)",),
        why="What compiles a call. It is wrapped to set the limits, and to know which call asks for them, and what is "
        "kept with a function until a reset.",
        without=_NO_IMPORT,
    ),
    Internal(
        module="torch._dynamo.convert_frame",
        names=("ConvertFrame.__call__(frame, cache_entry, hooks, frame_state, skip)",),
        why="What runs a call uncompiled in place of an error. It is wrapped, because at a limit it ends compiling of "
        "the function for all modules.",
        without=_NO_IMPORT,
    ),
    Internal(
        module="torch._dynamo.convert_frame",
        names=("_recompile_limit",),
        on_objects=True,
        versions=("2.13", "2.14", "2.15"),
        why="The limit that torch.compile was given for one call.",
        without="A module that has reached such a limit runs uncompiled, though it compiles for another call.",
    ),
    Internal(
        module="torch._dynamo.types",
        names=("ConvertFrameReturn(frame_exec_strategy, apply_to_code)",),
        why="That one call runs uncompiled.",
        without=_NO_IMPORT,
    ),
    Internal(
        module="torch._C._dynamo.eval_frame",
        names=("_FrameAction", "_FrameExecStrategy"),
        why="That what it calls runs with graphs that exist.",
        without=_NO_IMPORT,
    ),
    Internal(
        module="torch._C._dynamo.eval_frame",
        names=("_debug_get_cache_entry_list",),
        why="What was compiled for a function, by which backend.",
        without=_NO_IMPORT,
    ),
    Internal(
        module="torch._dynamo.cache_size",
        names=("_has_same_id_matched_objs",),
        why="Which of it counts for a call: what this backend has compiled does not count for others.",
        without=_NO_IMPORT,
    ),
    Internal(
        module="torch._guards",
        names=("CompileId.frame_compile_id",),
        why="How many times Dynamo began to compile a function, for all backends.",
        without=_NO_ATTRIBUTE,
    ),
    Internal(
        module="torch._dynamo.config",
        names=("recompile_limit", "accumulated_recompile_limit"),
        why="The limits. They are raised while this backend compiles.",
        without=_NO_ATTRIBUTE,
    ),
    Internal(
        module="torch.utils._config_module",
        names=("default",),
        on_objects=True,
        why="Dynamo's default of a setting, of the entries in its _config: a limit that a program has set holds.",
        without=_NO_ATTRIBUTE,
    ),
)
