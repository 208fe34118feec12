"""Every family of decoders: tokens as in eager, attention layers rewritten, and the table in the docs says so."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch._inductor import config as inductor_config

from innerq_compile.kernels.versions import release
from tests.helpers import families
from tests.helpers.families import FAMILIES, LAYERS, MATRIX, Result, check

RESULTS: dict[str, dict[str, Result]] = {}

ROWS = [(family, attn) for family in FAMILIES for attn in family.attn]

#: Their attention, positions and weights are those of families that run by default.
ALIKE = {"Mistral", "StarCoder2", "StableLM", "Qwen2", "Qwen3-MoE", "OLMo 2"}
ALIKE |= {"Gemma", "Phi", "Cohere", "Granite", "GLM-4"}
#: The other files of this folder have Llama, and Mixtral differs from it in its experts alone, as DeepSeek-V3 does.
ALIKE |= {"Llama", "Mixtral"}
#: Whether Inductor's C++ for the checks of indices into a padding mask compiles, see docs/troubleshooting.md.
CHECKS_COMPILE = release(torch.__version__) >= (2, 13)


def parameters():
    """All rows. One for each kind of family runs by default, attention implementations in turn; the others are slow."""
    for index, family in enumerate(FAMILIES):
        for attn in family.attn:
            in_turn = attn == family.attn[index % len(family.attn)]
            marks = () if in_turn and family.name not in ALIKE else pytest.mark.slow
            yield pytest.param(family, attn, marks=marks, id=f"{family.name}-{attn}")


@pytest.mark.parametrize(("family", "attn"), parameters())
def test_family(family, attn):
    if not hasattr(transformers, family.model):
        pytest.skip("this transformers has no such family")
    RESULTS.setdefault(family.name, {})[attn] = result = check(family, attn)
    assert_kept(family, result)


@pytest.mark.slow
def test_compiled_by_inductor():
    """Here with fused queries, keys and values; all others run as they are, and test_generate_llama.py compiles."""
    (family,) = (family for family in FAMILIES if family.name == "Phi-3")
    with inductor_config.patch(assert_indirect_indexing=CHECKS_COMPILE):
        assert_kept(family, check(family, "sdpa", inductor=True))


def assert_kept(family, result):
    assert (result.rewritten, result.attentions) == (family.rewritten, LAYERS)
    assert result.quantized == family.rewritten
    assert (result.recorded == "yes") == (result.attn not in family.unrecorded)
    assert len(result.reasons) == (1 if family.kept else 0)


def test_support_matrix_is_up_to_date():
    if sum(map(len, RESULTS.values())) != len(ROWS):
        pytest.skip("needs the results of all families")
    assert MATRIX.read_text() == families.page(RESULTS), "run python -m tests.helpers.families --write"
