"""What scripts write into the pages is up to date."""

from __future__ import annotations

import pytest

import innerq_compile
from tests.helpers.scripts import ROOT, script

regions = script("docs/regions")


def stale(name: str) -> list[str]:
    wanted = script(name).wanted()
    return [str(path.relative_to(ROOT)) for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]


def test_tables_made_from_data():
    pytest.importorskip("tomllib")
    assert stale("docs/make_figures") == [], "run python docs/make_figures.py"


def test_pages_made_from_docstrings():
    pytest.importorskip("griffe")
    assert stale("docs/make_api") == [], "run python docs/make_api.py"


def test_commands():
    assert stale("docs/make_cli") == [], "run python docs/make_cli.py"


def test_api_page_has_the_exported_names():
    pytest.importorskip("griffe")
    assert sorted(script("docs/make_api").EXPORTED) == sorted(innerq_compile.__all__)


def test_each_region_is_filled_by_a_script():
    pytest.importorskip("tomllib")
    known = {*script("docs/make_figures").REGIONS, "options", "commands", "families"}
    for page in regions.pages():
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- begin: ") == text.count("<!-- end: ") == len(regions.names(text)), page.name
        assert {*regions.names(text)} <= known, page.name


def test_a_region_is_filled_and_the_rest_stays():
    text = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n<!-- begin: y -->\n<!-- end: y -->\n"
    new = regions.filled(text, {"x": lambda: "new\n"})
    assert new == "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n<!-- begin: y -->\n<!-- end: y -->\n"
    assert regions.names(new) == ["x", "y"]
