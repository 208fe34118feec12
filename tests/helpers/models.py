"""Tiny random decoders from transformers, and comparisons of what they generate."""

from __future__ import annotations

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from innerq_compile import InnerQConfig, InnerQTensor
from innerq_compile.kernels.reference.numbers import as_float


def tiny_llama(*, heads=4, kv_heads=2, head_dim=64, layers=1, attn="sdpa", dtype=torch.float32, seed=0, vocab=61):
    """A Llama with random weights that are large enough for its logits to differ clearly."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16 * heads,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        attn_implementation=attn,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def prompt(batch: int, tokens: int, padding: tuple[int, ...] = (), *, vocab: int = 61, device="cpu"):
    """Random token ids ``[batch, tokens]`` and their mask; sequence b is padded on the left by ``padding[b]``."""
    ids = torch.randint(1, vocab, (batch, tokens))
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}


def positions_of(inputs) -> torch.Tensor:
    """Positions of a left-padded prompt, as ``generate()`` counts them."""
    return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)


def generate(model, inputs, new_tokens: int, *, special_tokens: bool = True, **kwargs):
    """Greedy ``generate()`` of exactly ``new_tokens`` tokens; logits ``[B, new_tokens, vocab]``, the cache.

    Args:
        model: from transformers.
        inputs: of its ``generate()``.
        new_tokens: how many.
        special_tokens: padding is token 0, and none ends the text; False for a model that says so itself.
        kwargs: further arguments of its ``generate()``.
    """
    if special_tokens:
        kwargs.update(pad_token_id=0, eos_token_id=None)
    out = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )
    tokens = out.sequences[:, -new_tokens:]
    return tokens, torch.stack(out.logits, dim=1).float(), out.past_key_values


@torch.no_grad()
def attended(model, inputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Query ``[B, Hq, N, D]`` and key ``[B, H, N, D]`` of each layer of a prompt, as they are multiplied."""
    found, sdpa = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def record(module, query, key, *args, **kwargs):
        found.append((query, key))
        return sdpa(module, query, key, *args, **kwargs)

    own = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    ALL_ATTENTION_FUNCTIONS["sdpa"] = record
    try:
        model(**inputs, position_ids=positions_of(inputs), use_cache=False)
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]  # what transformers registers by itself stays
        model.set_attn_implementation(own)
    return found


@torch.no_grad()
def reference_logits(
    model, inputs, tokens: torch.Tensor, config: InnerQConfig, norm: str | None = None
) -> torch.Tensor:
    """Logits of the method without a compiler: exact prefill, then one token at a time over quantized caches.

    ``model`` runs eagerly; ``tokens [B, N]`` are fed as they are. The caches are InnerQTensors, which append and
    dequantize for themselves, and attention is the model's own, on dense tensors. ``norm`` is the ``CacheFormat.norm``
    of the compiled caches: which channels share a normalization.
    """
    mask = inputs["attention_mask"]
    cache = DynamicCache()
    out = model(**inputs, position_ids=positions_of(inputs), past_key_values=cache, use_cache=True)
    start = mask.eq(0).sum(1)
    for layer, (queries, _) in zip(cache.layers, attended(model, inputs), strict=True):
        layer.keys = InnerQTensor.from_dense(
            layer.keys, config, role="key", start=start, norm=norm, queries=queries.to(layer.keys.device)
        )
        layer.values = InnerQTensor.from_dense(layer.values, config, role="value", start=start)
    logits = [out.logits[:, -1]]
    for index in range(tokens.shape[1] - 1):
        mask = torch.cat((mask, mask.new_ones(mask.shape[0], 1)), 1)
        out = model(
            tokens[:, index : index + 1],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(out.logits[:, -1])
    return as_float(torch.stack(logits, dim=1))


def assert_close_in_rms(logits, expected, exact=None) -> None:
    """Root mean square of the difference against that of the expected logits, or of what quantization does.

    A single logit says little here: where two programs round a key differently, a code may fall on the other side of
    a boundary, which moves one element of the cache by a whole step. In 16 bits that is the rule. Evaluating a random
    model in float32 in place of float16 moves its logits by 0.02 (4 bits) to 0.1 rms (2 bits), with the same caches.
    ``exact`` are logits without quantization, for 16 bits: the difference has to be less than half of theirs.
    """
    difference = (logits - expected).square().mean().sqrt()
    limit = 2e-3 * expected.square().mean().sqrt() if exact is None else (expected - exact).square().mean().sqrt() / 2
    assert difference < limit, f"rms of the difference {float(difference):.4f}, allowed is {float(limit):.4f}"


TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}


def assert_same_tokens(tokens, logits, expected_tokens, expected_logits, dtype) -> None:
    """Tokens equal, up to the first choice in a row that rounding in ``dtype`` may decide either way."""
    tolerance = TOLERANCE[dtype] * expected_logits.abs().max()
    for row in range(tokens.shape[0]):
        different = (tokens[row] != expected_tokens[row]).nonzero()
        end = int(different[0]) if len(different) else tokens.shape[1]
        compared = slice(0, min(end + 1, tokens.shape[1]))
        torch.testing.assert_close(
            logits[row, compared], expected_logits[row, compared], atol=float(tolerance), rtol=0.0
        )
        if end < tokens.shape[1]:
            assert dtype != torch.float32, f"row {row} differs at token {end}"
            best = expected_logits[row, end].topk(2).values
            assert best[0] - best[1] <= 2 * tolerance, f"row {row} differs at token {end}, where the choice is clear"


def windowed_model(name: str, window: int, device: str = "cpu", **others):
    """A tiny model of transformers with a sliding window; ``name`` is that of its config, such as ``Gemma3Text``."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 61,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    config = getattr(transformers, f"{name}Config")(**{**sizes, "sliding_window": window, **others})
    with torch.device(device):
        return getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
