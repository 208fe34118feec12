"""Regions of pages that scripts fill, and the command line that those scripts share.

    <!-- begin: NAME -->
    whatever the script gives for NAME
    <!-- end: NAME -->

`make_figures.py` and `make_api.py` rewrite the regions that they know, and leave the rest of a page as it is. With
`--check` they write nothing, and name the pages that are not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_REGION = re.compile(r"(?P<begin><!-- begin: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end: (?P=name) -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page of the documentation, those at the root of the repository first."""
    folders = (ROOT / name for name in ("docs", "examples", "benchmarks"))
    return [*sorted(ROOT.glob("*.md")), *(page for folder in folders for page in sorted(folder.rglob("*.md")))]


def filled(text: str, makers: Mapping[str, Callable[[], str]]) -> str:
    """``text`` with the regions that ``makers`` know filled anew."""

    def fill(match: re.Match[str]) -> str:
        maker = makers.get(match["name"])
        return match[0] if maker is None else f"{match['begin']}{maker().strip()}\n{match['end']}"

    return _REGION.sub(fill, text)


def names(text: str) -> list[str]:
    """The names of the regions in ``text``."""
    return [match["name"] for match in _REGION.finditer(text)]


def table(columns: list[str], rows: list[list[str]], right: bool = False) -> str:
    """A Markdown table; with ``right``, all columns but the first are flushed right."""
    line = ["---"] + ["---:" if right else "---"] * (len(columns) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, line, *rows))


def main(description: str, wanted: Callable[[], dict[Path, str]]) -> None:
    """Write the pages that ``wanted`` gives, or check them.

    Args:
        description: for ``--help``.
        wanted: gives the text that each page should have.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in wanted().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'written'}")
        if not check:
            path.write_text(wanted()[path], encoding="utf-8")
    sys.exit(bool(check and stale))
