"""What a cache holds is what the method says: windows, blocks that are quantized once, padding."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQConfig, InnerQError, InnerQTensor
from innerq_compile.kernels import reference
from tests.helpers.small_caches import (
    HEAD_DIM,
    HEADS,
    ROLES,
    SMALL_WINDOWS,
    assert_equal,
    lossless,
    random_cache,
)

pytestmark = pytest.mark.usefixtures("plain_torch")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("preset", ["base", "hybrid", "int4", "lossless"])
@pytest.mark.parametrize("chunk", [1, 7, 33], ids=lambda chunk: f"by{chunk}")
def test_appending_gives_what_quantizing_in_one_piece_gives(preset, role, chunk):
    """Nothing but the key statistics depends on where the prompt ended."""
    dense = random_cache(300, dtype=torch.float16)
    tensor = InnerQTensor.from_dense(dense[:, :, :60], InnerQConfig.preset(preset, **SMALL_WINDOWS), role=role)
    for first in range(60, 300, chunk):
        tensor = torch.cat([tensor, dense[:, :, first : first + chunk]], dim=2)
    inner, fmt = tensor.inner_tensors(), tensor.format
    mean, norm = inner.get("mean"), inner.get("norm")
    expected = reference.prefill(dense, torch.zeros(2, dtype=torch.int32), mean, norm, inner["codes"].shape[2], fmt)
    assert_equal(tensor, reference.dequantize(expected, 300))


@pytest.mark.parametrize("prompt", [1, 3, 20, 130], ids=lambda n: f"prompt{n}")
def test_windows_are_held_and_a_token_is_quantized_once(prompt):
    sink, recent = 4, 8
    dense = random_cache(200)
    config = InnerQConfig.preset("base", sink=sink, recent=recent)
    tensor = InnerQTensor.from_dense(dense[:, :, :prompt], config, role="value")
    before = tensor.dequantize()
    for length in range(prompt + 1, 201):
        tensor = torch.cat([tensor, dense[:, :, length - 1 : length]], dim=2)
        now = tensor.dequantize()
        exact = (now == dense[:, :, :length]).all(-1).all(1).all(0)
        assert exact[:sink].all() and exact[-recent:].all()
        assert int((~exact).sum()) == max(length - sink - recent, 0) // 32 * 32
        changed = (now[:, :, : length - 1] != before).any(-1).any(1).any(0)
        assert not changed[~(before == dense[:, :, : length - 1]).all(-1).all(1).all(0)].any()
        before = now


@pytest.mark.parametrize("role", ROLES)
def test_left_padding_is_dropped_and_sinks_are_the_first_real_tokens(role):
    padding = [0, 37, 90]
    dense = random_cache(150, batch=3)
    config = InnerQConfig.preset("base", **SMALL_WINDOWS, centre_keys=False, normalize_keys=False)
    tensor = InnerQTensor.from_dense(dense, config, role=role, start=torch.tensor(padding))
    new = random_cache(40, batch=3)
    tensor = torch.cat([tensor, new], dim=2)
    read, whole = tensor.dequantize(), torch.cat([dense, new], dim=2)
    for row, count in enumerate(padding):
        assert not read[row, :, :count].any()
        assert_equal(read[row, :, count : count + 4], whole[row, :, count : count + 4])
        # the same as the sequence alone, without padding
        alone = InnerQTensor.from_dense(dense[row : row + 1, :, count:], config, role=role)
        alone = torch.cat([alone, new[row : row + 1]], dim=2)
        assert_equal(read[row : row + 1, :, count:], alone.dequantize())


def test_cropping_into_the_padding():
    dense = random_cache(8)
    dense[0, :, :5] = 0
    tensor = lossless(dense, start=torch.tensor([5, 0]))[:, :, :3]
    new = random_cache(2)
    assert_equal(torch.cat([tensor, new], dim=2), torch.cat([dense[:, :, :3], new], dim=2))


@pytest.mark.parametrize("role", ROLES)
def test_a_cache_may_begin_empty(role):
    dense = random_cache(100)
    tensor = lossless(dense[:, :, :0], role)
    assert tensor.shape == (2, HEADS, 0, HEAD_DIM) and tensor.numel() == 0
    assert_equal(torch.cat([tensor, dense], dim=2), dense)
    assert InnerQTensor.from_dense(dense[:, :, :0], "base", role=role).dequantize().shape == tensor.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"role": "both"}, "role='both' is not allowed.*'key' or 'value'"),
        ({"config": "huge"}, "preset='huge' is unknown: allowed are base"),
        ({"config": None}, "preset=None is unknown"),
        ({"dense": torch.zeros(2, 3, 16)}, r"\[B, H, S, D\], .* got \(2, 3, 16\)"),
        ({"tokens_dim": 0}, "tokens_dim=0 is not allowed: it has to be 2"),
        ({"dense": torch.zeros(1, 1, 3, 16, dtype=torch.int32)}, "int32 cannot be quantized"),
        ({"dense": torch.zeros(1, 1, 3, 600)}, "head_dim 600 cannot be quantized"),
        ({"start": torch.tensor([1])}, r"start=tensor\(\[1\]\) is not allowed.*shape \[2\]"),
        ({"start": torch.tensor([1, 11])}, "0 to 10"),
        ({"start": torch.tensor([-1, 1])}, "0 to 10"),
        ({"start": torch.tensor([0.5, 1])}, "integer tensor"),
        ({"start": [0, 1]}, "integer tensor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_from_dense_refuses(arguments, message):
    arguments = {"dense": torch.zeros(2, 1, 10, 16), "config": "base", "role": "key", **arguments}
    with pytest.raises(InnerQError, match=message):
        InnerQTensor.from_dense(arguments.pop("dense"), arguments.pop("config"), **arguments)
