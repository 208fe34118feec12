"""InnerQConfig: what it accepts, what it says about what it does not, and the formats that it gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from innerq_compile import PRESETS, InnerQConfig, InnerQError
from innerq_compile.kernels.channels import held_head_dim
from innerq_compile.kernels.formats import (
    DTYPES,
    GROUP_SIZES,
    MAX_HEAD_DIM,
    ROLES,
    CacheFormat,
    FormatError,
)
from innerq_compile.kernels.modes import named, names_of
from innerq_compile.kernels.scale_types import SCALE_TYPES

FIELDS = [field.name for field in dataclasses.fields(InnerQConfig)]


def fitting(scale_dtype, *modes) -> bool:
    return any(scale_dtype in named(mode).scale_types for mode in modes)


configs = st.builds(
    lambda scale_dtype, **fields: InnerQConfig(
        scale_dtype=scale_dtype if fitting(scale_dtype, fields["key_mode"], fields["value_mode"]) else None, **fields
    ),
    key_bits=st.integers(2, 8),
    value_bits=st.integers(2, 8),
    key_mode=st.sampled_from(names_of("key")),
    value_mode=st.sampled_from(names_of("value")),
    group_size=st.sampled_from([None, *GROUP_SIZES]),
    sink=st.integers(0, 200),
    recent=st.integers(0, 200),
    centre_keys=st.booleans(),
    normalize_keys=st.booleans(),
    scale_dtype=st.sampled_from([None, *SCALE_TYPES]),
    strict=st.booleans(),
)


# --- wrong values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        *[("key_bits", value, "a whole number from 2 to 8") for value in (1, 9, 0, -3, 3.0, "3", True, None)],
        ("value_bits", 16, "a whole number from 2 to 8"),
        *[("key_mode", value, ", ".join(names_of("key"))) for value in ("int8", None, 3, [], "anchored")],
        ("value_mode", "Signed", ", ".join(names_of("value"))),
        *[("group_size", value, "None or one of 16, 32, 64, 128") for value in (0, 8, 48, 256, -16, 16.0, "32", True)],
        *[("sink", value, "a whole number, 0 or more") for value in (-1, 1.5, None, False)],
        ("recent", -96, "a whole number, 0 or more"),
        *[(name, 1, "True or False") for name in ("centre_keys", "normalize_keys", "strict")],
        *[("scale_dtype", value, "None or one of float16") for value in ("half", torch.float16, [], 16)],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value, allowed):
    for make in (lambda: InnerQConfig(**{field: value}), lambda: InnerQConfig.preset("small", **{field: value})):
        with pytest.raises(InnerQError) as error:
            make()
        assert str(error.value).startswith(f"{field}={value!r} is not allowed: it has to be ")
        assert allowed in str(error.value)


@pytest.mark.parametrize(
    ("scale_dtype", "mode", "allowed"),
    [("pair8", "signed", "float8_e5m2"), ("float8_e5m2", "hybrid", "pair8"), ("pair8", "none", "float8_e5m2")],
)
def test_a_scale_dtype_that_goes_with_neither_side(scale_dtype, mode, allowed):
    match = f"scale_dtype='{scale_dtype}' is not allowed: .*float32, {allowed}, which go with modes {mode} of keys"
    with pytest.raises(InnerQError, match=match):
        InnerQConfig(key_mode=mode, value_mode=mode, scale_dtype=scale_dtype)


def test_a_scale_dtype_is_that_of_the_side_it_goes_with():
    config = InnerQConfig(key_mode="signed", value_mode="hybrid", scale_dtype="pair8")
    assert config.format_for("value", 64, torch.bfloat16).scale_dtype == "pair8"
    assert config.format_for("key", 64, torch.bfloat16).scale_dtype == "bfloat16"


@pytest.mark.parametrize("name", ["huge", "", "Base", None, 3, ["base"]], ids=repr)
def test_an_unknown_preset_is_named_with_all_presets(name):
    with pytest.raises(InnerQError) as error:
        InnerQConfig.preset(name)
    assert str(error.value) == f"preset={name!r} is unknown: allowed are {', '.join(PRESETS)}"


@pytest.mark.parametrize("make", [InnerQConfig.preset, InnerQConfig.from_options], ids=["preset", "from_options"])
def test_an_unknown_option_is_named_with_all_options(make):
    with pytest.raises(InnerQError, match="option 'key_bit' is unknown: allowed are preset, key_bits, ") as error:
        make("base", key_bit=3) if make is InnerQConfig.preset else make({"key_bit": 3, 7: 1})
    assert all(name in str(error.value) for name in FIELDS)


def test_errors_are_value_errors():
    with pytest.raises(ValueError, match="key_bits=1"):
        InnerQConfig(key_bits=1)


# --- presets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "keys", "values"),
    [
        ("base", (3, "steered"), (3, "anchored")),
        ("small", (3, "steered"), (2, "anchored")),
        ("hybrid", (3, "steered"), (2, "anchored")),
        ("int4", (4, "steered"), (4, "anchored")),
        ("tiny", (2, "steered"), (2, "anchored")),
        ("paper_base", (3, "symmetric"), (3, "symmetric")),
        ("paper_small", (3, "symmetric"), (2, "symmetric")),
        ("paper_hybrid", (3, "symmetric"), (2, "paper_hybrid")),
        ("lossless", (8, "none"), (8, "none")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_presets(preset, keys, values):
    config = InnerQConfig.preset(preset)
    assert (config.key_bits, config.key_mode) == keys
    assert (config.value_bits, config.value_mode) == values
    assert (config.sink, config.recent, config.group_size, config.strict) == (32, 96, None, False)
    paper = preset.startswith("paper_")
    assert config.normalize_keys == config.has_key_statistics == (preset != "lossless")
    assert config.centre_keys == (preset != "lossless" and not paper)
    assert config.key_norm == ("paper" if paper else "channel")


def test_every_preset_is_tested():
    papers = {"paper_base", "paper_small", "paper_hybrid"}
    assert set(PRESETS) == {"base", "small", "hybrid", "int4", "tiny", "lossless"} | papers


def test_the_default_is_base():
    assert InnerQConfig() == InnerQConfig.preset("base") == InnerQConfig.from_options({})


def test_a_preset_with_changes():
    config = InnerQConfig.preset("small", recent=128, value_bits=4)
    assert config == dataclasses.replace(InnerQConfig.preset("small"), recent=128, value_bits=4)
    assert config == InnerQConfig.from_options({"value_bits": 4, "preset": "small", "recent": 128})


@given(configs)
def test_options_make_the_config_again(config):
    assert InnerQConfig.from_options(dataclasses.asdict(config)) == config


def test_frozen_and_hashable():
    config = InnerQConfig.preset("base")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.key_bits = 4
    assert {config: 1}[InnerQConfig()] == 1
    assert len({InnerQConfig.preset(name) for name in PRESETS}) == len(PRESETS) - 1  # hybrid is small


# --- formats ------------------------------------------------------------------------------------------------------


@given(
    configs,
    st.sampled_from(["key", "value"]),
    st.integers(1, MAX_HEAD_DIM),
    st.sampled_from(DTYPES),
)
def test_a_format_carries_the_fields_of_its_side(config, role, head_dim, dtype):
    held = held_head_dim(head_dim, quantized=(config.key_mode if role == "key" else config.value_mode) != "none")
    group_size = config.group_size or (16 if role == "key" and held % 32 else 32)
    if role == "key" and held > head_dim:
        held = min((held + group_size - 1) // group_size * group_size, MAX_HEAD_DIM)
    if role == "key" and held % group_size:
        with pytest.raises(InnerQError, match=f"group_size={group_size} does not divide head_dim {head_dim}"):
            config.format_for(role, head_dim, dtype)
        return
    fmt = config.format_for(role, head_dim, dtype)
    mode = config.key_mode if role == "key" else config.value_mode
    if mode == "anchored" and config.scale_dtype in (None, "pair8", "float8_e5m2") and config.value_bits > 5:
        mode = "hybrid"
    wide = "pair8" if "pair8" in named(mode).scale_types else "float16" if dtype == torch.float16 else "bfloat16"
    assert fmt == CacheFormat(
        role=role,
        bits=config.key_bits if role == "key" else config.value_bits,
        mode=mode,
        group_size=group_size,
        sink=config.sink,
        recent=config.recent,
        scale_dtype=config.scale_dtype if config.scale_dtype in fmt.quantization.scale_types else wide,
        norm="paper" if role == "key" and config.normalize_keys and config.key_norm == "paper" else "channel",
        zeros=held - head_dim,
    )
    assert CacheFormat.parse(fmt.spec) == fmt


@pytest.mark.parametrize(
    ("bits", "scale_dtype", "mode"), [(5, None, "anchored"), (6, None, "hybrid"), (8, "float16", "anchored")]
)
def test_values_are_anchored_where_words_have_room_for_it(bits, scale_dtype, mode):
    config = InnerQConfig(value_bits=bits, scale_dtype=scale_dtype)
    assert config.format_for("value", 64, torch.float16).mode == mode


@pytest.mark.parametrize(
    "spec", ["key:3:anchored:32:32:96:pair8", "value:3:Hybrid:32:32:96:pair8", "k:3:none:32:0:0:x"]
)
def test_a_spec_with_a_mode_that_its_side_has_not(spec):
    with pytest.raises(FormatError, match=r"is no cache format: (modes of a |it has to begin with key or value)"):
        CacheFormat.parse(spec)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_take_every_head_dim(preset):
    config = InnerQConfig.preset(preset)
    for head_dim in range(1, MAX_HEAD_DIM + 1):
        key, value = (config.format_for(role, head_dim, torch.float16) for role in ("key", "value"))
        assert key.group_size == (16 if (head_dim + key.zeros) % 32 else 32) and value.group_size == 32
        for fmt in (key, value):
            assert (head_dim + fmt.zeros) % 16 == 0 and CacheFormat.parse(fmt.spec) == fmt


@pytest.mark.parametrize("preset", PRESETS)
def test_formats_of_head_dims_that_are_held_as_they_are_do_not_name_zeros(preset):
    config = InnerQConfig.preset(preset)
    for head_dim in range(16, 577, 16):
        for role in ("key", "value"):
            assert config.format_for(role, head_dim, torch.float16).spec.endswith(("pair8", "float16", "paper"))


def test_a_format_names_its_zeros_behind_its_norm():
    fmt = InnerQConfig().format_for("key", 100, torch.float16)
    assert fmt.spec == "key:3:steered:32:32:96:pair8:channel:28"
    paired = dataclasses.replace(fmt, norm="half100")
    assert paired.spec.endswith(":half100:28") and CacheFormat.parse(paired.spec) == paired


@pytest.mark.parametrize("head_dim", [0, 577])
@pytest.mark.parametrize("role", ["key", "value"])
def test_a_head_dim_that_is_not_allowed(role, head_dim):
    with pytest.raises(InnerQError, match=f"{role} cache of head_dim {head_dim} .*allowed are 1 to 576"):
        InnerQConfig().format_for(role, head_dim, torch.float16)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64], ids=str)
def test_a_dtype_that_is_not_allowed(dtype):
    with pytest.raises(
        InnerQError, match=f"{dtype} .*allowed are float16, bfloat16, float32, float64; compile this model"
    ):
        InnerQConfig().format_for("key", 64, dtype)


@pytest.mark.parametrize(
    ("group_size", "head_dim", "allowed"), [(64, 96, "16, 32"), (128, 64, "16, 32, 64"), (32, 80, "16")]
)
def test_a_group_size_that_does_not_divide_names_those_that_do(group_size, head_dim, allowed):
    config = InnerQConfig(group_size=group_size)
    with pytest.raises(InnerQError, match=f"does not divide head_dim {head_dim}: allowed here are {allowed}; leave"):
        config.format_for("key", head_dim, torch.float16)
    assert config.format_for("value", head_dim, torch.float16).group_size == group_size


def test_a_group_size_has_to_divide_the_head_dim_as_it_is_held():
    assert InnerQConfig(group_size=128).format_for("key", 100, torch.float16).zeros == 28
    assert InnerQConfig(group_size=32).format_for("key", 40, torch.float16).zeros == 24
    with pytest.raises(
        InnerQError, match="does not divide head_dim 570, which is held as 576: allowed here are 16, 32, 64"
    ):
        InnerQConfig(group_size=128).format_for("key", 570, torch.float16)


def test_formats_of_latent_attention():
    """The latent serves keys and values, so it has the finer format of both; the rotary key has 8 bits."""
    base, small, lossless = map(InnerQConfig.preset, ("base", "small", "lossless"))
    assert base.format_for("key", 64, torch.float16, latent=True).spec == "key:8:hybrid:32:32:96:pair8"
    assert base.format_for("value", 512, torch.float16, latent=True) == base.format_for("value", 512, torch.float16)
    assert small.format_for("value", 512, torch.float16, latent=True).bits == 3
    for config in (lossless, InnerQConfig(key_mode="none")):
        for role in ROLES:
            assert config.format_for(role, 64, torch.float16, latent=True).mode == "none"
