"""Programs that keep the last tokens in a full buffer: those that are recognized, and others that look like them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from innerq_compile import compiled_graphs, empty_cache
from innerq_compile.compile_error import CompileError

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

WINDOW = 24


def attend(q, keys, values, mask=None):
    return sdpa(q, keys, values, attn_mask=mask, enable_gqa=True)


# --- ways to let new tokens push the oldest ones out; each returns what the attention reads --------------------------


def rolled(buffer, new):
    full = buffer.roll(-1, dims=-2)
    full[:, :, torch.tensor([-1])] = new
    buffer.copy_(full)
    return buffer


def rolled_by_list(buffer, new):
    full = buffer.roll(-1, 2)
    full[:, :, [-1]] = new
    buffer.copy_(full)
    return buffer


def rolled_by_function(buffer, new):
    count = new.shape[2]
    full = torch.roll(buffer, shifts=(-count,), dims=(2,))
    full[:, :, -count:, :] = new
    return buffer.copy_(full)


def rolled_and_narrowed(buffer, new):
    full = buffer.roll(-new.shape[2], 2)
    full.narrow(2, WINDOW - new.shape[2], new.shape[2]).copy_(new)
    buffer.copy_(full)
    return buffer


def indexed(buffer, new):
    full = buffer.roll(-1, 2)
    full.index_copy_(2, torch.tensor([WINDOW - 1]), new)
    buffer.copy_(full)
    return buffer


def joined(buffer, new):
    buffer.copy_(torch.cat([buffer[:, :, new.shape[2] :], new], 2))
    return buffer


def joined_and_cut(buffer, new):
    buffer.copy_(torch.cat([buffer, new], 2)[:, :, -WINDOW:])
    return buffer


def read_longer(buffer, new):
    """As transformers does with several tokens: each of them sees a whole window."""
    full = torch.cat([buffer[:, :, 1:], new], 2)
    buffer.copy_(full[:, :, -WINDOW:, :])
    return full


def read_whole(buffer, new):
    full = torch.cat([buffer, new], 2)
    buffer.copy_(full[:, :, -WINDOW:])
    return full


WAYS = [
    rolled_by_list,
    rolled,
    rolled_by_function,
    rolled_and_narrowed,
    indexed,
    joined,
    joined_and_cut,
    read_longer,
    read_whole,
]
ONE_TOKEN = (rolled, rolled_by_list, indexed)


def program(way, tokens_dim=2):
    """A step over buffers whose tokens are along ``tokens_dim``. The mask hides some columns of what is read."""

    def step(q, k, v, keys, values, hidden):
        if tokens_dim == 1:  # [B, S, H, D]
            keys, values = (joined_by_tokens(x, y.transpose(1, 2)).transpose(1, 2) for x, y in ((keys, k), (values, v)))
        else:
            keys, values = way(keys, k), way(values, v)
        length, rows = keys.shape[2], q.shape[2]
        place = torch.arange(length)
        mask = (place <= length - rows + torch.arange(rows)[:, None]) & (place >= hidden)
        return attend(q, keys, values, mask[None, None])

    return step


def joined_by_tokens(buffer, new):
    buffer.copy_(torch.cat([buffer[:, new.shape[1] :], new], 1))
    return buffer


def run(step, counts, tokens_dim=2, window=WINDOW, preset=None, dynamic=False):
    """Outputs of steps of so many tokens, and the buffers in the end."""
    if preset is not None:
        torch._dynamo.reset()
        step = torch.compile(step, backend="innerq", dynamic=dynamic, options={"preset": preset})
    torch.manual_seed(0)
    shape = (2, 2, window, 16) if tokens_dim == 2 else (2, window, 2, 16)
    keys, values = torch.randn(shape), torch.randn(shape)
    found = []
    with torch.no_grad():
        for count in counts:
            q, k, v = torch.randn(2, 4, count, 16), torch.randn(2, 2, count, 16), torch.randn(2, 2, count, 16)
            found.append(step(q, k, v, keys, values, 3))
    return [*found, keys, values]


def assert_rewritten():
    graphs = compiled_graphs()
    assert graphs and all(graph.rewritten == graph.attentions == 1 for graph in graphs), [str(g) for g in graphs]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", [rolled, rolled_by_list, joined], ids=lambda way: way.__name__)
def test_batches_that_are_symbols(way):
    """Nothing in the program says that buffers and new tokens have the same batch, but that one is written to the other."""
    step, counts = program(way), [1] * 30
    expected = run(step, counts)
    torch.testing.assert_close(run(step, counts, preset="lossless", dynamic=None), expected)
    assert_rewritten()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_recognized(way):
    """Behind the window too, and with steps of one and of several tokens by turns."""
    counts = [1] * 6 if way in ONE_TOKEN else [1, 1, 5, 1, 16, 3, *[1] * 30]
    found = run(program(way), counts, preset="lossless")
    torch.testing.assert_close(found, run(program(way), counts), atol=1e-5, rtol=1e-4)
    assert_rewritten()
    assert ":rolling:" in compiled_graphs()[-1].layers[0].key


def test_tokens_first():
    found = run(program(None, 1), [1, 1, 4, 1], 1, preset="lossless")
    torch.testing.assert_close(found, run(program(None, 1), [1, 1, 4, 1], 1), atol=1e-5, rtol=1e-4)
    assert_rewritten()


def test_a_window_of_many_tokens_is_quantized():
    """What has left it is forgotten, and the rest is what the program's buffer holds."""
    counts, window = [*[16] * 12, 1, 1, *[16] * 13, 1, 1], 1040

    def step(q, k, v, keys, values, hidden):
        return attend(q, joined(keys, k), joined(values, v))

    found = run(step, counts, window=window, preset="lossless")
    torch.testing.assert_close(found, run(step, counts, window=window), atol=1e-4, rtol=1e-4)
    assert_rewritten()
    shadow = found[-2]._innerq_rolling_shadow
    assert shadow.key.base == shadow.value.base == 256 and shadow.key.length - shadow.key.hidden == window
    assert ":none:" in compiled_graphs()[-1].layers[0].key


def test_many_tokens_at_once_are_read_exactly():
    found = run(program(joined), [1, 20, 1], preset="lossless")
    torch.testing.assert_close(found, run(program(joined), [1, 20, 1]), atol=1e-5, rtol=1e-4)
    one, many = compiled_graphs()
    assert one.rewritten and not many.rewritten
    assert many.reasons[0].text == (
        "keys: more than 16 tokens are written at once, as in a prefill, whose attention stays exact"
    )


# --- what looks like it ---------------------------------------------------------------------------------------------


def rolled_too_far(buffer, new):
    full = buffer.roll(-2, 2)
    full[:, :, -1:] = new
    buffer.copy_(full)
    return buffer


def rolled_along_heads(buffer, new):
    full = buffer.roll(-1, 1)
    full[:, :, -1:] = new
    buffer.copy_(full)
    return buffer


def written_in_front(buffer, new):
    full = buffer.roll(-1, 2)
    full[:, :, :1] = new
    buffer.copy_(full)
    return buffer


def written_to_some(buffer, new):
    full = buffer.roll(-1, 2)
    full[:, :1, -1:] = new[:, :1]
    buffer.copy_(full)
    return buffer


def changed_twice(buffer, new):
    full = buffer.roll(-1, 2)
    full[:, :, -1:] = new
    full.mul_(0.5)
    buffer.copy_(full)
    return buffer


def written_after_the_copy(buffer, new):
    full = buffer.roll(-1, 2)
    buffer.copy_(full)
    full[:, :, -1:] = new
    return buffer


def copied_and_changed(buffer, new):
    full = torch.cat([buffer[:, :, 1:], new], 2)
    buffer.copy_(full)
    buffer[:, :, :1] = 0
    return buffer


def joined_the_other_way(buffer, new):
    buffer.copy_(torch.cat([new, buffer[:, :, :-1]], 2))
    return buffer


def first_tokens_kept(buffer, new):
    full = torch.cat([buffer, new], 2)
    buffer.copy_(full[:, :, :WINDOW])
    return full


def new_changed_later(buffer, new):
    full = torch.cat([buffer[:, :, 1:], new], 2)
    new.mul_(2)
    buffer.copy_(full)
    return buffer


def read_before(buffer, new):
    old = buffer[:, :, :]
    read = old.clone()
    buffer.copy_(torch.cat([buffer[:, :, 1:], new], 2))
    return buffer + 0 * read


def another_tensor(buffer, new):
    full = torch.cat([buffer[:, :, 1:], new], 2)
    buffer.copy_(torch.cat([buffer[:, :, 1:], 2 * new], 2))
    return full


OTHERS = [
    rolled_too_far,
    rolled_along_heads,
    written_in_front,
    written_to_some,
    changed_twice,
    written_after_the_copy,
    copied_and_changed,
    joined_the_other_way,
    first_tokens_kept,
    new_changed_later,
    read_before,
    another_tensor,
]


@pytest.mark.parametrize("way", OTHERS, ids=lambda way: way.__name__)
def test_not_recognized(way):
    found = run(program(way), [1] * 4, preset="lossless")
    torch.testing.assert_close(found, run(program(way), [1] * 4), atol=1e-5, rtol=1e-4)
    (graph,) = compiled_graphs()
    assert not graph.rewritten and graph.reasons[0].text.startswith("keys: ")


def test_keys_and_values_that_are_cut_elsewhere():
    def step(q, k, v, keys, values, hidden):
        return attend(q, joined(keys, k)[:, :, :WINDOW], read_longer(values, v))

    def longer(q, k, v, keys, values, hidden):
        return attend(q, read_whole(keys, k)[:, :, 1:], joined(values, v))

    for each in (step, longer):
        found = run(each, [1] * 3, preset="lossless")
        torch.testing.assert_close(found, run(each, [1] * 3), atol=1e-5, rtol=1e-4)


def test_an_attention_in_front_of_the_writes():
    def step(q, k, v, keys, values, hidden):
        full = [torch.cat([x[:, :, 1:], new], 2) for x, new in ((keys, k), (values, v))]
        out = attend(q, *full)
        keys.copy_(full[0])
        values.copy_(full[1])
        return out

    found = run(step, [1] * 3, preset="lossless")
    torch.testing.assert_close(found, run(step, [1] * 3), atol=1e-5, rtol=1e-4)
    (graph,) = compiled_graphs()
    assert [reason.text for reason in graph.reasons] == ["the attention comes before the writes to the buffers"]


def test_buffers_that_are_quantized():
    """They have no way to push tokens out, and say so."""
    held = [empty_cache(1, 2, WINDOW, 16, role=role, config="lossless") for role in ("key", "value")]

    def step(q, k, v, keys, values):
        return attend(q, joined(keys, k), joined(values, v))

    compiled = torch.compile(step, backend="innerq", options={"preset": "lossless"})
    with torch.no_grad(), pytest.raises(CompileError, match="write whole tokens in order, or use a dense buffer"):
        compiled(*(torch.randn(1, 2, 1, 16) for _ in range(3)), *held)
