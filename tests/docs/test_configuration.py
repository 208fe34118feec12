"""docs/configuration.md names every option and every environment variable."""

from __future__ import annotations

import re
from pathlib import Path

from innerq_compile.cli.env import VARIABLES
from innerq_compile.config import field_names

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")


def test_every_option_has_a_heading():
    headings = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert headings == field_names()


def test_every_variable_is_in_the_table():
    for name in VARIABLES:
        assert re.search(rf"^\| (?:`[^|]*, )?`{name}[`=]", PAGE, re.MULTILINE), name


def test_every_variable_of_the_source_is_known():
    used = set()
    for folder in ("innerq_compile", "kernels", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= {*re.findall(r"""["'](INNERQ_[A-Z_]+)["']""", path.read_text(encoding="utf-8"))}
    assert used <= {*VARIABLES}, used - {*VARIABLES}
