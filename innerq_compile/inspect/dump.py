"""Graph dumps: :func:`dump_graphs`, and ``INNERQ_DUMP=dir`` in the environment.

    dir/index.html                   all graphs, their passes side by side, on one page
    dir/graph_003/00_captured.py     the graph as Dynamo captured it
    dir/graph_003/01_unwrap_caches.py ...   after each pass
    dir/graph_003/inductor_input.py  as it was handed to Inductor; prelude.py, if lengths were taken out
    dir/graph_003/output_code.py     what Inductor made of it
    dir/graph_003/graph.json         the report, the matches, where the output code lies, what index.html shows
    dir/graph_003/repro.py           runs the captured graph, on inputs like those of its first call

The passes know nothing of it: the backend shows :class:`GraphDump` the graph behind each of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import json
import logging
import os
import pprint
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ..config import InnerQConfig, field_names
from ..errors import InnerQError
from ..kernels.internals import inductor
from ..kernels.internals.graphs import node_of_line
from ..kernels.internals.logs import artifact_logger
from ..passes import PassContext
from ..passes.graph.locations import source_line
from .logs import GRAPHS, trace_text
from .report import GraphReport, to_dict

VARIABLE = "INNERQ_DUMP"

log = logging.getLogger(__name__)
graphs_log = artifact_logger("innerq_compile", GRAPHS)

_directory: Path | None = None


@contextlib.contextmanager
def dump_graphs(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Write every graph that is compiled inside the ``with`` block to ``directory``.

    Graphs that were compiled before are not compiled again: call ``torch._dynamo.reset()`` first to see them too.
    Yields the path of the page ``index.html``, which is there as soon as a graph has been compiled.

    Raises:
        InnerQError: if the directory cannot be made.
    """
    global _directory
    before, _directory = _directory, _made(directory)
    try:
        yield _directory / "index.html"
    finally:
        _directory = before


def _made(directory: str | os.PathLike[str]) -> Path:
    path = Path(directory).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InnerQError(
            f"graphs cannot be written to {str(directory)!r}: {error.strerror}; name a directory that can be written"
        ) from None
    return path


def _target() -> Path | None:
    if _directory is not None:
        return _directory
    named = os.environ.get(VARIABLE)
    return _made(named) if named else None


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a graph's code: its text, and the line of the user's program that it comes from."""

    text: str
    where: str = ""


@dataclasses.dataclass
class Snapshot:
    """A graph at one point of the pipeline: its name, its lines, its code with types and sources."""

    name: str
    lines: list[Line]
    readable: str


class GraphDump:
    """What is collected about one graph, from capture to the first call."""

    def __init__(self, gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any], target: Path | None):
        self.target = target
        self.options = {
            **{name: getattr(config, name) for name in field_names() if name != "strict"},
            **{name: value for name, value in inductor_options.items() if isinstance(value, (bool, int, float, str))},
        }
        self.snapshots = [snapshot("captured", gm)]
        self.program = _program(gm)
        self.examples = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
        self.folder: Path | None = None

    def after_pass(self, name: str, gm: GraphModule) -> None:
        """Take the graph as it is behind the pass ``name``."""
        self.snapshots.append(snapshot(name, gm))


def begin_dump(gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any]) -> GraphDump | None:
    """A dump of the captured graph ``gm``, if anyone wants one."""
    target = _target()
    if target is None and not graphs_log.isEnabledFor(logging.DEBUG):
        return None
    return GraphDump(gm, config, inductor_options, target)


@contextlib.contextmanager
def dumped(
    dump: GraphDump | None, gm: GraphModule, report: GraphReport, context: PassContext | None = None
) -> Iterator[None]:
    """Around Inductor's compilation of ``gm``: writes what is known before, and what came out."""
    trace_text(f"innerq_graph_{report.index}", lambda: _readable(gm))
    if dump is None:
        yield
        return
    graphs_log.debug("%s", _as_text(dump, report))
    if dump.target is None:
        yield
        return
    dump.folder = folder = _numbered(dump.target, report.index)
    handed = snapshot("handed to Inductor", gm)
    prelude = context.prelude.graph if context is not None and context.prelude is not None else None
    _write_codes(folder, dump.snapshots, handed, prelude)
    known = inductor.wrapper_files()
    failure = ""
    try:
        with inductor.compiled_at_once():
            yield
    except BaseException:
        failure = traceback.format_exc()
        raise
    finally:
        output_code = [path for path in inductor.wrapper_files() if path not in known]
        if output_code:
            shutil.copyfile(output_code[-1], folder / "output_code.py")
        _write_graph(dump, handed, report, output_code, failure)
        write_index(dump.target)
        log.info("graph %d: written to %s", report.index, folder)


def captured_inputs(dump: GraphDump | None, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """``compiled``, which writes the reproducer when it is first called."""
    if dump is None or dump.folder is None:
        return compiled
    written = False

    def call(*args: Any) -> Any:
        nonlocal written
        if not written:
            written = True
            _write_reproducer(dump, args)
        return compiled(*args)

    return call


# --- code -----------------------------------------------------------------------------------------------------------


def snapshot(name: str, gm: GraphModule) -> Snapshot:
    """The graph as it is now, as text."""
    code = gm.graph.python_code("self")
    nodes = list(gm.graph.nodes)
    lines = []
    for number, text in enumerate(code.src.splitlines()):
        text = text.split(";  ")[0].rstrip()  # no clearing of variables
        if not text.strip() or re.fullmatch(r"\s*l_(\w+) = L_\1", text) or text.startswith("def forward"):
            continue
        index = node_of_line(code, number)
        lines.append(Line(_short(text.strip()), source_line(nodes[index]) if index is not None else ""))
    return Snapshot(name, lines, _readable(gm))


def _readable(gm: GraphModule) -> str:
    gm.recompile()
    return gm.print_readable(print_output=False)


def _short(text: str) -> str:
    """Names of parameters as in the program: ``self.layers.0.q.weight``, not ``l_self_modules_layers_...``."""

    def path(match: re.Match[str]) -> str:
        return "self." + re.sub(r"_?(modules|parameters|buffers)_", ".", match[1]).strip("._").replace("_.", ".")

    return re.sub(r"\b[lL]_self_((?:modules|parameters|buffers)_\w+?)_(?=\b)", path, text)


def changed(before: Snapshot, after: Snapshot) -> bool:
    """Whether a pass has changed the graph."""
    return [line.text for line in before.lines] != [line.text for line in after.lines]


def _as_text(dump: GraphDump, report: GraphReport) -> str:
    """For the log: the captured graph, and what each pass took out and put in."""
    parts = [report.headline, "captured:", *(f"    {line.text}" for line in dump.snapshots[0].lines)]
    for before, after in itertools.pairwise(dump.snapshots):
        if changed(before, after):
            parts.append(f"{after.name}:")
            found = difflib.ndiff([line.text for line in before.lines], [line.text for line in after.lines])
            parts += [f"    {line}" for line in found if line[0] in "+-"]
    return "\n".join(parts)


def _program(gm: GraphModule) -> str:
    """The graph as the source of a module class."""
    code = gm.graph.python_code("self")
    names = {"torch", "device", "inf", "nan", "NoneType", "fx_pytree"}
    imports = []
    for name, value in code.globals.items():
        module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if name in names or not module or not qualified or "." in qualified:
            continue
        imports.append(f"from {module} import {qualified} as {name}")
    body = "\n".join(f"    {line}" if line.strip() else "" for line in code.src.strip().splitlines())
    return "\n".join([*imports, "", "", "class Graph(torch.nn.Module):", body])


# --- files ----------------------------------------------------------------------------------------------------------


def _numbered(target: Path, index: int) -> Path:
    """A new folder: the graph's number, or the next free one where an earlier process has left its graphs."""
    taken = [int(path.name[6:]) for path in target.glob("graph_*") if path.name[6:].isdigit()]
    while True:
        number = index if index not in taken else max(taken) + 1
        folder = target / f"graph_{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process, just now
            taken.append(number)
            continue
        return folder


def _write_codes(folder: Path, snapshots: list[Snapshot], handed: Snapshot, prelude: GraphModule | None) -> None:
    for number, shot in enumerate(snapshots):
        (folder / f"{number:02d}_{shot.name}.py").write_text(shot.readable + "\n", encoding="utf-8")
    (folder / "inductor_input.py").write_text(handed.readable + "\n", encoding="utf-8")
    if prelude is not None:
        (folder / "prelude.py").write_text(_readable(prelude) + "\n", encoding="utf-8")


def _write_graph(dump: GraphDump, handed: Snapshot, report: GraphReport, output_code: list[str], failure: str) -> None:
    shots = [*dump.snapshots, handed]
    content = {
        "report": to_dict(report),
        "headline": report.headline,
        "options": dump.options,
        "matches": to_dict(report)["layers"],
        "output_code": output_code,
        "failure": failure,
        "snapshots": [{"name": shot.name, "lines": [[line.text, line.where] for line in shot.lines]} for shot in shots],
    }
    (dump.folder / "graph.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_index(target: Path) -> None:
    """Write ``index.html`` from the graphs that lie in ``target``."""
    from .pages import dump_page

    graphs = []
    for path in sorted(target.glob("graph_*/graph.json")):
        graphs.append({"folder": path.parent.name, **json.loads(path.read_text(encoding="utf-8"))})
    (target / "index.html").write_text(dump_page(graphs), encoding="utf-8")


def _write_reproducer(dump: GraphDump, args: tuple[Any, ...]) -> None:
    from .reproduce import describe_input

    saved: list[torch.Tensor] = []
    inputs = [describe_input(value, example, saved) for value, example in zip(args, dump.examples, strict=True)]
    torch.save(saved, dump.folder / "inputs.pt")
    (dump.folder / "repro.py").write_text(
        _REPRODUCER.format(
            folder=dump.folder.name,
            program=dump.program,
            inputs=pprint.pformat(inputs, width=116, sort_dicts=False),
            options=pprint.pformat(dump.options, width=116, sort_dicts=False),
        ),
        encoding="utf-8",
    )


_REPRODUCER = '''\
"""{folder}, as Dynamo captured it. Run it: python repro.py [--option NAME=VALUE] [--device cpu]

Integers and small tensors have the values of the first call; large ones are random, of the same mean and spread.
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
