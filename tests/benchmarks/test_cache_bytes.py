"""The bytes of a rank, and the page that shows them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from cache_bytes import cache_bytes, heads_of_rank  # noqa: E402


def test_the_page_shows_what_the_function_says():
    lines = (ROOT / "docs/parallel.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["1", "2", "4", "8", "16"]
    base, tiny = (cache_bytes(preset, 131072, 128, torch.float16) for preset in ("base", "tiny"))
    for ranks, heads, *shown in rows[2:]:
        assert int(heads) == heads_of_rank(8, int(ranks))
        assert shown == [f"{size * int(heads) * 80 / 2**30:.2f}" for size in (*base, *tiny[1:])]


@pytest.mark.parametrize("ranks", [0, 3, 12])
def test_ranks_that_share_no_heads_are_an_error(ranks):
    with pytest.raises(ValueError, match=f"ranks={ranks}"):
        heads_of_rank(8, ranks)
