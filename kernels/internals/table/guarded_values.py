"""Undocumented API that ``internals/guarded_values.py`` uses."""

from __future__ import annotations

from .entry import Internal

_NO_TRACES = "Traces are not kept on disk: a new process traces its models."

ENTRIES = (
    Internal(
        module="torch._dynamo.source",
        names=(
            "AttrSource",
            "DictGetItemSource",
            "GetItemSource",
            "ListGetItemSource",
            "LocalSource",
            "NNModuleSource",
            "TupleIteratorGetItemSource",
        ),
        why="Where the values of guards come from: a trace whose values are of other kinds is not looked at closely.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._guards",
        names=("Guard", "Source"),
        why="A guard has a source and a kind.",
        without=_NO_TRACES,
    ),
    Internal(
        module="torch._C",
        names=("DisableTorchFunctionSubclass",),
        why="Reads dtypes of tensors of all classes at once.",
        without=_NO_TRACES,
    ),
)
