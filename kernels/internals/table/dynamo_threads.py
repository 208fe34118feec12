"""Undocumented API that ``internals/dynamo_threads.py`` uses."""

from __future__ import annotations

from .entry import Internal

_EACH_ITS_OWN = "The backend cannot be imported."

ENTRIES = (
    Internal(
        module="torch._dynamo.convert_frame",
        names=("CatchErrorsWrapper.__call__", "compile_lock"),
        why="What Dynamo calls for a frame that no graph fits, and the lock that it waits for. It is wrapped, so that "
        "a thread that has waited looks again: threads that start together would compile the same graph each, and "
        "reach Dynamo's limit.",
        without=_EACH_ITS_OWN,
    ),
    Internal(
        module="torch._C._dynamo.eval_frame",
        names=("_debug_get_cache_entry_list",),
        why="What was compiled for a function by now.",
        without=_EACH_ITS_OWN,
    ),
    Internal(
        module="torch._dynamo.eval_frame",
        names=("innermost_backend",),
        why="Whether it was compiled by the same backend, with the same options.",
        without=_EACH_ITS_OWN,
    ),
    Internal(
        module="torch._dynamo.guards",
        names=("DeletedGuardManagerWrapper", "GuardManagerWrapper.check"),
        why="Whether it fits the call; and checks that are invalid from the start, under which it runs for that call.",
        without=_EACH_ITS_OWN,
    ),
    Internal(
        module="torch._dynamo.guards",
        names=("root", "diff_guard_root", "id_matched_objs"),
        on_objects=True,
        why="Checks without a root are invalid. Those whose objects no call has do not count for its limit.",
        without="Threads that have waited for others may reach Dynamo's limit of graphs.",
    ),
    Internal(
        module="torch._dynamo.types",
        names=("ConvertFrameReturn", "GuardedCode", "wrap_guarded_code"),
        why="The result for a frame: code, and the checks under which it is valid.",
        without=_EACH_ITS_OWN,
    ),
    Internal(
        module="torch._dynamo.trace_rules",
        names=("check",),
        why="Dynamo skips functions of some files at once; a call of one must not wait for a compilation.",
        without=_EACH_ITS_OWN,
    ),
    Internal(
        module="torch.utils._python_dispatch",
        names=("_get_current_dispatch_mode",),
        why="Nor one under a mode, which Dynamo skips, too.",
        without=_EACH_ITS_OWN,
    ),
    Internal(
        module="torch.fx._symbolic_trace",
        names=("is_fx_symbolic_tracing",),
        why="Dynamo asks it whether a compiled function is called by a trace. Until torch 2.13 it does not tell "
        "threads apart, and calls fail while another thread compiles.",
        without=_EACH_ITS_OWN,
    ),
)
