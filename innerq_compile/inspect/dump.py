"""Graph dumps, by :func:`dump_graphs` or the environment variable ``INNERQ_DUMP=dir``.

    dir/index.html                        all graphs on one page, each pass side by side
    dir/graph_003/00_captured.py          the graph as Dynamo captured it
    dir/graph_003/01_unwrap_caches.py ... the graph after each pass
    dir/graph_003/inductor_input.py       the graph that Inductor compiled; prelude.py if it has a prelude
    dir/graph_003/output_code.py          Inductor's output; of a graph in regions output_code_1.py, ..., one of a kind
    dir/graph_003/graph.json              the report, the path of the output code, and the data of index.html
    dir/graph_003/repro.py                runs the captured graph on inputs like those of its first call

The compiler does not import this module: :func:`install` registers :class:`GraphDump` as an observer of compilations
(``compiler/observers.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from ..compiler import observers
from ..config import InnerQConfig, field_names
from ..kernels.internals import inductor
from ..kernels.internals.logs import artifact_logger
from ..logs import GRAPHS
from ..passes.graph.values import example_or_none
from ..passes.pipeline import CAPTURED
from ..runtime.report import GraphReport
from ..scoped import Scoped
from .dump_files import (
    make_folder,
    numbered_folder,
    output_files,
    write_codes,
    write_graph_json,
    write_index,
    write_reproducer,
)
from .snapshot import Snapshot, changes, module_source, snapshot

VARIABLE = "INNERQ_DUMP"

log = logging.getLogger(__name__)
graphs_log = artifact_logger("innerq_compile", GRAPHS)

_FOLDERS: Scoped[Path] = Scoped("innerq_dump_folders")


@contextlib.contextmanager
def dump_graphs(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Write every graph that is compiled inside the ``with`` block to a directory.

    Graphs that were compiled before are not compiled again: call ``torch._dynamo.reset()`` first to dump them too.
    Blocks of several threads may overlap: each writes the graphs that its thread compiles. A thread without a block,
    such as one started inside the block, writes to the block that was opened last.

    Args:
        directory: Where to write; it is created if needed.

    Yields:
        The path of ``index.html``. The file exists once a graph has been compiled.

    Raises:
        InnerQError: If the directory cannot be created.

    Example:
        >>> with dump_graphs("/tmp/graphs") as page:
        ...     model.generate(**inputs)
    """
    install()
    folder = make_folder(Path(directory).absolute())
    with _FOLDERS.holding(folder):
        yield folder / "index.html"


def install() -> None:
    """Register the dumps as an observer of compilations."""
    observers.install(_begin_dump)


def _begin_dump(gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any]) -> GraphDump | None:
    target = _target()
    if target is None and not graphs_log.isEnabledFor(logging.DEBUG):
        return None
    return GraphDump(gm, config, inductor_options, target)


def _target() -> Path | None:
    folders = _FOLDERS.values()
    if folders:
        return folders[-1]
    named = os.environ.get(VARIABLE)
    return make_folder(Path(named).absolute()) if named else None


class GraphDump:
    """The observer of one graph, from its capture to its first call.

    Args:
        gm: The graph as captured.
        config: The config that it is compiled with.
        inductor_options: The options of Inductor that it is compiled with.
        target: The directory of the dump; None if the graph is only logged.
    """

    def __init__(
        self, gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any], target: Path | None
    ) -> None:
        self._target = target
        self._options = {
            **{name: getattr(config, name) for name in field_names() if name != "strict"},
            **{name: value for name, value in inductor_options.items() if isinstance(value, (bool, int, float, str))},
        }
        self._snapshots: list[Snapshot] = []
        self._program = module_source(gm)
        self._examples = [example_or_none(node) for node in gm.graph.find_nodes(op="placeholder")]
        self._folder: Path | None = None

    def after_pass(self, name: str, gm: GraphModule) -> None:
        """Record the graph as it is after the pass ``name``."""
        if name == CAPTURED:  # the first call, or the pipeline starts over on a new copy
            self._snapshots.clear()
        self._snapshots.append(snapshot(name, gm))

    @contextlib.contextmanager
    def compiling(self, gm: GraphModule, report: GraphReport, prelude: GraphModule | None) -> Iterator[None]:
        """Wraps Inductor's compilation of ``gm``: writes its input before, and its output after."""
        captured = [f"    {line}" for line in self._snapshots[0].texts]
        graphs_log.debug("%s", "\n".join([report.headline, "captured:", *captured, *changes(self._snapshots)]))
        if self._target is None:
            yield
            return
        folder = self._folder = numbered_folder(self._target, report.index)
        handed = snapshot("handed to Inductor", gm)
        write_codes(folder, self._snapshots, handed, prelude)
        failure = ""
        with inductor.wrappers_loaded() as output_code:
            try:
                with inductor.compiled_at_once():
                    yield
            except BaseException:
                failure = traceback.format_exc()
                raise
            finally:
                for name, path in output_files(output_code).items():
                    shutil.copyfile(path, folder / name)
                write_graph_json(folder, report, self._options, [*self._snapshots, handed], output_code, failure)
                write_index(self._target)
                log.info("graph %d: written to %s", report.index, folder)

    def first_call(self, args: tuple[Any, ...]) -> None:
        """Write the reproducer, with inputs like ``args``."""
        if self._folder is not None:
            write_reproducer(self._folder, self._program, self._options, args, self._examples)
