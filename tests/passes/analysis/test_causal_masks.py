"""Masks of prompts: spellings that are understood, and what looks like them."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.passes.analysis.causal_masks import causal_mask
from innerq_compile.passes.graph.aliases import Writes
from innerq_compile.passes.graph.reading import outputs
from tests.helpers.programs import capture

pytestmark = pytest.mark.usefixtures("no_inductor")


def indices(x):
    """Columns and rows ``[1, 1, 1, S]`` and ``[1, 1, S, 1]``."""
    count = torch.arange(x.shape[1], device=x.device)
    return count[None, None, None, :], count[None, None, :, None]


def plain(x):
    column, row = indices(x)
    return column <= row


def other_way_round(x):
    column, row = indices(x)
    return row >= column


def strictly(x):
    column, row = indices(x)
    return (column < row + 1).expand(x.shape[0], -1, -1, -1)


def by_views(x):
    count = torch.arange(0, x.shape[1])
    return count.view(1, 1, 1, -1).le(count.unsqueeze(-1)[None, None])


def moved_together(x):
    column, row = indices(x)
    return (column + 7) <= (7 + row)


def in_parts(x):
    column, row = indices(x)
    return (row.new_ones((), dtype=torch.bool) & (column <= row).to(x.device)).clone()


def windowed(x):
    column, row = indices(x)
    return torch.logical_and(column > row - 6, column <= row)


def windowed_by_columns(x):
    column, row = indices(x)
    return (column <= row) & (row < column + 6) & (row - 9 <= column)


def padded(x):
    column, row = indices(x)
    batch = torch.arange(x.shape[0])[:, None, None, None]
    return (column <= row) & (x[:, :, 0] > -1)[batch, column]


def padded_for_all(x):
    return plain(x) & (x[:1, :, 0] > -1)[:, None, None]


def added(x):
    return torch.where(plain(x), 0.0, -torch.inf)


def added_as_transformers_does(x):
    low = torch.finfo(x.dtype).min
    return torch.where(padded(x), torch.tensor(0.0, dtype=x.dtype), low)


UNDERSTOOD = {
    plain: (0, None),
    other_way_round: (0, None),
    strictly: (0, None),
    by_views: (0, None),
    moved_together: (0, None),
    in_parts: (0, None),
    windowed: (0, 6),
    windowed_by_columns: (0, 6),
    padded: (1, None),
    padded_for_all: (1, None),
    added: (0, None),
    added_as_transformers_does: (1, None),
}


def one_less(x):
    column, row = indices(x)
    return column < row


def one_more(x):
    column, row = indices(x)
    return column <= row + 1


def moved_apart(x):
    column, row = indices(x)
    return column + 1 <= row


def every_second(x):
    count = torch.arange(0, 2 * x.shape[1], 2)
    return count[None, None, None, :] <= torch.arange(x.shape[1])[None, None, :, None]


def backwards(x):
    count = torch.arange(x.shape[1]).flip(0)
    return count[None, None, None, :] <= count[None, None, :, None]


def all_keys(x):
    column, row = indices(x)
    return (column <= row) | (column > row)


def no_causal_part(x):
    column, row = indices(x)
    return column > row - 6


def negated(x):
    return ~plain(x)


def a_global_token(x):
    column, row = indices(x)
    return (column <= row) | (column == 0)


def written(x):
    mask = plain(x)
    mask[..., 3:, 2] = False
    return mask.clone()


def written_before(x):
    column, row = indices(x)
    row[:, :, 0] = 4
    return column <= row


def in_place(x):
    mask = plain(x)
    mask &= (x[:1, :, 0] > 0)[:, None, None, :]
    return mask.clone()


def by_query(x):
    return plain(x) & (x[:1, :, 0] > 0)[:, None, :, None]


def by_head(x):
    return plain(x) & (x[:1, :2] > 0).any(-1)[:, :, None, None]


def added_a_little(x):
    return torch.where(plain(x), 0.0, -10.0)


def added_the_other_way_round(x):
    return torch.where(plain(x), -torch.inf, 0.0)


def scaled(x):
    return torch.where(plain(x), 1.0, -torch.inf)


def two_dimensional(x):
    count = torch.arange(x.shape[1])
    return count[None] <= count[:, None]


NOT_UNDERSTOOD = (
    *(one_less, one_more, moved_apart, every_second, backwards, all_keys, no_causal_part, negated, a_global_token),
    *(written, written_before, in_place, by_query, by_head, two_dimensional),
    *(added_a_little, added_the_other_way_round, scaled),
)


def found_in(program):
    ((gm, _),) = capture(program, lambda _: (torch.randn(2, 13, 4),), config=InnerQConfig())
    (mask,) = outputs(gm.graph)
    return causal_mask(mask, Writes(gm.graph))


@pytest.mark.parametrize("program", UNDERSTOOD, ids=lambda program: program.__name__)
def test_understood(program):
    found = found_in(program)
    assert found is not None and (len(found.shown), found.window) == UNDERSTOOD[program]
    x = torch.randn(2, 13, 4)
    count = torch.arange(13)
    wanted = count <= count[:, None]
    if found.window is not None:
        wanted = wanted & (count > count[:, None] - found.window)
    shown = (x[:1] if program is padded_for_all else x)[:, None, None, :, 0] > -1
    wanted = wanted & shown if found.shown else wanted.expand(1, 1, 13, 13)
    says = program(x)
    assert found.added == says.is_floating_point()
    says = says == 0 if found.added else says
    assert torch.equal(says.expand(2, 1, 13, 13), wanted.expand(2, 1, 13, 13))


@pytest.mark.parametrize("program", NOT_UNDERSTOOD, ids=lambda program: program.__name__)
def test_not_understood(program):
    assert found_in(program) is None
