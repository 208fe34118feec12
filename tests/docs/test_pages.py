"""Links between pages lead somewhere, and pages speak of the project as it is."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from innerq_compile.passes import PIPELINE
from tests.helpers import support_matrix
from tests.helpers.scripts import ROOT, script

PAGES = script("docs/regions").pages()
LAB = ROOT / "docs/lab"

#: Words of plans and of earlier versions; what was tried and when stands in docs/lab.
HISTORY = re.compile(
    r"\b(targets?|issues?|used to (?:be|have|take)|no longer|at an earlier|earlier versions?|previously|formerly"
    r"|(?:first|second|third) version)\b",
    re.I,
)

LINK = re.compile(r"\]\(([^)\s]+)\)")


#: A path in the repository, in code; words in capitals stand for a name.
PATH = re.compile(r"`((?:benchmarks|docs|examples|innerq_compile|kernels|passes|tests)/[\w./-]+)`")


def prose(text: str) -> str:
    """A page without blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (numbered := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(numbered)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        leads_to = page if not path else (page.parent / path).resolve()
        assert leads_to.exists(), link
        assert not anchor or anchor in anchors(leads_to), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_speak_of_the_project_as_it_is(page):
    if LAB not in page.parents and page.name != "CHANGELOG.md":
        text = re.sub(r"`[^`]*`", "", prose(page.read_text(encoding="utf-8")))
        assert [match[0] for match in HISTORY.finditer(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page):
    if LAB not in page.parents:
        paths = PATH.findall(page.read_text(encoding="utf-8"))
        assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(index)}
    assert {page for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"} <= linked


def test_every_example_is_listed():
    text = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert path.name in text, path.name


def test_every_pass_is_in_the_debugging_page():
    text = (ROOT / "docs/debugging.md").read_text(encoding="utf-8")
    for name in PIPELINE.names():
        assert f"`{name}`" in text, name


def test_families_are_counted():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, found = support_matrix.read(support_matrix.FOUND)
    found = [row for row in found if not row.is_variant]
    whole = sum(row.is_rewritten and not row.problem and not row.fails for row in found)
    assert f"{len(found)} families of transformers are tried, and all attention of {whole} is rewritten" in text


def test_bytes_on_each_rank():
    """The table of docs/parallel.md is what benchmarks/cache_bytes.py gives for the command beside it."""
    cache_bytes = script("benchmarks/cache_bytes")
    text = (ROOT / "docs/parallel.md").read_text(encoding="utf-8")
    arguments = re.search(r"cache_bytes\.py (--ranks[^`]*)`", text)[1].split()
    for row in cache_bytes.rank_rows(cache_bytes.parsed(arguments)):
        assert f"| {' | '.join(row)} |" in text
