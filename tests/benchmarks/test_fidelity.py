"""What the fidelity benchmark says about its figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from emulation.known import known_formats
from fidelity import SERIES, TARGETS, compared

from innerq_compile import PRESETS


def row(name: str, kl: float, key_bits: float = 3.5, value_bits: float = 3.5) -> dict:
    return {"name": name, "kl": kl, "key_bits": key_bits, "value_bits": value_bits}


def test_targets_are_for_formats_that_are_measured():
    names = {f.name for f in known_formats()}
    assert set(TARGETS) | {against for against, *_ in TARGETS.values()} <= names
    assert {f"preset {name}" for name in PRESETS if name != "lossless"} <= names
    assert all(name.split()[0] in SERIES for name in names)


@pytest.mark.parametrize(("kl", "verdict"), [(0.030, "target met"), (0.042, "at least met"), (0.043, "missed")])
def test_presets_are_held_against_the_paper(kl, verdict):
    paper, preset = row("paper innerq_base 3/3", 0.1), row("preset base", kl)
    [entry] = compared([paper, preset])
    assert (entry["verdict"], entry["bits"]) == (verdict, 3.5)
    assert entry["ratio"] == pytest.approx(kl / 0.1)
    assert "verdict" not in compared([preset])[0], "a verdict without what it is held against"


def test_the_peer_is_the_best_of_no_more_bits():
    peers = [
        row("kivi-like worse", 0.2),
        row("kivi-like better", 0.1, 4.0, 3.0),
        row("kivi-like larger", 0.01, 4.0, 4.0),
    ]
    [entry] = compared([row("preset base", 0.05), *peers])
    assert (entry["peer"], entry["peer_bits"], entry["peer_ratio"]) == ("kivi-like better", 3.5, 0.5)
