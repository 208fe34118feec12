"""The sweep over all families: what hangs, crashes or cannot be made is a result as well, and results are kept."""

from __future__ import annotations

import os
import time

import pytest
import transformers
from transformers.models.auto import modeling_auto

from innerq_compile import GraphReport
from innerq_compile.passes.context import Reason
from innerq_compile.runtime.report.graph import GraphKind
from tests.helpers import sweep as module
from tests.helpers.families import LISTS, NOT_RUN, UNEVEN, Family, Result, _of_run, _short, check, families
from tests.helpers.support_matrix import differences, rows
from tests.helpers.sweep import sweep


class Unbuildable(Family):
    def build(self, *args, **kwargs):
        raise ValueError("no such thing\n in detail")


class Crashing(Family):
    def build(self, *args, **kwargs):
        os._exit(3)


class Hanging(Family):
    def build(self, *args, **kwargs):
        time.sleep(100)


@pytest.mark.slow
def test_results(tmp_path, monkeypatch):
    kept, done = tmp_path / "results.json", []
    wanted = [cls("GPT2LMHeadModel", variant=cls.__name__) for cls in (Unbuildable, Crashing)]
    found = sweep(wanted, kept, done=done.append)
    assert found == {
        "GPT2LMHeadModel, Unbuildable": {"sdpa": Result(problem="ValueError: no such thing")},
        "GPT2LMHeadModel, Crashing": {"sdpa": Result(failure="the process ended with 3")},
    }
    monkeypatch.setattr(module, "LIMIT", 1)
    again = sweep([*wanted, Hanging("GPT2LMHeadModel", variant="Hanging")], kept, done=done.append)
    assert again == {**found, "GPT2LMHeadModel, Hanging": {"sdpa": Result(failure="takes more than 1 seconds")}}
    assert len(done) == 3


def test_results_of_other_code_are_dropped(tmp_path):
    kept, found = tmp_path / "results.json", {"A": {"sdpa": Result(rewritten=1, reasons=("a",))}}
    of = module.identity()
    assert of == module.identity() and of.keys() == {"torch", "transformers", "sources"}
    module._write(kept, found, of)
    assert module._read(kept, of) == found
    for name in of:
        assert module._read(kept, {**of, name: "another"}) == {}
    assert list(tmp_path.iterdir()) == [kept]


def test_results_of_former_layout_are_dropped(tmp_path):
    kept = tmp_path / "results.json"
    kept.write_text('{"A": {"sdpa": {"rewritten": 1}}}', encoding="utf-8")
    assert module._read(kept, module.identity()) == {}


def test_interrupted_writing_leaves_former_results(tmp_path, monkeypatch):
    kept, of = tmp_path / "results.json", module.identity()
    module._write(kept, {"A": {"sdpa": Result(rewritten=1)}}, of)
    before = kept.read_text()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module._write(kept, {}, of)
    assert kept.read_text() == before


def test_sources_are_part_of_the_identity(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "passes").mkdir()
    found = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "passes" / "one.py").write_text(text)
        found.add(module.identity()["sources"])
    assert len(found) == 2


def test_a_missing_class_is_a_problem():
    missing = Family("NoSuchForCausalLM")
    assert missing.attn == ("eager",)
    assert "NoSuchForCausalLM" in check(missing, "eager").problem


@pytest.mark.usefixtures("graphs_as_they_are")
def test_a_family_of_a_new_release_is_tried(monkeypatch):
    """It needs no line here: lists of transformers name it, and names of its fields say what makes it small."""

    class Config(transformers.LlamaConfig):
        model_type = "made_up_0"

    class Model(transformers.LlamaForCausalLM):
        config_class = Config

    before = families()
    for index, name in enumerate(LISTS):
        monkeypatch.setitem(getattr(modeling_auto, name), f"made_up_{index}", f"MadeUp{index}")
    monkeypatch.setattr("transformers.MadeUp0", Model, raising=False)
    new = [family for family in families() if family not in before]
    assert {family.name: (family.kind, family.types) for family in new} == {
        f"MadeUp{index}": (kind, (f"made_up_{index}",)) for index, kind in enumerate(LISTS.values())
    }
    result = check(new[0], "sdpa")
    assert result == Result(rewritten=2, attentions=2, caches=2, quantized=2, recorded="yes")
    [text] = differences(rows(new, {"MadeUp0": {"sdpa": result}}), [])
    assert text.startswith("MadeUp0: ")


def test_a_missing_package_is_named():
    texts = {"No module named 'scipy.special'": "needs scipy", "\nX requires the PIL library but it": "needs PIL"}
    for text, problem in texts.items():
        assert _short(ImportError(text)) == problem
    assert _short(ValueError("X requires the PIL library")) == "ValueError: X requires the PIL library"


@pytest.mark.parametrize(("calls", "failure"), [((11, 11), ""), ((11, 10), UNEVEN), ((10, 10), UNEVEN)])
def test_a_step_that_ran_uncompiled_is_not_averaged_away(calls, failure):
    report = GraphReport(GraphKind.DECODE, 1, 1, ())
    result = _of_run([(report, count) for count in calls], 11, 2, 2)
    assert (result.failure, result.rewritten, result.attentions) == (failure, 1 if failure else 2, 2)


def test_a_part_that_is_not_compiled_has_a_reason():
    assert _of_run([], 11, 2, 0).reasons == (NOT_RUN,)


def test_reasons_are_those_of_graphs_with_attention():
    with_one = GraphReport(GraphKind.DECODE, 1, 0, (Reason("the scores go through tanh"),))
    without = GraphReport(GraphKind.DECODE, 0, 0, (Reason("no attention was found in the graph"),))
    assert _of_run([(without, 11), (with_one, 11)], 11, 1, 0).reasons == ("the scores go through tanh",)
    assert _of_run([(without, 11)], 11, 1, 0).reasons == ("no attention was found in the graph",)
