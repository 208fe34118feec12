"""Whatever else reads a quantized cache reads it dequantized."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig, InnerQTensor
from innerq_compile.passes import PIPELINE
from tests.helpers.programs import LateTransposing, TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

#: without key statistics, which would make the graphs longer
PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")

PROMPT_AND_STEP = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1]))


def graph_of_a_reader(model: TinyAttention) -> torch.fx.GraphModule:
    """The graph of a program that reads the cached keys of a prompt."""

    def program(x, past=None):
        return model(x) if past is None else past[0].sum()

    return capture(program, *PROMPT_AND_STEP, config=PLAIN)[-1][0]


class TestDequantizeRest(expecttest.TestCase):
    def test_a_cache_by_head(self):
        changes = changes_by_pass(graph_of_a_reader(TinyAttention()), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["dequantize_rest"],
            """\
- sum_1 = l_past_0_.sum()
+ dequantize_default = dequantize(l_past_0_..., None, None, s)
+ sum_1 = dequantize_default.sum()""",
        )

    def test_a_cache_by_token(self):
        changes = changes_by_pass(graph_of_a_reader(LateTransposing()), PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["dequantize_rest"],
            """\
- sum_1 = l_past_0_.sum()
+ dequantize_default = dequantize(l_past_0_..., None, None, s)
+ transpose = dequantize_default.transpose(1, 2)
+ contiguous = transpose.contiguous()
+ sum_1 = contiguous.sum()""",
        )


def test_sizes_are_not_read_from_a_dequantized_cache():
    model = TinyAttention()

    def program(x, past=None):
        return model(x, past) if past is None else (*model(x, past), past[0].numel())

    result = PIPELINE.rewrite(capture(program, *PROMPT_AND_STEP, config=PLAIN)[-1][0], PLAIN)
    code = brief_code_of(result.gm)
    assert "numel" not in code and "dequantize" not in code


class Dropping(TinyAttention):
    """Returns what `part` takes of the cache."""

    def __init__(self, part) -> None:
        super().__init__()
        self.part = part

    def forward(self, x, past=None, mask=None):
        out, cache = super().forward(x, past, mask)
        return (out, cache) if past is None else (out, tuple(map(self.part, cache)))


@pytest.mark.parametrize(
    ("part", "count"),
    [
        (lambda cache: cache, 0),
        (lambda cache: cache.sum(2), 0),
        (lambda cache: cache[:, :, 1:], 0),
        (lambda cache: torch.cat([cache[:, :, :2], cache[:, :, 3:]], 2), 2),
        (lambda cache: cache.transpose(1, 2), 2),
        (lambda cache: cache + 1, 0),  # no longer the cache
        (lambda cache: (cache, cache[:, :, -1:]), 0),  # it lives on
    ],
    ids=["the cache", "a sum", "the last tokens", "without one token", "transposed", "something else", "also a part"],
)
def test_caches_that_become_dense(part, count):
    context = PIPELINE.rewrite(capture(Dropping(part), *PROMPT_AND_STEP, config=PLAIN)[-1][0], PLAIN).context
    assert len(context.made_dense) == count and len(context.rewritten) == 1


def test_a_cache_that_is_also_read_stays_quantized():
    class Reads(TinyAttention):
        def forward(self, x, past=None, mask=None):
            out, (k, v) = super().forward(x, past, mask)
            return out, (k, v), k.transpose(1, 2).sum()

    context = PIPELINE.rewrite(capture(Reads(), *PROMPT_AND_STEP, config=PLAIN)[-1][0], PLAIN).context
    assert not context.made_dense and sum(plan.what is not None for plan in context.outputs) == 2


def test_a_window_that_is_quantized_again():
    """What it returns is the key that its attention reads: it is quantized as that of a prompt is."""

    class Rolling(TinyAttention):
        def forward(self, x, past=None, mask=None):
            kept = past and tuple(part[:, :, 1:] for part in past)
            return super().forward(x, kept, mask)

    context = PIPELINE.rewrite(capture(Rolling(), *PROMPT_AND_STEP, config=PLAIN)[-1][0], PLAIN).context
    assert len(context.quantized) == 2 and not context.made_dense


@pytest.mark.parametrize("layers", [1, 3])
def test_one_warning_says_that_caches_are_dense_from_now_on_and_why(layers, caplog):
    model = TinyAttention()

    @torch.no_grad()
    def story():
        for _ in range(2):  # a second conversation gives no second warning
            caches = [program(torch.randn(1, 40, 32))[1] for _ in range(layers)]
            assert all(isinstance(side, InnerQTensor) for cache in caches for side in cache)
            for _ in range(2):
                caches = forget(torch.randn(1, 1, 32), caches)
            assert not any(isinstance(side, InnerQTensor) for cache in caches for side in cache)

    @torch.compile(backend="innerq", options={"preset": "lossless"})
    def program(x):
        return model(x)

    @torch.compile(backend="innerq", options={"preset": "lossless"})
    def forget(x, caches):
        found = [model(x, cache)[1] for cache in caches]
        return [tuple(torch.cat([side[:, :, :2], side[:, :, 3:]], 2) for side in cache) for cache in found]

    story()
    said = [record for record in caplog.records if "returns caches dense that were quantized" in record.getMessage()]
    assert len(said) == 1 and said[0].levelname == "WARNING"
    assert f"({2 * layers} of them): the program returns a part of its quantized cache" in said[0].getMessage()
