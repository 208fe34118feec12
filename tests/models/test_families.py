"""Every family of decoders: tokens as in eager, attention layers rewritten, and the table in the docs says so."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import config as inductor_config

from innerq_compile.kernels.versions import release
from tests.helpers import families
from tests.helpers.families import FAMILIES, LAYERS, MATRIX, Result, check

RESULTS: dict[str, dict[str, Result]] = {}

ROWS = [(family, attn) for family in FAMILIES for attn in family.attn]

#: Compiled by Inductor here; the graphs of all others run as they are.
INDUCTOR = {("Phi-3", "sdpa")}
#: Whether Inductor's C++ for the checks of indices into a padding mask compiles, see docs/troubleshooting.md.
CHECKS_COMPILE = release(torch.__version__) >= (2, 13)


def parameters():
    """All rows. One for each family runs by default, with attention implementations in turn; the others are slow."""
    for index, family in enumerate(FAMILIES):
        for attn in family.attn:
            marks = () if attn == family.attn[index % len(family.attn)] else pytest.mark.slow
            yield pytest.param(family, attn, marks=marks, id=f"{family.name}-{attn}")


@pytest.mark.parametrize(("family", "attn"), parameters())
def test_family(family, attn):
    with inductor_config.patch(assert_indirect_indexing=CHECKS_COMPILE):
        result = check(family, attn, inductor=(family.name, attn) in INDUCTOR)
    RESULTS.setdefault(family.name, {})[attn] = result
    assert (result.rewritten, result.attentions) == (family.rewritten, LAYERS)
    assert result.quantized == family.rewritten
    assert len(result.reasons) == (1 if family.kept else 0)


def test_support_matrix_is_up_to_date():
    if sum(map(len, RESULTS.values())) != len(ROWS):
        pytest.skip("needs the results of all families")
    assert MATRIX.read_text() == families.page(RESULTS), "run python -m tests.helpers.families --write"
