"""Families of transformers: tokens as in eager, and attention rewritten or left alone as the support matrix says."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import transformers
from torch._inductor import config as inductor_config

from innerq_compile.kernels.versions import release
from tests.helpers import support_matrix
from tests.helpers.families import KINDS, Family, check, families
from tests.helpers.support_matrix import FOUND, MATRIX, Row, differences, group, losses, page, read, rows
from tests.helpers.sweep import sweep

VERSION, FOUND_ROWS = read(FOUND)
ROWS = {row.name: row for row in FOUND_ROWS}
FAMILIES = {family.name: family for family in families()}

#: Whether Inductor's C++ for the checks of indices into a padding mask compiles, see docs/troubleshooting.md.
CHECKS_COMPILE = release(torch.__version__) >= (2, 13)


#: Those that take longest to compile.
LONG = {"Gemma2ForCausalLM", "Inkling2ForCausalLM"}


def in_turn() -> list[Any]:
    """Implementations of attention take turns."""
    cases = []
    for index, name in enumerate(KINDS):
        attn = list(ROWS[name].results)
        chosen, marks = attn[index % len(attn)], pytest.mark.slow if name in LONG else ()
        cases.append(pytest.param(name, chosen, marks=marks, id=f"{name}-{chosen}"))
    return cases


@pytest.mark.parametrize(("name", "attn"), in_turn())
def test_family(name, attn):
    """With another version of transformers than that of the page, as many are rewritten and quantized."""
    if name not in FAMILIES or attn not in FAMILIES[name].attn:
        pytest.skip("this transformers has no such family, or no such attention of it")
    result, found = check(FAMILIES[name], attn), ROWS[name].results[attn]
    assert not result.problem
    if transformers.__version__ == VERSION:
        assert result == found
    else:
        assert (result.rewritten, result.quantized) == (found.rewritten, found.quantized)


@pytest.mark.slow
def test_compiled_by_inductor():
    """Here with fused queries, keys and values; all others run as they are, and test_generate_llama.py compiles."""
    with inductor_config.patch(assert_indirect_indexing=CHECKS_COMPILE):
        result = check(Family("Phi3ForCausalLM"), "sdpa", inductor=True)
    assert result.rewritten == result.attentions == result.quantized == 2


@pytest.mark.slow
def test_all_families():
    """Nothing is wrong; all is as the page says, or with another version of transformers nothing is less."""
    found = rows(list(FAMILIES.values()), sweep(FAMILIES.values(), workers=os.cpu_count() or 1))
    assert [row.name for row in found if row.fails] == []
    if transformers.__version__ == VERSION:
        assert differences(found, FOUND_ROWS) == []
    else:
        assert losses(found, FOUND_ROWS, FAMILIES) == []


def test_support_matrix_is_up_to_date():
    assert MATRIX.read_text(encoding="utf-8") == page(), "run python -m tests.helpers.support_matrix"


@pytest.mark.parametrize("row", FOUND_ROWS, ids=lambda row: row.name)
def test_each_attention_is_rewritten_or_has_a_reason(row: Row):
    assert group(row) in support_matrix.GROUPS and group(row) != "Wrong"
    for result in row.results.values():
        whole = result.rewritten == result.attentions and result.quantized == result.caches
        assert whole or result.reasons or result.problem or row.is_unfinished
        assert result.rewritten == result.attentions or result.quantized <= result.rewritten, "what is left is dense"
