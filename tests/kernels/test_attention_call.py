"""The arguments of attention stand once: the operator's are those of :class:`AttentionCall`, in its order."""

from __future__ import annotations

import dataclasses

from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.cache import ENCODED, CacheTensors
from innerq_compile.kernels.schemas import SCHEMAS, CacheArguments
from tests.helpers.strategies import make_format


def a_call(**changes) -> AttentionCall[str]:
    keys, values = (
        CacheTensors.of(make_format(role), {name: f"{role} {name}" for name in ENCODED}) for role in ("key", "value")
    )
    call = AttentionCall("query", keys, values, "mask", None, "sinks", 0.5, 2.0, True)
    return dataclasses.replace(call, **changes)


def test_fields_are_the_schema_s_values_in_order():
    parameters = [part for part in SCHEMAS["decode_attention"].parameters if not str(part).endswith("_format")]
    names = [
        part.prefix if isinstance(part, CacheArguments) else part.split(" ")[-1].split("=")[0] for part in parameters
    ]
    fields = [field.name for field in dataclasses.fields(AttentionCall)]
    assert [{"k_": "keys", "v_": "values"}.get(name, name) for name in names] == fields


def test_arguments_and_back():
    call = a_call()
    arguments = call.arguments()
    assert arguments[0] == "query" and arguments[1:9] == (*call.keys, *call.values)
    assert arguments[9:] == ("mask", None, "sinks", 0.5, 2.0, True, call.keys.format.spec, call.values.format.spec)
    assert a_call(dropped=3).arguments() == (*arguments, 3)
    assert a_call(value_query="other").arguments() == (*arguments, 0, "other")
    assert AttentionCall.of(a_call(value_query="other").arguments()).value_query == "other"
    assert a_call(value_heads=(1, 2)).arguments() == (*arguments, 0, None, (1, 2))
    assert AttentionCall.of(a_call(value_heads=(1, 2)).arguments()).value_heads == (1, 2)
    again = AttentionCall.of(arguments)
    assert again.arguments() == arguments and again.keys.format == call.keys.format


def test_map_is_of_the_tensors_that_there_are():
    upper = a_call().map(str.upper)
    assert (upper.query, upper.mask, upper.open_from, upper.sink_logits) == ("QUERY", "MASK", None, "SINKS")
    assert upper.value_heads is None and a_call(value_heads=(1, 2)).map(str.upper).value_heads == (1, 2)
    assert upper.value_query is None and a_call(value_query="other").map(str.upper).value_query == "OTHER"
    assert upper.keys.codes == "KEY CODES" and (upper.scale, upper.softcap, upper.causal) == (0.5, 2.0, True)
