"""The key of a cached graph covers all source that the graph is made from."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from innerq_compile.compiler import cached_code
from innerq_compile.config import InnerQConfig
from innerq_compile.kernels import cpu, lowering
from innerq_compile.kernels.cpu import codegen
from innerq_compile.kernels.internals import inductor

key_now = cached_code.source_key.__wrapped__


@pytest.fixture
def copied(tmp_path, monkeypatch) -> dict[str, Path]:
    """The source files, copied to where they can be changed; the key is that of the copies."""
    files = {}
    for name, path in cached_code.source_files().items():
        files[name] = tmp_path / name
        files[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, files[name])
    monkeypatch.setattr(cached_code, "source_files", lambda: files)
    return files


def test_every_file_is_part_of_the_key(copied):
    own = key_now()
    assert own == cached_code.source_key()
    for name, path in copied.items():
        before = path.read_bytes()
        path.write_bytes(before + b"#")
        assert key_now() != own, name
        path.write_bytes(before)
    assert key_now() == own


def test_a_renamed_file_is_another_key(copied):
    own = key_now()
    copied["kernels/other.py"] = copied.pop("kernels/layout.py")
    assert key_now() != own


def test_all_files_are_found():
    """From the package as it was imported: through a checkout's links, or where it is installed."""
    root = Path(__file__).resolve().parents[2]
    folders = [root / name for name in ("kernels", "passes")]
    expected = [path for folder in folders for ending in ("py", "h") for path in folder.rglob(f"*.{ending}")]
    found = {path.resolve() for path in cached_code.source_files().values()}
    assert set(expected) <= found
    assert {"vec.h", "steered.h"} <= {path.name for path in expected}  # templates, and those of modes, are on the disk


@pytest.fixture(params=["inductor", "autograd"])
def compiled_with_cache_counts(request):
    """Compile a graph as the backend does; how often the cache of Inductor or of AOTAutograd missed and hit."""
    counter, name = {"inductor": ("inductor", "fxgraph"), "autograd": ("aot_autograd", "autograd")}[request.param]

    def backend(gm, examples):
        enabled = {"enable_autograd_cache": request.param == "autograd"}
        with cached_code.cached_by_source(), torch._functorch.config.patch(enabled):
            return inductor.compile_graph(gm, examples, {})

    def compiled() -> tuple[int, int]:
        counters.clear()
        torch._dynamo.reset()
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(3))
        return counters[counter][f"{name}_cache_miss"], counters[counter][f"{name}_cache_hit"]

    with fresh_cache():
        yield compiled


@pytest.mark.parametrize("done", [True, False], ids=["lowered", "calls"])
def test_cached_graphs_are_those_of_the_same_source(monkeypatch, compiled_with_cache_counts, done):
    """Also where no lowering is registered: graphs still contain traced source of this package."""
    monkeypatch.setattr(lowering, "register", lambda: lowering.Registration(done))
    assert compiled_with_cache_counts() == (1, 0)
    assert compiled_with_cache_counts() == (0, 1)
    with monkeypatch.context() as other:
        other.setattr(cached_code, "source_key", lambda: "other")
        assert compiled_with_cache_counts() == (1, 0)
    assert compiled_with_cache_counts() == (0, 1)


def test_graphs_without_the_lowerings_are_others(monkeypatch, compiled_with_cache_counts):
    monkeypatch.setattr(lowering, "register", lambda: lowering.Registration(True))
    assert compiled_with_cache_counts() == (1, 0)
    monkeypatch.setattr(lowering, "register", lambda: lowering.Registration(False, "INNERQ_LOWERING=0"))
    assert compiled_with_cache_counts() == (1, 0)


def test_cpp_kernels_are_cached_by_their_whole_source():
    """Inductor's cache of C++ is keyed by the text that it compiles: it includes none of this package's files."""
    side = codegen.Side.of(InnerQConfig().format_for("key", 64, torch.float32), 64, torch.float32)
    text = codegen.source([side], [], 8)
    headers = sorted(Path(cpu.__file__).parent.glob("*.h"))
    assert headers and all(header.read_text() in text for header in headers)
    assert '#include "' not in text


def test_keys_of_timed_launches_have_no_tag_of_ours():
    """Inductor's worker processes compute these keys, too. Graphs have one, and their keys are hashes of pickles."""
    from torch.compiler import config

    with config.patch(cache_key_tag="theirs"), inductor.cached_under("-ours"):
        tag = config.cache_key_tag
        assert f"kernel:{tag}" == "kernel:theirs" and tag == "theirs-ours"
        kept = pickle.loads(pickle.dumps(tag))
        assert kept == "theirs-ours" and type(kept) is str
    assert config.cache_key_tag == ""
