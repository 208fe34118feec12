"""Programs that keep the last tokens of their caches in ways of their own: results are those without the compiler."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQTensor
from innerq_compile.compiler.backend import innerq_backend

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

WINDOW = 16
LOSSLESS = {"backend": innerq_backend, "options": {"preset": "lossless"}}


def attend(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def joined(past, new):
    return new if past is None else torch.cat([past, new], 2)


def returned_cut(q, k, v, keys, values):
    keys, values = joined(keys, k), joined(values, v)
    return attend(q, keys, values), keys[:, :, -WINDOW:], values[:, :, -WINDOW:]


def cut_before_it_is_read(q, k, v, keys, values):
    keys, values = joined(keys, k)[:, :, -WINDOW:], joined(values, v)[:, :, -WINDOW:]
    return attend(q, keys, values), keys, values


def cut_if_too_long(q, k, v, keys, values):
    keys, values = joined(keys, k), joined(values, v)
    out = attend(q, keys, values)
    if keys.shape[2] > 100:
        keys, values = keys[:, :, -100:], values[:, :, -100:]
    return out, keys, values


def read_cut_and_returned_whole(q, k, v, keys, values):
    keys, values = joined(keys, k), joined(values, v)
    return attend(q, keys[:, :, -WINDOW:], values[:, :, -WINDOW:]), keys, values


def read_both_ways(q, k, v, keys, values):
    keys, values = joined(keys, k), joined(values, v)
    out = attend(q, keys, values) + attend(q, keys[:, :, -WINDOW:], values[:, :, -WINDOW:])
    return out, keys, values


def both_returned(q, k, v, keys, values):
    keys, values = joined(keys, k), joined(values, v)
    return attend(q, keys, values), keys[:, :, -WINDOW:], values[:, :, -WINDOW:], keys


PROGRAMS = [
    returned_cut,
    cut_before_it_is_read,
    cut_if_too_long,
    read_cut_and_returned_whole,
    read_both_ways,
    both_returned,
]


def run(program, lengths: list[int], hold: str = "") -> list[torch.Tensor]:
    """The outputs of calls with so many tokens each. ``hold``: the side of which an older cache stays alive."""
    torch.manual_seed(0)
    keys = values = None
    outputs, held = [], []
    for number, tokens in enumerate(lengths):
        q, k, v = (torch.randn(2, 2, tokens, 16) for _ in range(3))
        out, keys, values, *_ = program(q, k, v, keys, values)
        outputs.append(out)
        if number == 5:
            held.append({"key": keys, "value": values}.get(hold))
    return outputs


@pytest.mark.sampled(3)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("first", [10, 60])
def test_results_are_those_without_the_compiler(program, first):
    lengths = [first, *[1] * 40, 5, 1, 1]
    found = run(torch.compile(program, **LOSSLESS), lengths)
    torch.testing.assert_close(found, run(program, lengths), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("hold", ["", "key", "value"])
def test_an_older_tensor_of_one_side_stays_alive(hold):
    """Dropped tokens are forgotten on both sides at once, since kernels take the lengths of keys for both."""

    def program(q, k, v, keys, values):
        keys, values = joined(keys, k), joined(values, v)
        return attend(q, keys, values), keys[:, :, -200:], values[:, :, -200:]

    lengths = [180, *[1] * 12, *[40] * 9, 1, 1]
    found = run(torch.compile(program, **LOSSLESS), lengths, hold)
    torch.testing.assert_close(found, run(program, lengths), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("of_keys", "of_values"), [(slice(5, None), slice(None, -5)), (slice(None, -5), slice(5, None))]
)
def test_sides_that_are_cut_elsewhere(of_keys, of_values):
    torch.manual_seed(0)
    dense = [torch.randn(2, 2, 60, 16) for _ in range(2)]
    keys, values = (
        InnerQTensor.from_dense(x, "lossless", role=role) for x, role in zip(dense, ("key", "value"), strict=True)
    )
    q, k, v = (torch.randn(2, 2, 1, 16) for _ in range(3))

    def program(q, k, v, keys, values):
        keys, values = joined(keys, k), joined(values, v)
        return attend(q, keys, values), keys, values

    compiled = torch.compile(program, **LOSSLESS)
    found, *_ = compiled(q, k, v, keys[:, :, of_keys], values[:, :, of_values])
    expected, *_ = program(q, k, v, dense[0][:, :, of_keys], dense[1][:, :, of_values])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
