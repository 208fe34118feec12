"""The support matrix: what is wrong is never shown as unfinished, and what is less than the page says has a text."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from tests.helpers import support_matrix
from tests.helpers.families import LISTS, NEEDS, ORDER, Result
from tests.helpers.support_matrix import FOUND, Row, differences, group, losses, read
from tests.helpers.sweep import LIMIT, TOO_LONG

WHOLE = Result(rewritten=2, attentions=2, caches=2, quantized=2, recorded="yes")
LATE = Result(failure=f"{TOO_LONG} {LIMIT} seconds")


def row(name: str = "A", **results: Result) -> Row:
    return Row(name, ORDER[0], ("a",), results)


@pytest.mark.parametrize("names", [("sdpa", "eager"), ("eager", "sdpa")])
def test_a_timeout_hides_no_wrong_tokens(names):
    wrong = row(**dict(zip(names, [LATE, Result(failure="wrong tokens: 1")], strict=True)))
    assert wrong.fails and group(wrong) == "Wrong"
    assert not row(sdpa=LATE).fails and group(row(sdpa=LATE)) == "Not finished"


def test_a_timeout_differs_from_the_page():
    for page in (row(sdpa=WHOLE), row(sdpa=LATE)):
        [text] = differences([row(sdpa=LATE)], [page])
        assert text.endswith('run python -m tests.helpers.support_matrix --sweep "A"')


def test_texts_of_problems_are_not_compared():
    problem, other = Result(problem="ValueError: no"), Result(problem="TypeError: no")
    assert differences([row(sdpa=problem)], [row(sdpa=other)]) == []
    assert len(differences([row(sdpa=problem)], [row(sdpa=WHOLE)])) == 1
    assert len(differences([row(sdpa=WHOLE)], [row(sdpa=other)])) == 1
    assert differences([row(sdpa=WHOLE)], [row(sdpa=Result(problem=NEEDS + "PIL"))]) == []


def test_rows_that_one_side_lacks():
    assert len(differences([row("A", sdpa=WHOLE)], [row("B", sdpa=WHOLE)])) == 2


def test_losses():
    page, existing = [row(sdpa=WHOLE)], {"A"}
    more = dataclasses.replace(WHOLE, rewritten=3, attentions=3, caches=3, quantized=3)
    for found in ([row(sdpa=WHOLE)], [row(eager=WHOLE)], [row(sdpa=more)]):
        assert losses(found, page, existing) == []
    less = (dataclasses.replace(WHOLE, rewritten=1), dataclasses.replace(WHOLE, quantized=1))
    for result in (*less, LATE, Result(problem="ValueError: no")):
        assert len(losses([row(sdpa=result)], page, existing)) == 1
    assert len(losses([], page, existing)) == 1
    assert losses([], page, set()) == []  # this transformers has no such family
    assert losses([], [row(sdpa=less[0])], existing) == []  # nor was it rewritten


def test_single_families_are_swept_for_the_version_of_the_page_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["support_matrix", "--sweep", "NoSuchFamily"])
    with pytest.raises(SystemExit):
        support_matrix.main()
    assert "NoSuchFamily" in capsys.readouterr().err


def test_variants_are_not_counted():
    _, found = read(FOUND)
    variants = [one.name for one in found if one.is_variant]
    assert variants and f"| all | {sum(one.kind == ORDER[0] and not one.is_variant for one in found)} |" in (
        support_matrix.MATRIX.read_text(encoding="utf-8")
    )


def test_kinds_are_those_of_the_lists():
    assert set(ORDER) == set(LISTS.values()) and len(ORDER) == 3
    assert {one.kind for one in read(FOUND)[1]} == set(ORDER)
