"""Documents to measure on: natural text and code that come with Python and its packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import sysconfig
from pathlib import Path

import torch

TOKENS = 1536


def _stdlib(name: str) -> str:
    return (Path(sysconfig.get_path("stdlib")) / name).read_text(encoding="utf-8", errors="replace")


def _topics(*names: str) -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in names)


def _docstrings(module: str, *more: str) -> str:
    """Docstrings of a module, its classes and functions, concatenated."""
    found = []
    for name in (module, *more):
        m = importlib.import_module(name)
        found.append(inspect.getdoc(m) or "")
        for _, item in sorted(vars(m).items()):
            if (inspect.isclass(item) or inspect.isroutine(item)) and (doc := inspect.getdoc(item)):
                found.append(doc)
    return "\n\n".join(dict.fromkeys(d for d in found if len(d) > 80))


def _about(package: str) -> str:
    return importlib.metadata.metadata(package).get_payload()


def _license(package: str) -> str:
    texts = [f for f in importlib.metadata.files(package) or [] if re.search(r"licen|notice|copying", f.name, re.I)]
    return "\n\n".join(f.read_text(encoding="utf-8") for f in texts)


#: Text by name. Formats are chosen on the first half; the second half is held out. Both halves have all kinds of text.
SOURCES = {
    "prose: with, try, for, while": lambda: _topics("with", "try", "for", "while"),
    "docstrings: datetime": lambda: _docstrings("datetime", "calendar", "logging", "argparse", "pathlib"),
    "code: argparse": lambda: _stdlib("argparse.py")[8000:],
    "prose: naming, objects": lambda: _topics("objects", "naming", "types"),
    "licence: torch": lambda: _license("torch"),
    "docstrings: numpy": lambda: _docstrings("numpy"),
    "prose: rich": lambda: _about("rich"),
    "code: textwrap": lambda: _stdlib("textwrap.py"),
    "docstrings: torch.nn": lambda: _docstrings("torch.nn"),
    "prose: pdb": lambda: _topics("debugger"),
    "code: heapq": lambda: _stdlib("heapq.py"),
    "prose: specialnames": lambda: _topics("specialnames"),
    # held out
    "prose: imports": lambda: _topics("import", "integers", "exceptions", "execmodel"),
    "docstrings: statistics": lambda: _docstrings("statistics", "decimal", "fractions"),
    "code: configparser": lambda: _stdlib("configparser.py")[6000:],
    "prose: string formats": lambda: _topics("formatstrings"),
    "licence: numpy": lambda: _license("numpy"),
    "docstrings: transformers": lambda: _docstrings("transformers.generation.configuration_utils"),
    "prose: transformers": lambda: _about("transformers"),
    "code: tarfile": lambda: _stdlib("tarfile.py")[20000:],
    "docstrings: asyncio": lambda: _docstrings("asyncio", "concurrent.futures", "threading"),
    "prose: operators": lambda: _topics("numeric-types", "comparisons", "slicings", "calls"),
    "code: mailbox": lambda: _stdlib("mailbox.py"),
    "prose: torch": lambda: _about("torch"),
}


def first_tokens(tokenizer) -> list[int]:
    """The tokens that the tokenizer puts in front of every text, without which Gemma gives nonsense."""
    return tokenizer("").input_ids


def documents(tokenizer, tokens: int = TOKENS) -> tuple[list[str], torch.Tensor]:
    """Names and tokens ``[N, tokens]`` of the documents that have at least so many tokens."""
    names, rows = [], []
    for name, make in SOURCES.items():
        try:
            text = make()
        except (ImportError, KeyError, OSError, importlib.metadata.PackageNotFoundError):
            continue
        ids = tokenizer(text, return_tensors="pt").input_ids[0]
        if ids.shape[0] >= tokens:
            names.append(name)
            rows.append(ids[:tokens])
    return names, torch.stack(rows)
