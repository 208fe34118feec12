"""What depends on the length of a cache goes into a graph of its own, which runs before a recorded one."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE
from tests.helpers.programs import SlicedBuffers, TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


class OwnMask(TinyAttention):
    """Hides every third token; the mask of a step is as long as the cache."""

    def forward(self, x, past=None, extra=0):
        mask = None
        if past is not None:
            length = past[0].shape[2] + 1
            mask = torch.arange(length)[None] % 3 != 0
        out, cache = super().forward(x, past, mask)
        return (out + length * extra if past is not None and extra else out), cache


def graph_of_a_step(extra: int = 0) -> torch.fx.GraphModule:
    calls = [lambda last: (torch.randn(1, 1, 32), last[1], extra)] * 2
    return capture(OwnMask(), lambda _: (torch.randn(1, 5, 32),), *calls, config=PLAIN)[-1][0]


class TestHoistLengths(expecttest.TestCase):
    def test_a_mask(self):
        changes = changes_by_pass(graph_of_a_step(), PLAIN, static_lengths=True, read=brief_code_of)
        self.assertExpectedInline(
            changes["hoist_lengths"],
            """\
- add = s + 1
- arange = torch.arange(add)
- getitem_4 = arange[None]
- mod = getitem_4 % 3
- mask = mod != 0
- open_from_default = open_from(mask, l_past_0__state, 0)
+ open_from_default = open_from(hoisted_0, l_past_0__state, 0)
- decode_attention_default = decode_attention(q, l_past_0_..., l_past_1_..., mask, open_from_default, None, 0.25, 0.0, False)
+ decode_attention_default = decode_attention(q, l_past_0_..., l_past_1_..., hoisted_0, open_from_default, None, 0.25, 0.0, False)""",
        )
        self.assertExpectedInline(
            changes["prelude"],
            """\
    add = s + 1
    arange = torch.arange(add)
    getitem_4 = arange[None]
    mod = getitem_4 % 3
    mask = mod != 0
    copy_ = place_0.copy_(mask)
    return ()""",
        )

    def test_a_position(self):
        buffers = [torch.zeros(1, 1, 64, 16) for _ in range(2)]
        calls = [lambda _, at=at: (torch.randn(1, 1, 32), at, *buffers) for at in (7, 8)]
        gm = capture(SlicedBuffers(), *calls, config=PLAIN)[-1][0]
        changes = changes_by_pass(gm, PLAIN, static_lengths=True, read=brief_code_of)
        self.assertExpectedInline(
            changes["hoist_lengths"],
            """\
- full = torch.full((1,), l_start_, dtype = torch.int64, device = device(type='cpu'))
- add = l_start_ + 1
- add_1 = torch.add(full, arange)
+ add_1 = torch.add(hoisted_0, arange)
- add_2 = torch.add(full, arange_1)
+ add_2 = torch.add(hoisted_0, arange_1)
- rewind__default = rewind_(l_keys__shadow..., l_values__shadow..., full)
+ rewind__default = rewind_(l_keys__shadow..., l_values__shadow..., hoisted_0)""",
        )
        self.assertExpectedInline(
            changes["prelude"],
            """\
    full = torch.full((1,), l_start_, dtype = torch.int64, device = device(type='cpu'))
    add = l_start_ + 1
    copy_ = place_0.copy_(full)
    return ()""",
        )


def test_the_prelude_gives_what_the_graph_computed():
    """Also at a length that the graph was not captured with."""
    prelude = PIPELINE.rewrite(graph_of_a_step(), PLAIN, static_lengths=True).context.prelude
    assert (prelude.masks, prelude.written) == ([True], [True])
    place = torch.zeros(1, 41, dtype=torch.bool)
    prelude.graph(*[40] * len(prelude.inputs), place)
    torch.testing.assert_close(place, torch.arange(41)[None] % 3 != 0)


def test_a_mask_of_the_program_that_is_passed_on_as_it_is():
    """It has a place of its own in every step, and a length of its own."""
    masks = [torch.ones(1, length, dtype=torch.bool) for length in (6, 7)]
    calls = [lambda last, mask=mask: (torch.randn(1, 1, 32), last[1], mask) for mask in masks]
    gm = capture(TinyAttention(), lambda _: (torch.randn(1, 5, 32),), *calls, config=PLAIN)[-1][0]
    result = PIPELINE.rewrite(gm, PLAIN, static_lengths=True)
    prelude = result.context.prelude
    assert (prelude.masks, prelude.written) == ([True], [True]) and "l_mask_" in prelude.inputs
    names = [node.name for node in result.gm.graph.find_nodes(op="placeholder")]
    assert "hoisted_0" in names and "l_mask_" not in names
    place = torch.zeros(1, 9, dtype=torch.bool)
    mask = torch.arange(9)[None] % 2 == 0
    prelude.graph(*[mask if name == "l_mask_" else 8 for name in prelude.inputs], place)
    assert torch.equal(place, mask)


def test_a_length_that_reaches_something_else_stays_with_a_reason():
    result = PIPELINE.rewrite(graph_of_a_step(extra=2), PLAIN, static_lengths=True)
    assert result.context.prelude is None and result.context.rewritten
    reason = "no CUDA graph can serve all lengths: a tensor with the length of the cache is computed from a cache, at "
    assert result.context.lengths_not_hoisted.startswith(reason)
    assert "test_hoist_lengths.py" in result.context.lengths_not_hoisted
    assert [str(note) for note in result.context.notes] == [result.context.lengths_not_hoisted]


@pytest.mark.parametrize("by_name", [False, True])
def test_the_mask_of_an_operator_is_found_by_its_name(by_name):
    """An attention may read a mask that is longer than what it attends to, and nothing else of that length."""
    from innerq_compile.passes.hoist_lengths import _arguments_without_mask

    graph = torch.fx.Graph()
    mask, state, rows = (graph.placeholder(name) for name in ("mask", "state", "rows"))
    args, kwargs = ((), {"rows": rows, "mask": mask, "state": state}) if by_name else ((mask, state, rows), {})
    node = graph.call_function(torch.ops.innerq.open_from.default, args, kwargs)
    assert {*_arguments_without_mask(node)} == {state, rows}
    assert _arguments_without_mask(graph.call_function(torch.add, (mask, state))) is None


class RollingMask(TinyAttention):
    """A mask of fixed size, whose positions are used to look something up, too, as in a full sliding window."""

    def forward(self, x, past=None, position=0, shown=None):
        mask = None
        if past is not None:
            positions = torch.arange(past[0].shape[2] + 1 - past[0].shape[2] + 4) + position
            places = positions[None]
            mask = shown[places[..., -1:]] & (places[..., -1:] >= 0)
        out, cache = super().forward(x, past, None)
        return (out if mask is None else out * mask.sum()), cache


def test_nothing_in_the_graph_reads_the_length():
    """Also not through what was moved because something behind it was."""
    calls = [lambda last, at=at: (torch.randn(1, 1, 32), last[1], at, torch.ones(at + 9).bool()) for at in (5, 6)]
    gm = capture(RollingMask(), lambda _: (torch.randn(1, 5, 32),), *calls, config=PLAIN)[-1][0]
    result = PIPELINE.rewrite(gm, PLAIN, static_lengths=True)
    numbers = [node for node in result.gm.graph.find_nodes(op="placeholder") if "position" in node.name]
    assert result.context.prelude is not None and not any(node.users for node in numbers)
