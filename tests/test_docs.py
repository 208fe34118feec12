"""The tables of docs/configuration.md name what there is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from innerq_compile.cli.env import VARIABLES
from innerq_compile.config import field_names
from innerq_compile.passes import PIPELINE

ROOT = Path(__file__).resolve().parents[1]


def first_cells(text: str) -> str:
    return " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|"))


def test_every_option_and_variable_is_in_the_tables():
    named = first_cells((ROOT / "docs/configuration.md").read_text())
    for name in (*field_names(), *VARIABLES):
        assert re.search(rf"`{name}[`=]", named), name
    used = set()
    for folder in ("innerq_compile", "kernels", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= {*re.findall(r"""["'](INNERQ_[A-Z_]+)["']""", path.read_text())}
    assert used <= {*VARIABLES}, used - {*VARIABLES}


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_pass_is_in_the_debugging_page():
    text = (ROOT / "docs/debugging.md").read_text()
    for name in PIPELINE.names():
        assert f"`{name}`" in text, name


def test_bytes_on_each_rank():
    """The table of docs/parallel.md is what benchmarks/cache_bytes.py gives for the command beside it."""
    spec = importlib.util.spec_from_file_location("cache_bytes", ROOT / "benchmarks/cache_bytes.py")
    cache_bytes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cache_bytes)
    text = (ROOT / "docs/parallel.md").read_text()
    arguments = re.search(r"cache_bytes\.py (--ranks[^`]*)`", text)[1].split()
    for row in cache_bytes.rank_rows(cache_bytes.parsed(arguments)):
        assert f"| {' | '.join(row)} |" in text
