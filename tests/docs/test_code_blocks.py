"""The Python code of the pages for users runs, with a tiny model in place of the real one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/getting-started.md", "docs/configuration.md", "docs/troubleshooting.md")
#: The model that pages load from the hub.
MODEL = '"HuggingFaceTB/SmolLM2-135M-Instruct"'

#: A block of Python, and the comment in front of it that says what it needs.
BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>[\w ]+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def small_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model, whose tokenizer gives what that of a Llama gives."""
    folder = tmp_path_factory.mktemp("documented") / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps(settings))
    return folder


def blocks(page: str) -> list[str]:
    """The blocks of a page that run on a CPU, each with as many empty lines in front as the page has lines."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        "\n" * text.count("\n", 0, match.start("code")) + match["code"]
        for match in BLOCK.finditer(text)
        if match["needs"] != "cuda"
    ]


@pytest.mark.parametrize("page", PAGES)
def test_code_of_pages_runs(page, small_model, graphs_as_they_are, capsys):
    names = {"__name__": "page"}
    for code in blocks(page):
        code = code.replace(MODEL, repr(str(small_model)))
        exec(compile(code, str(ROOT / page), "exec"), names)


def test_pages_have_code_that_runs():
    assert len(blocks("README.md")) >= 2 and len(blocks("docs/getting-started.md")) >= 7
