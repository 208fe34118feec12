"""What eager programs do with an InnerQTensor: what keeps it quantized, what makes it dense, what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from innerq_compile import InnerQConfig, InnerQError, InnerQTensor, UnsupportedOperation
from innerq_compile.kernels import reference
from tests.helpers.programs import TinyAttention
from tests.helpers.small_caches import (
    COPIES,
    HEAD_DIM,
    HEADS,
    SMALL_WINDOWS,
    assert_equal,
    lossless,
    random_cache,
    saved_and_loaded,
    swapped,
)

pytestmark = pytest.mark.usefixtures("plain_torch")


@pytest.fixture(params=["base-key", "base-value", "lossless-key"])
def cache(request) -> InnerQTensor:
    preset, role = request.param.split("-")
    return InnerQTensor.from_dense(random_cache(90), InnerQConfig.preset(preset, **SMALL_WINDOWS), role=role)


#: Keys are held centred and normalized, which rounds them.
ROUNDING = 1e-5


STAYS_QUANTIZED = {
    "[:, :, 5:]": lambda t: t[:, :, 5:],
    "[:, :, -8:]": lambda t: t[:, :, -8:],
    "[:, :, 5:60]": lambda t: t[:, :, 5:60],
    "split": lambda t: t.split([20, 30, t.shape[2] - 50], 2)[1],
    "torch.split": lambda t: torch.split(t, 40, -2)[-1],
    "split along the batch": lambda t: t.split(1)[1],
    "chunk": lambda t: t.chunk(3, 2)[1],
    "torch.chunk": lambda t: torch.chunk(t, 3, 2)[2],
    "narrow from the middle": lambda t: t.narrow(2, -40, 30),
    "repeat_interleave(n, dim=0)": lambda t: t.repeat_interleave(3, dim=0),
    "repeat_interleave(n, -4)": lambda t: t.repeat_interleave(2, -4),
    "repeat_interleave(tensor)": lambda t: t.repeat_interleave(torch.tensor([2, 1]), dim=0),
    "torch.repeat_interleave(tensor)": lambda t: torch.repeat_interleave(t, torch.tensor([0, 2]), dim=0),
    "index_select": lambda t: torch.index_select(t, 0, torch.tensor([1, 1, 0])),
    "[ints]": lambda t: t[torch.tensor([-1, 0])],
    "[list]": lambda t: t[[1, 0]],
    "[mask]": lambda t: t[torch.tensor([False, True])],
    "[ints, ...]": lambda t: t[torch.tensor([1]), ...],
    "[0:1]": lambda t: t[0:1],
    "[:1, :, :5]": lambda t: t[:1, :, :5],
    "[1:1]": lambda t: t[1:1],
    "[:, :, :0]": lambda t: t[:, :, :0],
    "[:, :, :1000]": lambda t: t[:, :, :1000],
    "[..., :-1000, :]": lambda t: t[..., :-1000, :],
    "[...]": lambda t: t[...],
    "narrow(0)": lambda t: t.narrow(0, 1, 1),
    "clone(contiguous)": lambda t: t.clone(memory_format=torch.contiguous_format),
    "data": lambda t: t.data,
    "cpu": lambda t: t.cpu(),
    "cat one": lambda t: torch.cat([t], dim=2),
    "cat empty": lambda t: torch.cat([t, t.new_zeros(2, HEADS, 0, HEAD_DIM)], dim=2),
    "cat legacy empty": lambda t: torch.cat([torch.tensor([]), t], dim=-2),
    "concat": lambda t: torch.concat([t, torch.zeros(2, HEADS, 3, HEAD_DIM)], dim=2),
}


@pytest.mark.parametrize("name", STAYS_QUANTIZED)
def test_stays_quantized(cache, name):
    expected = STAYS_QUANTIZED[name](cache.dequantize())
    result = STAYS_QUANTIZED[name](cache)
    assert isinstance(result, InnerQTensor)
    assert_equal(result, expected, atol=ROUNDING)


STAYS_QUANTIZED_BSHD = {
    "[:, 5:]": lambda t: t[:, 5:],
    "repeat_interleave": lambda t: t.repeat_interleave(2, dim=0),
    "index_select": lambda t: t.index_select(0, torch.tensor([1, 1, 0])),
    "[mask]": lambda t: t[torch.tensor([False, True])],
    "[:1, :5]": lambda t: t[:1, :5],
    "[:, :-3]": lambda t: t[:, :-3],
    "[:, :1000]": lambda t: t[:, :1000],
    "narrow": lambda t: t.narrow(1, 0, 40),
    "clone": lambda t: t.clone(),
    "deepcopy": copy.deepcopy,
    "save": saved_and_loaded,
    "to": lambda t: t.to(torch.float32, copy=True),
    "cat": lambda t: torch.cat([t, torch.ones(2, 3, HEADS, HEAD_DIM)], dim=1),
    "cat(-3) of two": lambda t: torch.cat([t, torch.ones(2, 1, HEADS, HEAD_DIM), torch.zeros(2, 5, 2, 16)], dim=-3),
    "cat legacy empty": lambda t: torch.cat([torch.tensor([]), t], dim=1),
    "cat itself": lambda t: torch.cat([t, t[:, :7]], dim=1),
}
BECOMES_DENSE_BSHD = {
    "transpose": lambda t: t.transpose(1, 2),
    "view": lambda t: t.view(2, 90, HEADS * HEAD_DIM),  # the dense tensor is contiguous, as the cache says that it is
    "[:, :, :1]": lambda t: t[:, :, :1],
    "[:, -1]": lambda t: t[:, -1],
    "narrow(2)": lambda t: t.narrow(2, 0, 1),
    "cat heads": lambda t: torch.cat([t, torch.ones(2, 90, 3, HEAD_DIM)], dim=2),
    "einsum": lambda t: torch.einsum("bhqk,bkhd->bqhd", torch.ones(2, HEADS, 3, 90), t),
}


@pytest.fixture
def cache_bshd() -> InnerQTensor:
    dense, config = random_cache(90).transpose(1, 2), InnerQConfig.preset("base", **SMALL_WINDOWS)
    return InnerQTensor.from_dense(dense, config, role="key", tokens_dim=1)


@pytest.mark.parametrize("name", STAYS_QUANTIZED_BSHD)
def test_stays_quantized_as_batch_tokens_heads(cache_bshd, name):
    expected = STAYS_QUANTIZED_BSHD[name](cache_bshd.dequantize())
    result = STAYS_QUANTIZED_BSHD[name](cache_bshd)
    assert isinstance(result, InnerQTensor) and result.tokens_dim == 1
    # what "cat itself" appends is quantized a second time, in blocks that begin elsewhere
    assert_equal(result, expected, atol=0.5 if name == "cat itself" else ROUNDING)


@pytest.mark.parametrize("name", BECOMES_DENSE_BSHD)
def test_becomes_dense_as_batch_tokens_heads(cache_bshd, name):
    before = cache_bshd.dequantize()
    result = BECOMES_DENSE_BSHD[name](cache_bshd)
    assert type(result) is torch.Tensor
    assert_equal(result, BECOMES_DENSE_BSHD[name](before))


def test_both_layouts_hold_the_same(cache_bshd):
    dense = random_cache(90)
    tensors = [InnerQTensor.from_dense(swapped(dense, d), "base", role="key", tokens_dim=d) for d in (2, 1)]
    for a, b in zip(*(tensor.inner_tensors().values() for tensor in tensors), strict=True):
        assert_equal(a, b)
    assert tensors[1].shape == (2, 90, HEADS, HEAD_DIM) and tensors[1].is_contiguous()
    assert tensors[1].stride() == tensors[1].dequantize().stride()
    one_head = InnerQTensor.from_dense(torch.randn(2, 90, 1, HEAD_DIM), role="value", tokens_dim=1)
    assert one_head.stride() == one_head.dequantize().stride()
    assert "InnerQTensor([2, 90, 2, 16], key" in repr(tensors[1])
    with pytest.raises(InnerQError, match="second size may differ"):
        torch.cat([cache_bshd, torch.ones(2, 3, HEADS, 8)], dim=1)


def test_appending_a_cache_to_itself(past):
    tensor, dense = past
    assert_equal(torch.cat([tensor, tensor[:, :, :70]], dim=2), torch.cat([dense, dense[:, :, :70]], dim=2))


BECOMES_DENSE = {
    "+": lambda t: t + 1,
    "right +": lambda t: 1.0 + t,
    "* itself": lambda t: t * t,
    "matmul": lambda t: torch.matmul(torch.ones(2, HEADS, 5, HEAD_DIM), t.transpose(2, 3)),
    "sdpa": lambda t: torch.nn.functional.scaled_dot_product_attention(torch.ones(2, HEADS, 5, HEAD_DIM), t, t),
    "einsum": lambda t: torch.einsum("bhsd,bhsd->bhs", t, t),
    "sum": lambda t: t.sum(2),
    "compare": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "int": lambda t: t.int(),
    "[0]": lambda t: t[0],
    "[:, 0]": lambda t: t[:, 0],
    "[:, :, ::2]": lambda t: t[:, :, ::2],
    "[:, :, None]": lambda t: t[:, :, None],
    "[..., 3]": lambda t: t[..., 3],
    "[:, ints]": lambda t: t[:, torch.tensor([1, 0])],
    "transpose": lambda t: t.transpose(1, 2),
    "reshape": lambda t: t.reshape(4, 90, HEAD_DIM),
    "expand": lambda t: t[:, :, None].expand(2, HEADS, 3, 90, HEAD_DIM),
    "repeat_interleave(1)": lambda t: t.repeat_interleave(2, dim=1),
    "repeat_interleave()": lambda t: t.repeat_interleave(2),
    "torch.repeat_interleave": lambda t: torch.repeat_interleave(t, 2, dim=0),
    "repeat": lambda t: t.repeat(2, 1, 1, 1),
    "split": lambda t: torch.cat(t.split(1, dim=0)[::-1]),
    "stack": lambda t: torch.stack([t, t]),
    "cat heads": lambda t: torch.cat([t, t], dim=1),
    "cat batch": lambda t: torch.cat([t, t], dim=0),
    "cat behind a dense one": lambda t: torch.cat([torch.ones(2, HEADS, 3, HEAD_DIM), t], dim=2),
    "cat of a wider dtype": lambda t: torch.cat([t, torch.ones(2, HEADS, 3, HEAD_DIM, dtype=torch.float64)], dim=2),
    "index_select(2)": lambda t: t.index_select(2, torch.tensor([0, 5])),
    "gather": lambda t: t.gather(2, torch.zeros(2, HEADS, 1, HEAD_DIM, dtype=torch.long)),
    "where": lambda t: torch.where(t > 0, t, 0.0),
    "out=": lambda t: torch.mul(t, 2, out=torch.empty(2, HEADS, 90, HEAD_DIM)),
    "copy_ into a dense one": lambda t: torch.empty(2, HEADS, 90, HEAD_DIM).copy_(t),
    "_foreach_mul": lambda t: torch._foreach_mul([t], 2)[0],
    "zeros_like": lambda t: torch.zeros_like(t),
    "new_ones": lambda t: t.new_ones(3),
    "from_dlpack": lambda t: torch.from_dlpack(t),
    "numpy": lambda t: torch.from_numpy(t.numpy()),
    "asarray": lambda t: torch.from_numpy(np.asarray(t)),
    "tolist": lambda t: torch.tensor(t.tolist()),
}


@pytest.mark.parametrize("name", BECOMES_DENSE)
def test_becomes_dense(cache, name):
    before = cache.dequantize()
    result = BECOMES_DENSE[name](cache)
    assert type(result) is torch.Tensor
    assert_equal(result, BECOMES_DENSE[name](before))
    assert_equal(cache, before)


def refused(shape):
    """Operations that would write into a cache, and what the error calls them."""
    ones, column = torch.ones(shape), torch.ones(*shape[:2], 1, shape[3])
    first = torch.tensor([0])
    return {
        "add_": lambda t: t.add_(1),
        "add_ by +=": lambda t: t.__iadd__(1),
        "mul_": lambda t: t.mul_(2),
        "copy_": lambda t: t.copy_(ones),
        "fill_": lambda t: t.fill_(0),
        "normal_": lambda t: t.normal_(),
        "relu_": torch.relu_,
        "masked_fill_": lambda t: t.masked_fill_(torch.tensor(True), 0),
        "index_copy_": lambda t: t.index_copy_(2, first, column),
        "index_put_": lambda t: t.index_put_((first,), torch.tensor(1.0)),
        "scatter_": lambda t: t.scatter_(2, torch.zeros_like(column, dtype=torch.long), 1.0),
        "transpose_": lambda t: t.transpose_(2, 3),
        "unsqueeze_": lambda t: t.unsqueeze_(0),
        "resize_": lambda t: t.resize_(1),
        "set_": lambda t: t.set_(ones),
        "add.out": lambda t: torch.add(ones, ones, out=t),
        "_foreach_add_": lambda t: torch._foreach_add_([torch.ones(2), t], 1),
        "add_ of a crop": lambda t: t[:, :, :5].add_(1),
        "add_ of data": lambda t: t.data.add_(1),
        "add_ of a true view": lambda t: torch.narrow(t, 2, 0, 5).add_(1),
        "= value of [0]": lambda t: t.__setitem__(0, 1.0),
        "= value of [:, :, a:b]": lambda t: t.__setitem__((slice(None), slice(None), slice(3, 4)), column),
        "share_memory_": lambda t: t.share_memory_(),
    }


@pytest.mark.parametrize("name", refused((2, HEADS, 90, HEAD_DIM)))
def test_writing_is_refused_and_changes_nothing(cache, name):
    before, inner = cache.dequantize(), {n: t.clone() for n, t in cache.inner_tensors().items()}
    with pytest.raises(UnsupportedOperation) as error:
        refused(cache.shape)[name](cache)
    assert name.split(" of ")[0].split(" by ")[0] in str(error.value)
    assert isinstance(error.value, InnerQError)
    assert cache.shape == (2, HEADS, 90, HEAD_DIM)
    assert_equal(cache, before)
    for n, tensor in cache.inner_tensors().items():
        assert_equal(tensor, inner[n])


def test_zero(cache):
    """A program that resets its cache does this. Tokens that are appended afterwards read as usual."""
    assert cache.zero_() is cache
    assert not cache.dequantize().any()
    new = random_cache(3)
    assert_equal(torch.cat([cache, new], dim=2)[:, :, 90:], new, atol=ROUNDING)


def test_zero_of_a_shared_storage_is_refused(cache):
    longer = torch.cat([cache, random_cache(3)], dim=2)
    before = longer.dequantize()
    with pytest.raises(UnsupportedOperation, match="shares its storage"):
        cache.zero_()
    assert_equal(longer, before)
    assert not cache.clone().zero_().dequantize().any()


@pytest.mark.parametrize(
    ("index", "error"),
    [(torch.tensor([2]), IndexError), (torch.tensor([True, False, True]), IndexError)],
    ids=["out-of-range", "mask-too-long"],
)
def test_wrong_batch_indices(cache, index, error):
    with pytest.raises(error):
        cache[index]


def test_appending_a_wrong_shape_names_both(cache):
    with pytest.raises(InnerQError, match=r"\(2, 2, 3, 8\) to a cache of shape \(2, 2, 90, 16\)"):
        torch.cat([cache, torch.ones(2, HEADS, 3, 8)], dim=2)
    assert cache._storage.length == 90


@pytest.mark.parametrize("new_dtype", [torch.float16, torch.int32], ids=str)
def test_appending_a_narrower_dtype_is_promoted(cache, new_dtype):
    new = torch.arange(2 * HEADS * 3 * HEAD_DIM).reshape(2, HEADS, 3, HEAD_DIM).to(new_dtype)
    longer = torch.cat([cache, new], dim=2)
    assert isinstance(longer, InnerQTensor) and longer.dtype == torch.float32
    torch.testing.assert_close(longer[:, :, 90:], new.float())


def test_what_a_program_asks_of_a_tensor(cache):
    assert cache.shape == cache.size() == (2, HEADS, 90, HEAD_DIM)
    assert cache.size(-2) == 90 and len(cache) == 2 and cache.dim() == cache.ndim == 4
    assert cache.numel() == 2 * HEADS * 90 * HEAD_DIM
    assert cache.dtype == torch.float32 and cache.device == torch.device("cpu") and not cache.is_cuda
    assert cache.is_contiguous() and cache.stride() == cache.dequantize().stride()
    assert cache.is_floating_point() and not cache.requires_grad and cache.is_leaf
    assert isinstance(cache, torch.Tensor) and torch.is_tensor(cache)
    assert cache in [cache] and len({cache}) == 1


def test_repr_says_what_it_is():
    tensor = InnerQTensor.from_dense(random_cache(90, dtype=torch.float16), "small", role="value")
    held = tensor.nbytes_held
    assert repr(tensor) == str(tensor) == f"{tensor}"
    assert repr(tensor) == (
        f"InnerQTensor([2, 2, 90, 16], value, bits=2, mode=anchored, dtype=float16, device=cpu, bytes={held})"
    )


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("source", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("preset", ["base", "lossless"])
def test_to_dtype(preset, source, target):
    tensor = InnerQTensor.from_dense(random_cache(90, dtype=source), preset, role="key")
    moved = tensor.to(target)
    assert isinstance(moved, InnerQTensor) and moved.dtype == target
    assert (moved is tensor) == (source == target)
    assert_close = torch.testing.assert_close
    tolerance = 0.05 if target == torch.bfloat16 else 0.01
    assert_close(moved.dequantize(), tensor.dequantize().to(target), rtol=tolerance, atol=tolerance)
    longer = torch.cat([moved, random_cache(3, dtype=target)], dim=2)
    assert isinstance(longer, InnerQTensor) and longer.dtype == target
    if preset == "lossless":
        assert_equal(moved, tensor.dequantize().to(target))


def test_to_a_device_and_dtype_together_and_half(cache):
    assert cache.to("cpu", torch.float16).dtype == torch.float16
    assert isinstance(cache.half(), InnerQTensor) and isinstance(cache.half().float(), InnerQTensor)
    meta = cache.to("meta")
    assert isinstance(meta, InnerQTensor) and meta.device.type == "meta" and meta.shape == cache.shape


@pytest.mark.parametrize("how", sorted(COPIES))
def test_a_copy_is_independent(past, how):
    tensor, dense = past
    cropped = tensor[:, :, :50]
    copied = COPIES[how](cropped)
    memory, other = ({t.data_ptr() for t in cache.inner_tensors().values() if t.numel()} for cache in (tensor, copied))
    assert memory.isdisjoint(other)
    del tensor  # now the crop may write in place
    news = random_cache(60), random_cache(60)
    longer, longer_copy = (torch.cat([cache, new], dim=2) for cache, new in zip((cropped, copied), news, strict=True))
    for cache, new in zip((longer, longer_copy), news, strict=True):
        assert_equal(cache, torch.cat([dense[:, :, :50], new], dim=2))


@pytest.mark.parametrize("norm", ["channel", "half8", "interleaved16", "half8@4", "paper"])
def test_the_key_normalization_stays_with_the_cache(norm):
    """Copies, reordered and cropped caches and longer ones keep its kind, its statistics, and so the same numbers."""
    dense, new = random_cache(100), random_cache(40)
    config = InnerQConfig.preset("base", **SMALL_WINDOWS, key_norm="paper" if norm == "paper" else "channel")
    tensor = InnerQTensor.from_dense(dense, config, role="key", norm=None if norm == "paper" else norm)
    before = tensor.inner_tensors()["norm"].clone()
    start = torch.zeros(2, dtype=torch.int32)
    expected = reference.key_statistics(dense, start, centre=config.centre_keys, normalize=True, norm=norm)[1]
    torch.testing.assert_close(before, expected)
    once = torch.cat([tensor[:, :, :90], new], dim=2).dequantize()
    for name, make in COPIES.items():
        copied = make(tensor)
        longer = torch.cat([copied[:, :, :90], new], dim=2)
        assert longer.format.norm == copied.format.norm == norm, name
        assert torch.equal(copied.inner_tensors()["norm"], before), name
        assert_equal(longer, once)
    swapped_rows = torch.cat([tensor.index_select(0, torch.tensor([1, 0]))[:, :, :90], new.flip(0)], dim=2)
    assert swapped_rows.format.norm == norm
    assert torch.equal(swapped_rows.inner_tensors()["norm"], before.flip(0))
    assert_equal(swapped_rows, once.flip(0))
    assert not torch.equal(before[0], before[1]), "rows that are alike would hide a normalization left behind"


def test_saved_tensors_that_share_a_storage_share_it_again():
    dense = random_cache(100)
    short = lossless(dense)[:, :, :60]
    long = torch.cat([short, dense[:, :, 60:]], dim=2)
    short, long = saved_and_loaded({"short": short, "long": long}, map_location="cpu").values()
    assert short._storage is long._storage
    new = random_cache(5)
    branch = torch.cat([short, new], dim=2)
    assert_equal(long, dense)
    assert_equal(branch, torch.cat([dense[:, :, :60], new], dim=2))


def test_loading_in_a_new_process(tmp_path, cache):
    torch.save({"keys": cache, "dense": cache.dequantize()}, tmp_path / "cache.pt")
    program = (
        "import sys, torch; from innerq_compile import InnerQTensor; saved = torch.load(sys.argv[1]); "
        "assert isinstance(saved['keys'], InnerQTensor); assert torch.equal(saved['keys'].dequantize(), saved['dense'])"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "cache.pt")], check=True)


def test_in_inference_mode_and_out_of_it():
    dense, new = random_cache(80), random_cache(50)
    with torch.inference_mode():
        tensor = torch.cat([lossless(dense), new], dim=2)[:, :, :120]
        assert_equal(tensor.index_select(0, torch.tensor([1])), tensor.dequantize()[1:])
    with torch.no_grad():
        longer = torch.cat([tensor, new], dim=2)
    assert_equal(longer, torch.cat([dense, new[:, :, :40], new], dim=2))


def test_no_graph_of_gradients_is_kept():
    tensor = InnerQTensor.from_dense(random_cache(80).requires_grad_(), "base", role="key")
    assert not tensor.requires_grad
    longer = torch.cat([tensor, random_cache(50).requires_grad_()], dim=2)
    assert not any(inner.requires_grad for inner in longer.inner_tensors().values())


def test_a_saved_cache_of_another_version_is_refused():
    """Its windows have other rows, which kernels would take for tokens of the next head, or a tensor is missing."""
    storage = InnerQTensor.from_dense(torch.randn(1, 2, 200, 32), "base", role="key")._storage
    restore, (tensors, spec, length, *_) = storage.__reduce__()
    longer = torch.cat((tensors["window"], tensors["window"][:, :, -1:]), 2)
    with pytest.raises(InnerQError, match=r"161 rows of windows .*, where this version has 160 rows"):
        restore({**tensors, "window": longer}, spec, length)
    without = {name: tensor for name, tensor in tensors.items() if name != "query_profile"}
    with pytest.raises(InnerQError, match="this version has 160 rows and a query profile"):
        restore(without, spec, length)


PARTS = {
    "split": lambda t: t.split([20, t.shape[2] - 20], 2)[1],
    "chunk": lambda t: t.chunk(2, 2)[1],
    "torch.chunk": lambda t: torch.chunk(t, 2, 2)[0],
    "every other token": lambda t: t[:, :, ::2],
    "from a token on": lambda t: t[:, :, 20:],
}


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("part", PARTS)
def test_a_step_on_a_part(part):
    """Also where another conversation goes on with the whole cache, so that lengths are symbols."""

    @torch.no_grad()
    def outputs(model):
        torch.manual_seed(0)
        out, cache = model(torch.randn(1, 60, 32))
        found, pasts = [out], [cache, tuple(PARTS[part](side) for side in cache)]
        for step in range(4):
            out, pasts[step // 2] = model(torch.randn(1, 1, 32), pasts[step // 2])
            found.append(out)
        return torch.cat(found, 1)

    model = TinyAttention()
    expected = outputs(model)
    compiled = torch.compile(model, backend="innerq", options={"preset": "lossless"})
    torch.testing.assert_close(outputs(compiled), expected, atol=1e-4, rtol=1e-4)


def test_safetensors(cache):
    safetensors = pytest.importorskip("safetensors.torch")
    with pytest.raises(InnerQError, match="no storage that safetensors can save"):
        safetensors.save({"keys": cache})
    assert safetensors.save({"keys": cache.dequantize()})
