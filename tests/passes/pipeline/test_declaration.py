"""The list of passes is checked when it is made, and each pass sees no more of the context than it declares."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE, Pass, PassContext, Pipeline
from innerq_compile.passes.pipeline import DeclarationError
from innerq_compile.passes.pipeline.declaration import FIELDS, INPUTS


def finds(gm, context):
    context.attentions.append("one")
    return gm


def reads(gm, context):
    assert list(context.attentions) == ["one"]
    return gm


def run(*passes: Pass) -> PassContext:
    context = PassContext(InnerQConfig())
    gm = torch.fx.symbolic_trace(torch.nn.Identity())
    Pipeline(passes).run(gm, context)
    return context


FINDS = Pass(finds, "find", writes=("attentions",))


def test_what_is_declared_may_be_read_and_written():
    assert run(FINDS, Pass(reads, "read", reads=("attentions",))).attentions == ["one"]


def test_every_field_of_the_context_is_given_or_written_by_a_pass():
    written = {name for graph_pass in PIPELINE.passes for name in graph_pass.writes}
    assert written | INPUTS == FIELDS and not written & INPUTS


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ((Pass(reads, "", reads=("attentions",)), FINDS), "reads declares to read attentions, which no earlier pass"),
        ((Pass(reads, "", reads=("atentions",)),), "reads declares atentions, but the context has only .*attentions"),
        ((Pass(finds, "", writes=("config",)),), "finds declares to write config, an input"),
        ((FINDS, FINDS), "two passes are called 'finds'"),
        ((Pass(finds, "", writes=("attentions",), needs=("reads",)),), "finds needs reads, but there is no pass of"),
    ],
)
def test_a_list_that_cannot_be_right(passes, message):
    with pytest.raises(DeclarationError, match=message):
        Pipeline(passes)


def test_reading_what_was_not_declared():
    with pytest.raises(DeclarationError, match=r"reads reads attentions of the context without declaring it: add it"):
        run(FINDS, Pass(reads, "read"))


def test_a_method_of_the_context_reads_no_more_than_the_pass():
    def asks(gm, context):
        list(context.cache_inputs())
        return gm

    fills = Pass(finds, "", writes=("attentions", "caches", "shadows"))
    run(fills, Pass(asks, "", reads=("caches", "shadows")))
    with pytest.raises(DeclarationError, match="asks reads shadows"):
        run(fills, Pass(asks, "", reads=("caches",)))


def test_setting_what_was_not_declared():
    def sets(gm, context):
        context.lengths_not_hoisted = "because"
        return gm

    assert run(Pass(sets, "", writes=("lengths_not_hoisted",))).lengths_not_hoisted == "because"
    with pytest.raises(DeclarationError, match="sets writes lengths_not_hoisted of the context without declaring it"):
        run(FINDS, Pass(sets, ""))


@pytest.mark.parametrize("change", [lambda c: c.attentions.append(1), lambda c: c.caches.clear()])
def test_what_is_only_read_cannot_be_changed(change):
    def changes(gm, context):
        change(context)
        return gm

    fields = ("attentions", "caches")
    with pytest.raises(AttributeError):
        run(Pass(finds, "", writes=fields), Pass(changes, "", reads=fields))


def test_matches_cannot_be_changed_by_whoever_reads_them():
    from innerq_compile.passes.context import AttentionMatch, CacheUse, StandardForm

    for kind in (AttentionMatch, StandardForm, CacheUse):
        assert kind.__dataclass_params__.frozen


def test_what_needs_a_pass_is_left_out_with_it_and_so_on():
    def first(gm, context): ...
    def second(gm, context): ...
    def third(gm, context): ...

    pipeline = Pipeline([Pass(first, "", needs=("second",)), Pass(second, "", needs=("third",)), Pass(third, "")])
    assert pipeline.left_out(["third"]) == ("first", "second", "third")
    assert pipeline.left_out(["second"]) == ("first", "second")
    assert pipeline.left_out([]) == ()
