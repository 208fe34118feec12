"""What the fidelity benchmark says about its figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from emulation import page
from emulation.known import known_formats
from fidelity import BASELINES, SERIES, compared

from innerq_compile import PRESETS


def row(name: str, kl: float, key_bits: float = 3.5, value_bits: float = 3.5) -> dict:
    return {"name": name, "kl": kl, "key_bits": key_bits, "value_bits": value_bits}


def test_baselines_are_measured():
    names = {f.name for f in known_formats()}
    assert {*BASELINES, *BASELINES.values()} <= names
    assert {f"preset {name}" for name in PRESETS if name != "lossless"} <= names
    assert all(name.split()[0] in SERIES for name in names)


def test_presets_are_compared_with_the_paper():
    paper, preset = row("paper innerq_base 3/3", 0.1), row("preset base", 0.03)
    [entry] = compared([paper, preset])
    assert (entry["baseline"], entry["bits"]) == ("paper innerq_base 3/3", 3.5)
    assert entry["ratio"] == pytest.approx(0.3)
    assert "ratio" not in compared([preset])[0], "a ratio without a baseline"


def test_the_peer_is_the_best_of_no_more_bits():
    peers = [
        row("kivi-like worse", 0.2),
        row("kivi-like better", 0.1, 4.0, 3.0),
        row("kivi-like larger", 0.01, 4.0, 4.0),
    ]
    [entry] = compared([row("preset base", 0.05), *peers])
    assert (entry["peer"], entry["peer_bits"], entry["peer_ratio"]) == ("kivi-like better", 3.5, 0.5)


def result(**changes) -> dict:
    rows = [row("paper innerq_base 3/3", 0.1), row("preset base", 0.02), row("kivi-like 2/2 g32", 0.05, 3.0, 3.0)]
    rows = [{**r, "kl_held_out": None, "top1": 0.9, "nll": 2.0} for r in rows]
    task = {"needle": {"right": 3, "kept": 2, "asked": 4}}
    head = {"model": "A", "documents": ["x"], "positions": 1000, "device": "cpu", "torch": "2", "layers": 4}
    head |= {"quantized_layers": 1, "nll_full": [1.9], "rows": rows, "compared": compared(rows)}
    return head | {"retrieval": {"full precision": task, "preset base": task}} | changes


def test_results_stand_between_the_marks_of_the_page(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nbehind\n")
    for _ in range(2):  # a second run replaces the first
        page.write(file, [result(), result(model="B")])
    text = file.read_text()
    assert text.startswith("before\n") and text.endswith("\nbehind\n") and "old" not in text
    assert [text.count(f"### {name}\n") for name in "AB"] == [1, 1]
    assert "| base | 3.50 | paper innerq_base 3/3 | 0.20 |" in text
    assert "| preset base | 3 of 4, 67% kept |" in text
    file.write_text("no marks")
    with pytest.raises(SystemExit, match="once"):
        page.write(file, [result()])
