"""Undocumented API that ``internals/inductor_waiting.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._inductor.async_compile",
        names=("AsyncCompile.wait(scope)",),
        why="Where Inductor waits for the compilers of kernels: another region is compiled meanwhile.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._inductor.codecache",
        names=("LambdaFuture(result_fn, future)",),
        why="Whether a kernel is still being compiled.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._inductor.triton_bundler",
        names=("TritonBundler._entries", "TritonBundler._static_autotuners"),
        why="The kernels of the graph that waits are kept with it, not with the one that is compiled meanwhile.",
        without="Nothing compiles on a GPU.",
    ),
    Internal(
        module="torch._inductor.virtualized",
        names=("threadlocal",),
        why="What Inductor's code reads of the graph that it compiles: another graph has its own.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._functorch.config",
        names=("get_config_copy",),
        why="A region that is compiled meanwhile has the settings and so the key of one that is compiled by itself.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._inductor.config",
        names=("get_config_copy",),
        why="The same, of Inductor.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._C",
        names=("_is_any_autocast_enabled",),
        why="Under autocast no region is compiled meanwhile: AOTAutograd has switched it off there.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._guards",
        names=("TracingContext.try_get",),
        why="What AOTAutograd notes of a graph is put back after another was compiled.",
        without="Nothing compiles.",
    ),
)
