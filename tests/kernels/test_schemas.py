"""Schemas of the operators: their text, and a cache as one object among their arguments."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.kernels import ops as _ops  # noqa: F401  (defines the innerq:: operators)
from innerq_compile.kernels import schemas
from innerq_compile.kernels.cache import ENCODED, INNER_TENSORS, CacheTensors
from innerq_compile.kernels.schemas import SCHEMAS, CacheArguments, OperatorSchema, arguments_of
from tests.helpers.strategies import make_format

KEYS = CacheTensors.of(make_format("key"), {name: f"k_{name}" for name in INNER_TENSORS})
VALUES = CacheTensors.of(make_format("value"), {name: f"v_{name}" for name in ENCODED})


def test_the_text_of_a_schema():
    append, dequantize = SCHEMAS["append_one_"], SCHEMAS["dequantize"]
    assert append.text == (
        "(Tensor(a!) codes, Tensor(b!) scales, Tensor(c!) window, Tensor(d!) state,"
        " Tensor? query_profile, Tensor x, str format) -> ()"
    )
    assert dequantize.text == (
        "(Tensor codes, Tensor scales, Tensor window, Tensor state, Tensor? mean, Tensor? norm, SymInt length,"
        " str format, SymInt dropped=0) -> Tensor"
    )


def test_what_two_sides_write_to_has_names_of_its_own():
    written = [argument for argument in SCHEMAS["append_"].declared if "!" in argument]
    assert [argument.split("(")[1][0] for argument in written] == [*"abcdefgh"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_torch_reads_the_schema(name):
    arguments = getattr(torch.ops.innerq, name).default._schema.arguments
    declared = [argument.split("=")[0].split(" ")[-1] for argument in SCHEMAS[name].declared]
    assert [argument.name for argument in arguments] == declared


def values_of(schema: OperatorSchema) -> list:
    caches = iter((KEYS, VALUES))
    formats = [f"str {part.prefix}format" for part in schema.parameters if isinstance(part, CacheArguments)]
    parts = [part for part in schema.parameters if part not in formats]
    return [next(caches) if isinstance(part, CacheArguments) else f"value of {part}" for part in parts]


@pytest.mark.parametrize("name", SCHEMAS)
def test_values_and_arguments_are_inverse(name):
    schema = SCHEMAS[name]
    values = values_of(schema)
    arguments = schema.arguments(*values)
    assert len(arguments) == len(schema.declared)
    for given, found in zip(values, schema.values(arguments), strict=True):
        if isinstance(given, CacheTensors):
            (side,) = [p for p in schema.parameters if isinstance(p, CacheArguments) and p.prefix in found.codes][:1]
            assert found.format == given.format
            assert found.present() == {n: t for n, t in given.present().items() if n in side.names}
        else:
            assert found == given


def test_values_with_a_default_may_be_left_out():
    arguments = arguments_of("write_", KEYS, "x", "position")
    assert arguments[-1] == KEYS.format.spec
    cache, *others = SCHEMAS["write_"].values(arguments)
    assert others == ["x", "position"] and cache.norm == "k_norm"


def test_a_cache_without_an_optional_tensor_gives_none_in_its_place():
    assert arguments_of("dequantize", VALUES, 7) == (*VALUES, None, None, 7, VALUES.format.spec)


def test_an_operator_takes_the_tensors_that_its_schema_names(monkeypatch):
    """What is new in the list of inner tensors is an argument where a schema names it, and nowhere else."""
    monkeypatch.setattr(schemas, "INNER_TENSORS", (*ENCODED, "extra", "query_profile", "mean", "norm"))
    side = CacheArguments("k_", writes=ENCODED, reads=("extra",), optional=("extra",))
    schema = OperatorSchema("append_more_", (side, "Tensor key", "str k_format"), "()")
    assert schema.declared[4:] == ("Tensor? k_extra", "Tensor key", "str k_format")
    assert [*SCHEMAS["append_"].parameters[0].names] == [*ENCODED, "query_profile"]
