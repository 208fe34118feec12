"""Programs that a careless rewrite would break. Random programs found some; others are variations of those.

A program is a function of ``compiled``, a decorator for what is compiled, and of ``buffer``, which makes a buffer
``[B, H, MAX, D]``; it returns tensors. Compiled, it has to compute what it computes eagerly, or to be refused with an
error that is meant for the user.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQError, compiled_graphs, empty_cache
from innerq_compile.compiler.backend import innerq_backend

B, H, MAX, D = 2, 2, 24, 16
sdpa = F.scaled_dot_product_attention

PROGRAMS = {}


def program(fn):
    PROGRAMS[fn.__name__] = fn
    return fn


def new(tokens: int, seed: int = 0) -> list[torch.Tensor]:
    """Query, key and value of new tokens, ``[B, H, N, D]``."""
    generator = torch.Generator().manual_seed(100 * seed + tokens)
    return [torch.randn(B, H, tokens, D, generator=generator) for _ in range(3)]


def mask(first: int, tokens: int, columns: int, hidden: float = float("-inf")) -> torch.Tensor:
    """The additive causal mask of ``tokens`` at ``first``."""
    seen = torch.arange(columns) <= torch.arange(first, first + tokens)[:, None]
    return torch.zeros(tokens, columns).masked_fill(~seen, hidden)


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.dequantize() if hasattr(x, "_storage") else x


def grown(step, caches, count: int = 3) -> list[torch.Tensor]:
    """A prompt, which makes the caches, and ``count`` steps of ``step(q, k, v, caches) -> out, caches``."""
    outs = []
    for index in range(count + 1):
        out, caches = step(*new(5 if index == 0 else 1 + index % 2, index), caches)
        outs.append(out)
    return [*outs, *map(plain, caches)]


def joined(past, new):
    return new if past is None else torch.cat([past, new], dim=2)


# --- caches that grow -------------------------------------------------------------------------------------------------


@program
def one_of_two_masks_changes_between_layers(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        keys, values = (joined(caches and caches[i], x) for i, x in enumerate((k, v)))
        tokens, columns = q.shape[2], keys.shape[2]
        first = torch.zeros(tokens, columns).tril(columns - tokens)
        second = torch.ones(tokens, columns, dtype=torch.bool)

        def attend(q):
            scores = (q @ keys.mT + first).masked_fill(~second, float("-inf"))
            return scores.softmax(-1) @ values

        out = attend(q)
        first[:, 1].fill_(float("-inf"))
        return out + attend(q * 2), (keys, values)

    return grown(step, None)


@program
def keys_are_values(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        keys = joined(caches and caches[0], k)
        return sdpa(q, keys, keys), (keys,)

    return grown(step, None)


@program
def keys_with_two_values(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        keys, first, second = (joined(caches and caches[i], x) for i, x in enumerate((k, v, v * 2 + 1)))
        return sdpa(q, keys, first) + sdpa(q * 2, keys, second), (keys, first, second)

    return grown(step, None)


@program
def keys_and_values_crossed(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        keys, values = (joined(caches and caches[i], x) for i, x in enumerate((k, v)))
        return sdpa(q, keys, values) + sdpa(q * 2, values, keys), (keys, values)

    return grown(step, None)


@program
def the_past_is_read_too(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        keys, values = (joined(caches and caches[i], x) for i, x in enumerate((k, v)))
        out = sdpa(q, keys, values)
        return out if caches is None else out + sdpa(q, *caches), (keys, values)

    return grown(step, None)


@program
def one_storage_in_two_arguments(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        outs, made = 0, []
        for layer in range(2):
            keys, values = (joined(caches and caches[2 * layer + i], (layer + 1) * x) for i, x in enumerate((k, v)))
            outs = outs + sdpa(q, keys, values)
            made += [keys, values]
        return outs, made

    _, caches = step(*new(5), None)
    caches = [caches[0][:, :, :5], caches[1][:, :, :5], caches[0][:, :, :5], caches[1][:, :, :5]]
    outs = []
    for index in range(3):
        out, caches = step(*new(1, index), caches)
        outs.append(out)
    return [*outs, *map(plain, caches)]


@program
def changed_through_a_view(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        keys, values = (joined(caches and caches[i], x) for i, x in enumerate((k, v)))
        out = sdpa(q, keys, values)
        keys.transpose(1, 2)[:, -1:].mul_(0.5)
        return out, (keys, values)

    return grown(step, None)


@program
def new_values_are_changed_between_the_appends(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        k = k * 1.0
        keys = joined(caches and caches[0], k)
        k.mul_(2.0) if caches is not None else None
        values = joined(caches and caches[1], v)
        return sdpa(q, keys, values), (keys, values)

    return grown(step, None)


@program
def padding_that_something_else_reads(compiled, buffer):
    """The first tokens are hidden from the attention, but not from the mean of the keys."""

    @compiled
    def step(q, k, v, caches):
        keys, values = (joined(caches and caches[i], x) for i, x in enumerate((k, v)))
        hidden = (torch.arange(keys.shape[2]) < 2)[None, None, None].expand(B, 1, q.shape[2], -1)
        out = sdpa(q, keys, values, ~hidden)
        return out + keys.mean(2, keepdim=True), (keys, values)

    return grown(step, None)


@program
def padding_that_another_attention_sees(compiled, buffer):
    @compiled
    def step(q, k, v, caches):
        keys, values = (joined(caches and caches[i], x) for i, x in enumerate((k, v)))
        hidden = (torch.arange(keys.shape[2]) < 2)[None, None, None].expand(B, 1, q.shape[2], -1)
        return sdpa(q, keys, values, ~hidden) + sdpa(q, keys, values), (keys, values)

    return grown(step, None)


# --- buffers ----------------------------------------------------------------------------------------------------------


def buffered(step, buffers, count: int = 3, start: int = 0) -> list[torch.Tensor]:
    """A prompt and ``count`` steps of ``step(q, k, v, keys, values, position, mask) -> out``."""
    outs, position = [], start
    for index in range(count + 1):
        tokens = 5 if index == 0 else 1 + index % 2
        outs.append(step(*new(tokens, index), *buffers, position, mask(position, tokens, MAX)))
        position += tokens
    return [*outs, *(plain(buffer)[:, :, :position] for buffer in buffers)]


@program
def written_through_narrow(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys.narrow(2, position, k.shape[2]).copy_(k)
        values.narrow(2, position, v.shape[2]).copy_(v)
        return sdpa(q, keys, values, mask)

    return buffered(step, (buffer("key"), buffer("value")))


@program
def written_through_two_views(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys[:, :, position : position + k.shape[2]] = k
        values[:, :, position : position + v.shape[2]] = v
        keys.transpose(1, 2)[:, :1].mul_(0.5)
        return sdpa(q, keys, values, mask)

    return buffered(step, (buffer("key"), buffer("value")))


@program
def cleared_through_a_view_afterwards(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys[:, :, position : position + k.shape[2]] = k
        values[:, :, position : position + v.shape[2]] = v
        out = sdpa(q, keys, values, mask)
        values[:, 0].zero_()
        return out

    return buffered(step, (buffer("key"), buffer("value")))


@program
def keys_and_values_in_one_buffer(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys[:, :, position : position + k.shape[2]] = k
        values[:, :, position : position + v.shape[2]] = v
        return sdpa(q, keys, keys, mask)

    return buffered(step, (buffer("key"), buffer("value")))


@program
def one_token_fills_two_places(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys[:, :, position : position + k.shape[2]] = k[:, :, :1]
        values[:, :, position : position + v.shape[2]] = v
        return sdpa(q, keys, values, mask)

    return buffered(step, (buffer("key"), buffer("value")))


@program
def written_at_the_end(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values):
        keys[:, :, -3:] = k
        values[:, :, -3:] = v
        return sdpa(q, keys, values, torch.zeros(1, MAX))

    buffers = buffer("key"), buffer("value")
    return [step(*new(3, index), *buffers) for index in range(3)]


@program
def position_that_turns_negative(compiled, buffer):
    """The sign of a symbolic position is known to Dynamo's guards only."""

    @compiled
    def step(q, k, v, keys, values, at):
        keys[:, :, at : at + 1] = k
        values[:, :, at : at + 1] = v
        return sdpa(q, keys[:, :, : at + 1], values[:, :, : at + 1])

    buffers = buffer("key"), buffer("value")
    for cache, x in zip(buffers, new(MAX, 3)[1:], strict=True):
        cache[:, :, :MAX] = x
    return [step(*new(1, at), *buffers, at) for at in (9, 10, 11, -5)]


@program
def positions_with_a_step(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        places = torch.arange(0, 2 * k.shape[2], 2) + position
        keys.index_copy_(2, places, k)
        values.index_copy_(2, places, v)
        return sdpa(q, keys, values, mask)

    buffers = buffer("key"), buffer("value")
    return [step(*new(3, i), *buffers, torch.tensor(i), mask(i, 3, MAX)) for i in range(2)]


@program
def position_moves_on_before_the_attention(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        position.add_(1)
        return sdpa(q, keys, values, mask)

    buffers, position = (buffer("key"), buffer("value")), torch.tensor([0])
    outs = [step(*new(1, i), *buffers, position, mask(i, 1, MAX)) for i in range(4)]
    return [*outs, position]


@program
def read_up_to_an_end_of_its_own(compiled, buffer):
    """Fewer tokens than there are, without the new one, and more, which the mask hides."""

    @compiled
    def step(q, k, v, keys, values, position, end, bias):
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        return sdpa(q, keys[:, :, :end], values.narrow(2, 0, end), bias[:, :end])

    buffers, ends = (buffer("key"), buffer("value")), (1, 2, 2, 4, 3, 9, 1, MAX)
    return [step(*new(1, i), *buffers, torch.tensor([i]), end, mask(i, 1, MAX)) for i, end in enumerate(ends)]


@program
def read_up_to_an_end_under_no_mask(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, end):
        keys[:1].index_copy_(2, position, k[:1])
        keys[1:].index_copy_(2, position, k[1:])
        values[:, :, ...].index_copy_(2, position, v)
        return sdpa(q, keys[..., :end, :], values[..., :end, :])

    buffers = buffer("key"), buffer("value")
    return [step(*new(1, i), *buffers, torch.tensor([i]), end) for i, end in enumerate((1, 2, 2, 4))]


def in_part(step, buffer) -> list[torch.Tensor]:
    """Steps over buffers of which each attends to a part: ``step(q, k, v, keys, values, position, end, bias)``."""
    buffers = buffer("key"), buffer("value")
    return [step(*new(1, i), *buffers, torch.tensor([i]), i + 3, mask(i, 1, MAX)) for i in range(1, 6)]


@program
def a_view_of_the_mask_of_a_part_changes(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, end, bias):
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        part = bias[:, :end].clone()
        part[:, 0].fill_(float("-inf"))
        return sdpa(q, keys[..., :end, :], values[..., :end, :], part)

    return in_part(step, buffer)


@program
def what_the_mask_of_a_part_is_a_view_of_changes(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, end, bias):
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        own = bias.clone()
        part = own[:, :end]
        own[:, 0] = float("-inf")
        return sdpa(q, keys[..., :end, :], values[..., :end, :], part)

    return in_part(step, buffer)


@program
def the_mask_of_a_part_changes(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, end, bias):
        keys[..., :].index_copy_(2, position, k)
        values[...].index_copy_(2, position, v)
        part = bias[:, :end].clone()
        out = sdpa(q, keys[..., :end, :], values[..., :end, :], part)
        part[:, 0] = float("-inf")
        return out + sdpa(q, keys[..., :end, :], values[..., :end, :], part)

    return in_part(step, buffer)


@program
def one_buffer_in_two_arguments(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, others, position, mask):
        keys[:, :, position : position + k.shape[2]] = k
        values[:, :, position : position + v.shape[2]] = v
        return sdpa(q, keys, values, mask) + others.sum(2, keepdim=True)

    keys, values = buffer("key"), buffer("value")
    return buffered(lambda q, k, v, *rest: step(q, k, v, keys, values, keys[:, :], *rest), ())


@program
def the_mask_is_a_large_number(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys[:, :, position : position + k.shape[2]] = k
        values[:, :, position : position + v.shape[2]] = v
        return sdpa(q, keys, values, mask.clamp(min=-1e9))

    return buffered(step, (buffer("key"), buffer("value")))


@program
def read_between_the_writes(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        keys[:, :, position : position + k.shape[2]] = k
        mean = keys.sum(2, keepdim=True)
        values[:, :, position : position + v.shape[2]] = v
        return sdpa(q, keys, values, mask) + mean

    return buffered(step, (buffer("key"), buffer("value")))


@program
def a_view_that_was_made_before_the_write(compiled, buffer):
    @compiled
    def step(q, k, v, keys, values, position, mask):
        early = keys[:, :, : MAX - 1]
        keys[:, :, position : position + k.shape[2]] = k
        values[:, :, position : position + v.shape[2]] = v
        return sdpa(q, early, values[:, :, : MAX - 1], mask[:, :-1])

    return buffered(step, (buffer("key"), buffer("value")))


# --- the test ---------------------------------------------------------------------------------------------------------

#: Programs that have to be rewritten, not only to be right.
REWRITTEN = {
    "written_through_narrow",
    "the_mask_is_a_large_number",
    "position_moves_on_before_the_attention",
    "read_up_to_an_end_of_its_own",
}
#: Programs of buffers, which run with quantized buffers, too.
BUFFERED = list(PROGRAMS)[list(PROGRAMS).index("written_through_narrow") :]


def run_both(name: str, kind: str) -> None:
    def compiled(fn):
        return torch.compile(fn, backend=innerq_backend, options={"preset": "lossless"})

    def dense(role):
        return torch.zeros(B, H, MAX, D)

    def quantized(role):
        return empty_cache(B, H, MAX, D, role=role, config="lossless")

    with torch.no_grad():
        expected = PROGRAMS[name](lambda fn: fn, dense)
        try:
            got = PROGRAMS[name](compiled, quantized if kind == "quantized" else dense)
        except (InnerQError, RuntimeError) as error:
            assert isinstance(error, InnerQError) or str(error).startswith("innerq"), error
            assert name not in REWRITTEN, error
            return
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(plain(x), y, atol=2e-4, rtol=2e-4)
    if name in REWRITTEN:
        assert any(report.rewritten for report in compiled_graphs()), [str(r) for r in compiled_graphs()]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, graphs_as_they_are):
    run_both(name, "dense")


@pytest.mark.parametrize("name", BUFFERED)
def test_program_with_quantized_buffers(name, graphs_as_they_are):
    run_both(name, "quantized")
