"""Tables that benchmarks print."""

from __future__ import annotations

import pytest

from tests.helpers.scripts import script

pytest.importorskip("rich")
tables = script("benchmarks/tables")


def test_numbers_are_aligned_right():
    made = tables.table(("row", "side", "ms"), [("1x4096", "innerq", "5.0"), ("1x32768", "innerq", "15.0")], words=2)
    assert [column.justify for column in made.columns] == ["left", "left", "right"]
    with tables.console.capture() as shown:
        tables.show(("row", "ms"), [("1x4096", "5.0"), ("1x32768", "15.0")], title="steps")
    assert "steps" in shown.get() and "│ 1x4096  │  5.0 │" in shown.get()
