"""The kernels compile for GPUs that are not there: Ampere, Ada, Hopper and Blackwell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = """
import torch
from innerq_compile.kernels.formats import CacheFormat
from innerq_compile.kernels.triton import attention_portable, cache_append, cache_prefill, cache_rewind, offline
from innerq_compile.kernels.triton.support import mode_constants, side_constants

capability, head_dim, mode, bits = {capability}, {head_dim}, {mode!r}, {bits}
half, single, word = torch.float16, torch.float32, torch.int32
group = 16 if head_dim % 32 else 32
formats = dict(k=CacheFormat("key", bits, mode, group, 32, 96, "float16"))
formats["v"] = CacheFormat("value", bits, mode, 32, 32, 96, "float16")
codes = half if mode in ("none", "rolling") else word


def side(p):
    return {{p + "_codes": codes, p + "_scales": half, p + "_window": half, p + "_state": word,
             p + "_query_profile": None, p + "_capacity": 100}}


def strides(*names):
    return {{name: 1 if name.endswith("_d") else 1024 for name in names}}


both = dict(side("k"), **side("v"))
for p in "kv":
    both |= side_constants(formats[p], head_dim, p.upper() + "_")
writes = {{}}
for p in "kv":
    writes |= mode_constants(formats[p], p.upper() + "_")
query = strides(*(f"query_stride_{{x}}" for x in "bhnd"))
mask = strides(*(f"mask_stride_{{x}}" for x in "bhns"))
value_query = strides(*(f"value_query_stride_{{x}}" for x in "bhnd"))
for has_value_query in (False, True):
    compiled = offline.compile_for(
        attention_portable.decode_partial_portable_kernel,
        dict(both, query=half, mask=half, value_query=half, part_out=single, part_max=single, part_sum=single, H=8, G=4,
             v_first=0, v_heads=8, N=1, mask_tokens=0, dropped=3, **query, **mask, **value_query, scale=0.1,
             softcap=0.0, CAUSAL=True, SOFTCAP=True, MASK=2, VALUE_QUERY=has_value_query, PRECISION="tf32", ROWS=16,
             TOKENS=32, BY_BLOCK=True),
        capability,
    )
    assert "HMMA" in offline.sass(compiled)
new = strides(*(f"{{p}}_stride_{{x}}" for p in "kv" for x in "bhnd"))
arguments = dict(both, **writes, k_new=half, v_new=half, H=8, N=1, drop=3, ENCODE=True, WRITE=True, ROWS=1, **new)
offline.compile_for(cache_append.append_fwd_kernel, arguments, capability)
presets = dict(k=CacheFormat("key", bits, "steered", group, 32, 96, "pair8"))
presets["v"] = CacheFormat("value", bits, "anchored", 32, 32, 96, "pair8")
for p in "kv":
    arguments |= {{p + "_codes": word, p + "_scales": torch.int16}}
    arguments |= side_constants(presets[p], head_dim, p.upper() + "_")
    arguments |= mode_constants(presets[p], p.upper() + "_")
offline.compile_for(cache_append.append_fwd_kernel, arguments | dict(k_query_profile=torch.int8), capability)
offline.compile_for(
    cache_rewind.rewind_fwd_kernel, dict(both, position=torch.int64), capability, **cache_rewind.OPTIONS
)
one = side("k") | side_constants(formats["k"], head_dim) | mode_constants(formats["k"])
one = {{name.removeprefix("k_"): value for name, value in one.items()}}
arguments = dict(one, x=half, start=word, mean=single, inverse=single, H=8, S=4096, STRIDE_S=1024, NB=2, WINDOWS=10)
offline.compile_for(
    cache_prefill.prefill_fwd_kernel, arguments | strides(*(f"stride_{{x}}" for x in "bhsd")), capability
)
for preset in presets.values():
    constants, options = cache_prefill.launch_options(preset, head_dim)
    arguments |= dict(constants, codes=word, scales=torch.int16)
    arguments |= dict(mean=single if preset.is_key else None, inverse=single if preset.is_key else None)
    arguments |= side_constants(preset, head_dim) | mode_constants(preset)
    arguments |= dict(query_profile=torch.int8 if preset.uses_queries else None)
    offline.compile_for(
        cache_prefill.prefill_fwd_kernel, arguments | strides(*(f"stride_{{x}}" for x in "bhsd")), capability, **options
    )
"""


#: Capabilities of the GPUs: A100, L4 and RTX 40, H100 and H200, B200.
TARGETS = (80, 89, 90, 100)
KERNELS = ((128, "signed", 3), (64, "none", 2), (80, "hybrid", 4), (64, "rolling", 2))
#: Each target at least once, with the kernels that compile fast.
QUICK = {(64, "none", 2, 80), (64, "none", 2, 89), (128, "signed", 3, 90), (64, "none", 2, 100)}


@pytest.mark.parametrize(
    ("head_dim", "mode", "bits", "capability"),
    [
        pytest.param(*kernel, target, marks=[] if (*kernel, target) in QUICK else pytest.mark.slow)
        for kernel in KERNELS
        for target in TARGETS
    ],
)
def test_kernels_compile(head_dim, mode, bits, capability):
    program = PROGRAM.format(capability=capability, head_dim=head_dim, mode=mode, bits=bits)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [300, 33_000])  # a mask in one piece, and one in a loop
def test_kernels_of_a_step_compile(tokens):
    """Those that Inductor makes, templates among them, for every target."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.helpers.compile_step", str(tokens), *map(str, TARGETS)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
