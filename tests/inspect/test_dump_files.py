"""Files of dumps, which several processes may write to the same directory."""

from __future__ import annotations

from innerq_compile.inspect.dump_files import make_folder, numbered_folder, write_graph_json, write_index
from innerq_compile.inspect.snapshot import Snapshot
from innerq_compile.passes.context import Reason
from innerq_compile.runtime.report import GraphKind, GraphReport
from tests.helpers.threads import at_once


def test_the_page_is_made_while_others_write(tmp_path):
    """What is read of another graph is all of it, or nothing."""
    target = make_folder(tmp_path / "dump")

    def write(index: int) -> None:
        reasons = tuple(Reason(f"reason {count}" * 20) for count in range(200))
        report = GraphReport(GraphKind.PLAIN, 0, 0, reasons, index)
        snapshots = [Snapshot("captured", [], ""), Snapshot("handed to Inductor", [], "")]
        folder = numbered_folder(target, index)
        for _ in range(10):
            write_graph_json(folder, report, {}, snapshots, [], "")
            write_index(target)

    at_once(*[lambda index=index: write(index) for index in range(3)])
    page = (target / "index.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert sorted(path.name for path in target.iterdir()) == ["graph_000", "graph_001", "graph_002", "index.html"]
    assert all([path.name for path in folder.iterdir()] == ["graph.json"] for folder in target.glob("graph_*"))
