"""Writes the files of a dump (``dump.py``): a folder for each graph, and one HTML page for all of them."""

from __future__ import annotations

import json
import os
import pprint
import threading
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ..errors import InnerQError
from ..logs import graph_text
from ..runtime.report import GraphReport
from .pages import dump_page
from .reproduce import describe_input
from .snapshot import Snapshot


def make_folder(path: Path) -> Path:
    """Create the directory ``path`` if needed. Returns ``path``.

    Raises:
        InnerQError: if it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InnerQError(
            f"graphs cannot be written to {str(path)!r}: {error.strerror}; name a directory that can be written"
        ) from None
    return path


def numbered_folder(target: Path, index: int) -> Path:
    """Create the folder of a graph. If its number is taken by a graph of another process, the next free one is used."""
    taken = [int(path.name[6:]) for path in target.glob("graph_*") if path.name[6:].isdigit()]
    while True:
        number = index if index not in taken else max(taken) + 1
        folder = target / f"graph_{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # created by another process in the meantime
            taken.append(number)
            continue
        return folder


def write_codes(folder: Path, snapshots: list[Snapshot], handed: Snapshot, prelude: GraphModule | None) -> None:
    """Write the code of the graph after each pass, as ``handed`` to Inductor, and of its prelude."""
    for number, shot in enumerate(snapshots):
        (folder / f"{number:02d}_{shot.name}.py").write_text(shot.readable + "\n", encoding="utf-8")
    (folder / "inductor_input.py").write_text(handed.readable + "\n", encoding="utf-8")
    if prelude is not None:
        (folder / "prelude.py").write_text(graph_text(prelude) + "\n", encoding="utf-8")


def output_files(paths: list[str]) -> dict[str, str]:
    """The files of a dump that hold Inductor's output, with the paths that they are copied from.

    Args:
        paths: the wrapper modules that Inductor loaded: one, or one for each kind of region. May have duplicates.
    """
    different = list(dict.fromkeys(paths))
    if len(different) == 1:
        return {"output_code.py": different[0]}
    return {f"output_code_{number}.py": path for number, path in enumerate(different, 1)}


def write_graph_json(
    folder: Path,
    report: GraphReport,
    options: dict[str, Any],
    snapshots: list[Snapshot],
    output_code: list[str],
    failure: str,
) -> None:
    """Write ``graph.json``. ``failure`` is the traceback of a compilation that failed, or an empty string."""
    shown = report.to_dict()
    content = {
        "report": shown,
        "headline": report.headline,
        "options": options,
        "matches": shown["layers"],
        "output_code": output_code,
        "output_files": output_files(output_code),
        "failure": failure,
        "snapshots": [
            {"name": shot.name, "lines": [[line.text, line.where] for line in shot.lines]} for shot in snapshots
        ],
    }
    _write_whole(folder / "graph.json", json.dumps(content, indent=1))


def write_index(target: Path) -> None:
    """Write ``index.html`` from all ``graph.json`` files in ``target``."""
    graphs = []
    for path in sorted(target.glob("graph_*/graph.json")):
        graphs.append({"folder": path.parent.name, **json.loads(path.read_text(encoding="utf-8"))})
    _write_whole(target / "index.html", dump_page(graphs))


def _write_whole(path: Path, text: str) -> None:
    """Write a file that other processes may read or write at the same time: they find all of it or none."""
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    own.write_text(text, encoding="utf-8")
    own.replace(path)


def write_reproducer(
    folder: Path, program: str, options: dict[str, Any], args: tuple[Any, ...], examples: list[Any]
) -> None:
    """Write ``repro.py``, which runs the captured graph on inputs like ``args``.

    Args:
        folder: the folder of the graph.
        program: the source of the graph's module class, see ``snapshot.module_source``.
        options: the options of the backend.
        args: the arguments of the graph's first call.
        examples: the example values of its placeholders.
    """
    saved: list[torch.Tensor] = []
    inputs = [describe_input(value, example, saved) for value, example in zip(args, examples, strict=True)]
    torch.save(saved, folder / "inputs.pt")
    text = _REPRODUCER.format(
        folder=folder.name,
        program=program,
        inputs=pprint.pformat(inputs, width=116, sort_dicts=False),
        options=pprint.pformat(options, width=116, sort_dicts=False),
    )
    (folder / "repro.py").write_text(text, encoding="utf-8")


_REPRODUCER = '''\
"""{folder}, as Dynamo captured it. Run it: python repro.py [--option NAME=VALUE] [--device cpu]

Integer tensors and small tensors have the values of the first call; large ones are random, with the same mean and
standard deviation.
"""

from math import inf, nan  # noqa: F401
from pathlib import Path

import torch
import torch.fx._pytree as fx_pytree  # noqa: F401
from torch import device  # noqa: F401

from innerq_compile.inspect.reproduce import reproduce

NoneType = type(None)
{program}


INPUTS = {inputs}

OPTIONS = {options}

if __name__ == "__main__":
    reproduce(Graph(), INPUTS, OPTIONS, Path(__file__).parent)
'''
