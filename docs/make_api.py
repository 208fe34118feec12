"""Write docs/api.md, and the options of docs/configuration.md, from the docstrings of the exported names.

    python docs/make_api.py            # write them
    python docs/make_api.py --check    # exit with 1 where one is out of date

griffe reads signatures and docstrings from the source; nothing is imported. `pip install griffe` (it is in the extra
`test`).
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from regions import ROOT, filled, main, table

API = ROOT / "docs/api.md"
CONFIGURATION = ROOT / "docs/configuration.md"

#: The exported names, in the order of the page.
SECTIONS = {
    "Compiling": ("innerq", "InnerQConfig", "PRESETS", "warm_up", "WarmUp"),
    "Caches": ("InnerQTensor", "InnerQBuffer", "empty_cache"),
    "Inspecting": ("explain", "Explanation", "compiled_graphs", "clear_reports", "GraphReport", "dump_graphs"),
    "Errors": ("InnerQError", "UnsupportedOperation"),
}
#: Methods of theirs that only the package calls.
INTERNAL = ("GraphReport.has_run", "GraphReport.has_recorded")
EXPORTED = [name for names in SECTIONS.values() for name in names]

HEAD = """\
# API reference

Made from docstrings by `docs/make_api.py`; edit those. Every name is imported from `innerq_compile`.
"""


# --- markup ---------------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """The reStructuredText of docstrings as Markdown."""

    def role(match: re.Match[str]) -> str:
        name = match[1].lstrip("~").rpartition(".")[2] if match[1].startswith("~") else match[1]
        owner = name.partition(".")[0]
        return f"[`{name}`](#{name.lower().replace('.', '')})" if owner in EXPORTED else f"`{name}`"

    text = re.sub(r":(?:class|func|meth|data|attr|exc|mod):`([^`]+)`", role, text)
    text = re.sub(r"``docs/([\w-]+)\.md``", r"[\1](\1.md)", text)
    text = re.sub(r"``(docs/[\w./-]+|[\w./-]+\.py)``", r"`\1`", text)
    text = re.sub(r"\(arXiv ([\d.]+)\)", r"([arXiv \1](https://arxiv.org/abs/\1))", text)
    return re.sub(r"``(.+?)``", r"`\1`", text)


def paragraph(text: str) -> str:
    """A text of several lines in the lines of a page; lists and blank lines stay."""
    return markdown(text.strip())


def cell(text: str) -> str:
    """A text in a cell of a table: paragraphs and items of lists by line breaks."""
    text = re.sub(r"\n\s*- ", "<br>- ", markdown(text.strip()))
    text = re.sub(r"\n\s*\n", "<br>", text)
    return re.sub(r"\s+", " ", text).replace("<br> ", "<br>").replace("|", r"\|")


def code_cell(text: Any) -> str:
    """An annotation or default in a cell; empty where there is none."""
    return "" if text in (None, "") else f"`{text!s}`".replace("|", r"\|")


# --- sections of a docstring ----------------------------------------------------------------------------------------


def sections(item: griffe.Object) -> list[griffe.DocstringSection]:
    """The parsed sections of a docstring."""
    return item.docstring.parse("google")


def rendered(item: griffe.Object, fields: bool = True) -> Iterator[str]:
    """The sections of a docstring; ``fields=False`` leaves the attributes of a class out."""
    if item.docstring is None:
        return
    for section in sections(item):
        kind, value = section.kind.value, section.value
        if kind == "text":
            yield paragraph(value)
        elif kind == "parameters":
            yield "**Parameters**"
            rows = [
                [code_cell(each.name), code_cell(each.annotation), code_cell(_default(each)), cell(each.description)]
                for each in value
            ]
            yield table(["name", "type", "default", "description"], rows)
        elif kind == "attributes" and fields:
            yield "**Attributes**"
            rows = [[code_cell(each.name), code_cell(each.annotation), cell(each.description)] for each in value]
            yield table(["name", "type", "description"], rows)
        elif kind in ("returns", "yields"):
            yield f"**{kind.capitalize()}** {paragraph(_section_text(item, kind))}"
        elif kind == "raises":
            yield "**Raises**"
            rows = [[cell(f":exc:`{each.annotation}`"), cell(each.description)] for each in value]
            yield table(["error", "when"], rows)
        elif kind == "examples":
            yield from (_code(text) for _, text in value)
        elif kind == "admonition" and value.kind == "example":
            yield _code(value.contents)
        elif kind == "admonition":
            yield f"**{value.title or value.kind.capitalize()}** {paragraph(value.contents)}"


def _section_text(item: griffe.Object, kind: str) -> str:
    """The text of ``Returns:`` or ``Yields:``, of which griffe takes what is before a colon for a type."""
    lines = item.docstring.value.partition(f"\n{kind.capitalize()}:\n")[2].splitlines()
    return "\n".join(line.strip() for line in itertools.takewhile(lambda line: line.startswith(" "), lines))


def _default(parameter: Any) -> str:
    """The default of a parameter as its reader has to know it."""
    value = str(parameter.value or "")
    return "" if value.startswith("_") or value in ("{}", "()") else value


def _code(text: str) -> str:
    """An example, without the prompts of an interactive session."""
    lines = [re.sub(r"^(>>>|\.\.\.) ?", "", line) for line in text.strip().splitlines()]
    return "```python\n" + "\n".join(lines) + "\n```"


# --- signatures -----------------------------------------------------------------------------------------------------


def signature(function: griffe.Function, name: str) -> str:
    """A signature without annotations, which stand in the table below it."""
    parts, star, positional_only = [], False, False
    for parameter in function.parameters:
        kind = parameter.kind.value
        if parameter.name in ("self", "cls"):
            continue
        if positional_only and kind != "positional-only":
            parts.append("/")
        positional_only = kind == "positional-only"
        if kind == "keyword-only" and not star:
            parts.append("*")
        star = star or kind in ("keyword-only", "variadic positional")
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        default = "" if prefix or parameter.default is None else f"={parameter.default}"
        parts.append(f"{prefix}{parameter.name}{'=...' if default.startswith('=_') else default}")
    if positional_only:
        parts.append("/")
    line = f"{name}({', '.join(parts)})"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"
    return f"```python\n{line}\n```"


def members(cls: griffe.Class) -> tuple[list[griffe.Attribute], list[griffe.Function]]:
    """Properties and methods that a class documents itself."""
    own = [member for name, member in cls.members.items() if not name.startswith("_") and member.docstring]
    own = [member for member in own if f"{cls.name}.{member.name}" not in INTERNAL]
    properties = [member for member in own if member.is_attribute and "property" in member.labels]
    return properties, [member for member in own if member.is_function]


def class_text(cls: griffe.Class) -> Iterator[str]:
    """A class: its docstring, properties and methods."""
    options = cls.name == "InnerQConfig"
    bases = [str(base) for base in cls.bases if str(base) in EXPORTED]
    if bases:
        yield f"Subclass of {', '.join(f'[`{base}`](#{base.lower()})' for base in bases)}."
    yield from rendered(cls, fields=not options)
    if options:
        yield "Its fields are described in [configuration](configuration.md#options)."
    properties, methods = members(cls)
    if properties:
        yield "**Properties**"
        rows = [[code_cell(each.name), code_cell(each.annotation), cell(each.docstring.value)] for each in properties]
        yield table(["name", "type", "description"], rows)
    short = [method for method in methods if not {each.name for each in method.parameters} - {"self", "cls"}]
    if short:
        yield "**Methods without arguments**"
        yield table(["name", "description"], [[f"`{each.name}()`", cell(each.docstring.value)] for each in short])
    for method in methods:
        if method in short:
            continue
        static = {"staticmethod", "classmethod"} & method.labels
        yield f"#### {cls.name}.{method.name}"
        yield signature(method, f"{cls.name}.{method.name}" if static else method.name)
        yield from rendered(method)


def constant_text(attribute: griffe.Attribute) -> Iterator[str]:
    """A constant, whose comment in the source is for those who edit it."""
    yield f"```python\n{attribute.name}: {attribute.annotation}\n```"
    yield (
        "The presets by name, each a mapping of fields of [`InnerQConfig`](#innerqconfig): see "
        "[configuration](configuration.md#presets)."
    )


def package() -> griffe.Module:
    """The package, as griffe reads it."""
    return griffe.load("innerq_compile", search_paths=[ROOT], docstring_parser="google")


def target(module: griffe.Module, name: str) -> Any:
    """What an exported name stands for."""
    item = module[name]
    return item.final_target if item.is_alias else item


def api() -> str:
    """The text of docs/api.md."""
    module, parts = package(), [HEAD]
    parts += [
        "\n".join(
            f"- {title}: {', '.join(f'[`{name}`](#{name.lower()})' for name in names)}"
            for title, names in SECTIONS.items()
        )
    ]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}")
        for name in names:
            item = target(module, name)
            parts.append(f"### {name}")
            if item.is_function:
                parts += [signature(item, name), *rendered(item)]
            elif item.is_class:
                parts += class_text(item)
            else:
                parts += constant_text(item)
    return formatted("\n\n".join(part.strip() for part in parts) + "\n")


def formatted(page: str) -> str:
    """A page whose blocks of code are as ruff, which checks them too, formats them."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(API), "-"]
    return subprocess.run(command, input=page, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def options() -> str:
    """The options of a config, a heading each, from the docstring of InnerQConfig."""
    config = target(package(), "InnerQConfig")
    parts = []
    for section in sections(config):
        if section.kind.value == "attributes":
            for each in section.value:
                default = config.members[each.name].value
                parts += [f"### {each.name}", f"`{each.annotation}`, default `{default}`", paragraph(each.description)]
    return "\n\n".join(parts)


def wanted() -> dict[Path, str]:
    """The text that each page should have."""
    return {API: api(), CONFIGURATION: filled(CONFIGURATION.read_text(encoding="utf-8"), {"options": options})}


if __name__ == "__main__":
    main(__doc__.partition("\n")[0], wanted)
