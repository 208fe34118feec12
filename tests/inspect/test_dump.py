"""Graph dumps: files, the page in a browser, the reproducer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from innerq_compile import InnerQError, dump_graphs, innerq
from innerq_compile.inspect.pages import side_by_side
from innerq_compile.passes import PIPELINE
from tests.helpers.programs import TinyAttention
from tests.helpers.without_inductor import without_inductor


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A folder with a prefill and a decode graph, compiled by Inductor."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dump")
    model = innerq(TinyAttention())
    with dump_graphs(folder) as page, torch.no_grad():
        _, cache = model(torch.randn(1, 150, 32))
        model(torch.randn(1, 1, 32), cache)
    assert page == folder / "index.html"
    yield folder
    torch._dynamo.reset()


def folders(path):
    return sorted(child for child in path.iterdir() if child.is_dir())


def test_files(dump):
    assert len(folders(dump)) == 2
    for folder in folders(dump):
        codes = sorted(path.name for path in folder.glob("[0-9][0-9]_*.py"))
        expected = ["00_captured.py", *(f"{i:02d}_{name}.py" for i, name in enumerate(PIPELINE.names(), 1))]
        assert codes == expected
        content = json.loads((folder / "graph.json").read_text())
        assert content["report"]["rewritten"] == 1 and content["matches"][0]["match"] == "sdpa"
        assert os.path.exists(content["output_code"][-1])
        assert (folder / "output_code.py").read_text() == Path(content["output_code"][-1]).read_text()
    decode = folders(dump)[1]
    assert "scaled_dot_product_attention" in (decode / "00_captured.py").read_text()
    for name in ("inductor_input.py", "output_code.py"):
        text = (decode / name).read_text()
        assert "innerq.decode_attention" in text and "_nn.scaled_dot_product_attention" not in text, name


@pytest.mark.sampled(2)
@pytest.mark.parametrize("which", [0, 1])
def test_the_reproducer_runs(dump, which):
    command = [sys.executable, str(folders(dump)[which] / "repro.py"), "--limit", "1e-3"]
    environment = {**os.environ, "INNERQ_DUMP": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1/1 attentions rewritten" in done.stdout and done.stdout.count("InnerQTensor") == 2


def test_the_page_needs_no_network_and_its_links_lead_somewhere(dump):
    page = (dump / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(https?:)?//", page) and "<script" not in page
    anchors = {*re.findall(r'id="([^"]+)"', page)}
    links = re.findall(r'href="#([^"]+)"', page)
    assert links and {*links} <= anchors
    for file in re.findall(r'href="([^#"]+)"', page):
        assert (dump / file).exists(), file


def test_lines_lead_to_where_they_come_from(dump):
    content = json.loads((folders(dump)[1] / "graph.json").read_text())
    for text, where in content["snapshots"][0]["lines"]:
        if "scaled_dot_product_attention" in text:
            assert "out = F.scaled_dot_product_attention(" in where
        if "torch.cat" in text:
            assert "torch.cat([past" in where


def test_the_variable_and_numbers_of_folders(tmp_path, monkeypatch, no_inductor):
    monkeypatch.setenv("INNERQ_DUMP", str(tmp_path / "a" / "b"))
    for _ in range(2):  # as in two processes, each of which counts from 0
        torch._dynamo.reset()
        torch.compile(lambda x: x + 1, backend="innerq")(torch.ones(2))
        import innerq_compile

        innerq_compile.clear_reports()
    assert [folder.name for folder in folders(tmp_path / "a" / "b")] == ["graph_000", "graph_001"]
    assert (tmp_path / "a" / "b" / "graph_001" / "repro.py").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InnerQError, match=r"graphs cannot be written to .*name a directory that can be written"):
        dump_graphs(tmp_path / "file").__enter__()


def test_a_graph_that_inductor_cannot_compile_is_dumped_with_its_error(tmp_path, fresh_dynamo):
    def fail(gm, example_inputs):
        raise RuntimeError("no such luck")

    with without_inductor(fail), dump_graphs(tmp_path), pytest.raises(Exception, match="no such luck"):
        torch.compile(lambda x: x + 1, backend="innerq")(torch.ones(2))
    assert "no such luck" in (tmp_path / "index.html").read_text()


def test_side_by_side():
    lines = [(f"line {i}", None) for i in range(20)]
    assert side_by_side(lines, lines) == []
    rows = side_by_side(lines, [*lines[:10], ("new", None), *lines[11:]])
    assert [row for row in rows if row[0] == "changed"] == [("changed", ("line 10", None), ("new", None))]
    assert rows[0] == ("folded", 7, None) and rows[-1] == ("folded", 6, None)


# --- in a browser ---------------------------------------------------------------------------------------------------


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on the path; the page is checked in one where there is (apt-get install chromium)")
    return found


#: Writes what the browser has made of the page into its title's place, for --dump-dom to show.
PROBE = """<script>
addEventListener("load", () => {
  const style = element => getComputedStyle(element);
  const rows = [...document.querySelectorAll(".code td")];
  document.body.innerHTML = "<pre id=probe>" + JSON.stringify({
    width: document.documentElement.scrollWidth, view: innerWidth,
    overflowing: rows.filter(cell => cell.scrollWidth > cell.clientWidth + 1).length,
    gone: document.querySelectorAll("td.gone").length, added: document.querySelectorAll("td.new").length,
    addedColor: style(document.querySelector("td.new")).backgroundColor,
    page: style(document.body).backgroundColor, text: style(document.body).color,
    font: parseFloat(style(document.querySelector(".code td")).fontSize),
  }) + "</pre>";
});
</script>"""


def browse(page, scheme: str) -> dict:
    """What a headless browser, 1280 pixels wide, makes of a page."""
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--dump-dom"]
    command += [
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--host-resolver-rules=MAP * 0",
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(found[1])


def luminance(color: str) -> float:
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_in_a_browser(dump, tmp_path):
    seen = {}
    for scheme in ("light", "dark"):
        page = dump / f"probed_{scheme}.html"
        page.write_text((dump / "index.html").read_text().replace("</head>", PROBE + "</head>"))
        seen[scheme] = shown = browse(page, scheme)
        assert shown["width"] <= shown["view"] == 1280 and shown["overflowing"] == 0, shown
        assert shown["gone"] > 0 and shown["added"] > 0 and shown["addedColor"] != shown["page"]
        assert shown["font"] >= 12
        bright, faint = sorted((luminance(shown["page"]), luminance(shown["text"])), reverse=True)
        assert (bright + 0.05) / (faint + 0.05) > 7  # contrast
    assert luminance(seen["light"]["page"]) > 0.8 and luminance(seen["dark"]["page"]) < 0.1
