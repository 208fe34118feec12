"""The schemas of the operators ``innerq::*``, and how a cache is passed to them.

Arguments of operators are tensors, numbers and strings. So an operator takes the inner tensors of a cache one by one,
and its format as a string. Code that calls or implements an operator has one object for a cache, :class:`CacheTensors`:

    append_(k_codes, k_scales, k_window, k_state, v_codes, ..., key, value, 'key:3:...', 'value:3:...')    the operator
    append_(keys, values, key, value)                                                                      its values

:class:`OperatorSchema` converts between the two, by the list of inner tensors in ``kernels/cache.py``. Only
:data:`SCHEMAS` says which of them an operator takes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cache import ENCODED, INNER_TENSORS, STATISTICS, CacheTensors
from .formats import CacheFormat


@dataclasses.dataclass(frozen=True)
class CacheArguments:
    """One side of a cache among the arguments of an operator.

    Attributes:
        prefix: prefix of the names of its arguments; its format is the argument ``<prefix>format``.
        reads: names of the inner tensors that the operator only reads.
        writes: names of those that it writes.
        optional: names of those that a cache may not have.
    """

    prefix: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inner tensors that are arguments, in order."""
        return tuple(name for name in INNER_TENSORS if name in self.reads or name in self.writes)

    @property
    def format(self) -> str:
        """The declaration of the argument that holds the format."""
        return f"str {self.prefix}format"

    def declared(self, aliases: Iterator[str]) -> Iterator[str]:
        """The declarations of the tensors. Those that are written take letters from ``aliases``."""
        for name in self.names:
            written = f"({next(aliases)}!)" if name in self.writes else ""
            yield f"Tensor{written}{'?' * (name in self.optional)} {self.prefix}{name}"


@dataclasses.dataclass(frozen=True)
class OperatorSchema:
    """The schema of an operator.

    Attributes:
        name: the name of the operator, without namespace.
        parameters: declarations as in a schema, and a :class:`CacheArguments` for each side of a cache.
        returns: the declaration of the results.
    """

    name: str
    parameters: tuple[str | CacheArguments, ...]
    returns: str

    @functools.cached_property
    def declared(self) -> tuple[str, ...]:
        """The declarations of all arguments, in order."""
        aliases = iter(string.ascii_lowercase)
        parts = ((part,) if isinstance(part, str) else part.declared(aliases) for part in self.parameters)
        return tuple(itertools.chain(*parts))

    @property
    def text(self) -> str:
        """The schema in torch's syntax, such as ``(Tensor x, str format) -> Tensor``."""
        return f"({', '.join(self.declared)}) -> {self.returns}"

    @functools.cached_property
    def _formats(self) -> tuple[str, ...]:
        """Declarations of the arguments that hold formats, which are part of the values of caches."""
        return tuple(part.format for part in self.parameters if isinstance(part, CacheArguments))

    def arguments(self, *values: Any) -> tuple[Any, ...]:
        """Convert ``values``, with a :class:`CacheTensors` for each side and without formats, to arguments.

        Values at the end may be omitted if the schema has defaults for them.
        """
        given = iter(values)
        specs: dict[str, str] = {}
        arguments: list[Any] = []
        for part in self.parameters:
            if isinstance(part, CacheArguments):
                cache: CacheTensors[Any] = next(given)
                specs[part.format] = cache.format.spec
                arguments += [getattr(cache, name) for name in part.names]
            elif part in self._formats:
                arguments.append(specs[part])
            else:
                arguments += itertools.islice(given, 1)
        return tuple(arguments)

    def values(self, arguments: Sequence[Any]) -> list[Any]:
        """Convert arguments to values: the inverse of :meth:`arguments`."""
        values: list[Any] = []
        for first, end, cache_of in self._steps:
            if cache_of is None:
                values += arguments[first:end]
            else:
                values.append(cache_of(arguments))
        return values

    @functools.cached_property
    def _steps(self) -> list[tuple[int, int, Callable[[Sequence[Any]], CacheTensors[Any]] | None]]:
        """How :meth:`values` goes through the arguments: runs of those that are values, and what makes a cache."""
        steps: list[tuple[int, int, Callable[[Sequence[Any]], CacheTensors[Any]] | None]] = []
        index = 0
        for part in self.parameters:
            first = index
            if isinstance(part, CacheArguments):
                index += len(part.names)
                steps.append((first, index, _cache_taker(part.names, first, self.declared.index(part.format))))
                continue
            index += 1
            if part in self._formats:
                continue
            if steps and steps[-1][1] == first and steps[-1][2] is None:
                first = steps.pop()[0]
            steps.append((first, index, None))
        return steps


def _cache_taker(names: tuple[str, ...], first: int, at_format: int) -> Callable[[Sequence[Any]], CacheTensors[Any]]:
    """A function of all arguments that returns a cache. It runs once per operator, layer and step, so it is fast."""
    end, parse = first + len(names), CacheFormat.parse
    if names == INNER_TENSORS[: len(names)]:
        return lambda arguments: CacheTensors(parse(arguments[at_format]), *arguments[first:end])

    def take(arguments: Sequence[Any]) -> CacheTensors[Any]:
        return CacheTensors.of(parse(arguments[at_format]), dict(zip(names, arguments[first:end], strict=True)))

    return take


_KEY_STATISTICS = ("mean", "norm")
#: What encoders read; only keys meet queries.
_PROFILE = ("query_profile",)
_BOTH_WRITTEN = (CacheArguments("k_", writes=ENCODED), CacheArguments("v_", writes=ENCODED))
_BOTH_APPENDED = (
    CacheArguments("k_", writes=ENCODED, reads=_PROFILE, optional=_PROFILE),
    CacheArguments("v_", writes=ENCODED),
)
_BOTH_READ = (CacheArguments("k_", reads=ENCODED), CacheArguments("v_", reads=ENCODED))
_BOTH_FORMATS = ("str k_format", "str v_format")
_ATTENTION = (
    *("Tensor query", *_BOTH_READ, "Tensor? mask", "Tensor? open_from", "Tensor? sink_logits"),
    *("float scale", "float softcap", "bool causal", *_BOTH_FORMATS, "SymInt dropped=0"),
    *("Tensor? value_query=None", "int[]? value_heads=None"),
)

#: All operators by name.
SCHEMAS = {
    schema.name: schema
    for schema in (
        OperatorSchema("query_moments", ("Tensor? query", "Tensor keys", "Tensor start"), "Tensor"),
        OperatorSchema("norm_divisor", ("Tensor moments", "str norm"), "Tensor"),
        OperatorSchema("query_profile", ("Tensor moments", "Tensor? norm", "int group_size"), "Tensor"),
        OperatorSchema(
            "key_statistics",
            (
                *("Tensor keys", "Tensor start", "bool centre", "bool normalize"),
                *("str norm='channel'", "Tensor? divisor=None"),
            ),
            "(Tensor, Tensor)",
        ),
        OperatorSchema(
            "prefill",
            (
                *("Tensor x", "Tensor start", "Tensor? mean", "Tensor? norm", "SymInt capacity", "str format"),
                "Tensor? query_profile=None",
            ),
            f"({', '.join('Tensor' for _ in ENCODED)})",
        ),
        OperatorSchema(
            "causal_attention",
            (
                *("Tensor query", "Tensor key", "Tensor value", "Tensor? shown", "Tensor? all_shown"),
                *("int? window", "Tensor? sink_logits", "float scale"),
            ),
            "Tensor",
        ),
        OperatorSchema(
            "append_", (*_BOTH_APPENDED, "Tensor key", "Tensor value", *_BOTH_FORMATS, "SymInt drop=0"), "()"
        ),
        OperatorSchema(
            "append_one_",
            (CacheArguments(writes=ENCODED, reads=_PROFILE, optional=_PROFILE), "Tensor x", "str format"),
            "()",
        ),
        OperatorSchema("truncate_", (CacheArguments(writes=ENCODED), "SymInt length", "str format"), "()"),
        OperatorSchema("rewind_", (*_BOTH_WRITTEN, "Tensor position", *_BOTH_FORMATS), "()"),
        OperatorSchema(
            "write_",
            (
                CacheArguments(writes=INNER_TENSORS, optional=STATISTICS),
                *("Tensor x", "Tensor position", "str format", "Tensor? moments=None"),
            ),
            "()",
        ),
        OperatorSchema("open_from", ("Tensor mask", "Tensor state", "SymInt rows"), "Tensor"),
        OperatorSchema("decode_attention", _ATTENTION, "Tensor"),
        OperatorSchema("decode_attention_lse", _ATTENTION, "(Tensor, Tensor)"),
        OperatorSchema("row_linear", ("Tensor x", "Tensor[] weights", "Tensor?[] biases"), "Tensor"),
        OperatorSchema(
            "dequantize",
            (
                CacheArguments(reads=(*ENCODED, *_KEY_STATISTICS), optional=_KEY_STATISTICS),
                *("SymInt length", "str format", "SymInt dropped=0"),
            ),
            "Tensor",
        ),
    )
}


def arguments_of(name: str, *values: Any) -> tuple[Any, ...]:
    """The arguments of a call of the operator ``name`` with these values, see :meth:`OperatorSchema.arguments`."""
    return SCHEMAS[name].arguments(*values)
