"""Decoder families of transformers: tiny random models, what of them is rewritten, and the table in the docs.

``python -m tests.helpers.families --write`` runs every row and writes the table of ``docs/support-matrix.md`` from what
it finds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import pathlib
import warnings
from typing import Any

import torch

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.emulated_graphs import emulation
from tests.helpers.models import assert_same_tokens, generate, prompt
from tests.helpers.scripts import script
from tests.helpers.torch_threads import threads
from tests.helpers.without_inductor import as_it_is, forget_graphs, without_inductor

VOCAB = 61
LAYERS = 2
MATRIX = pathlib.Path(__file__).parents[2] / "docs" / "support-matrix.md"

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_HEAD_DIM = {**_GQA, "head_dim": 16}


@dataclasses.dataclass(frozen=True)
class Family:
    """A decoder family.

    Attributes:
        name: as its users call it.
        model: class in transformers; its config class has the name that belongs to it unless ``config`` says so.
        kwargs: of the config.
        attn: its attention implementations.
        kept: layers that keep their own cache, exactly as they were.
        unrecorded: attention implementations with which steps are no CUDA graphs.
        note: its peculiarities.
    """

    name: str
    model: str
    kwargs: dict[str, Any]
    config: str | None = None
    attn: tuple[str, ...] = ("sdpa", "eager")
    kept: int = 0
    unrecorded: tuple[str, ...] = ()
    note: str = ""

    @property
    def rewritten(self) -> int:
        return LAYERS - self.kept

    def build(self, attn: str, seed: int = 0) -> torch.nn.Module:
        """The model with random weights, large enough for its logits to differ clearly."""
        transformers = importlib.import_module("transformers")
        torch.manual_seed(seed)
        name = self.config or self.model.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config")
        config = getattr(transformers, name)(**self.kwargs)
        config._attn_implementation = attn
        model = getattr(transformers, self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
                elif not parameter.any():  # biases and sink logits
                    parameter.normal_(0, 0.1)
        return model


_SLIDING = "short sliding windows are held exactly, in place"
_LATENT = "latent attention (MLA): a latent and a rotary key are cached, and read by all heads"
_LONG_WINDOW = "a window of over 1,024 tokens is quantized"

FAMILIES = (
    Family("Llama", "LlamaForCausalLM", _HEAD_DIM),
    Family("Mistral", "MistralForCausalLM", {**_HEAD_DIM, "sliding_window": 4096}, note=_LONG_WINDOW),
    Family("Mixtral", "MixtralForCausalLM", {**_HEAD_DIM, "num_local_experts": 4}, note="mixture of experts"),
    Family("Qwen2", "Qwen2ForCausalLM", _GQA, note="bias on q, k, v"),
    Family("Qwen3", "Qwen3ForCausalLM", _HEAD_DIM, note="normalized queries and keys"),
    Family(
        "Qwen3-MoE",
        "Qwen3MoeForCausalLM",
        {**_HEAD_DIM, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        note="mixture of experts",
    ),
    Family("Gemma", "GemmaForCausalLM", {**_HEAD_DIM, "num_key_value_heads": 1}, note="one KV head"),
    Family(
        "Gemma 2",
        "Gemma2ForCausalLM",
        {**_HEAD_DIM, "sliding_window": 16, "query_pre_attn_scalar": 24},
        attn=("eager",),
        note="soft-capped scores; " + _SLIDING,
    ),
    Family(
        "Gemma 3",
        "Gemma3ForCausalLM",
        {**_HEAD_DIM, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        config="Gemma3TextConfig",
        note="normalized queries and keys; " + _SLIDING,
    ),
    Family("Phi", "PhiForCausalLM", _GQA, note="rotary embedding on a part of head_dim"),
    Family("Phi-3", "Phi3ForCausalLM", {**_GQA, "sliding_window": 262144}, note="fused qkv; " + _LONG_WINDOW),
    Family(
        "GPT-2",
        "GPT2LMHeadModel",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, "bos_token_id": None},
        note="fused qkv, learned positions",
    ),
    Family("GPT-NeoX", "GPTNeoXForCausalLM", _COMMON, note="fused qkv"),
    Family(
        "GPT-J",
        "GPTJForCausalLM",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
        attn=("eager",),
        note="scores in float32",
    ),
    Family("OPT", "OPTForCausalLM", {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 64}, note="scaled queries"),
    Family(
        "Falcon",
        "FalconForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
        note="one KV head for all query heads, by broadcasting",
    ),
    Family(
        "Falcon, ALiBi",
        "FalconForCausalLM",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "alibi": True,
            "multi_query": False,
            "new_decoder_architecture": False,
        },
        unrecorded=("sdpa",),
        note="bias scaled with the scores",
    ),
    Family(
        "MPT",
        "MptForCausalLM",
        {"vocab_size": VOCAB, "d_model": 64, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 256, "use_cache": True},
        attn=("eager",),
        note="ALiBi, masked_fill",
    ),
    Family(
        "BLOOM",
        "BloomForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": LAYERS, "n_head": 4},
        attn=("eager",),
        note="ALiBi through baddbmm on [B*H, N, D]",
    ),
    Family("StarCoder2", "Starcoder2ForCausalLM", _GQA),
    Family("StableLM", "StableLmForCausalLM", _GQA),
    Family("OLMo 2", "Olmo2ForCausalLM", _GQA, note="normalized queries and keys"),
    Family("Cohere", "CohereForCausalLM", _GQA),
    Family("Granite", "GraniteForCausalLM", {**_GQA, "attention_multiplier": 0.2}, note="a scale of its own"),
    Family(
        "Granite SWA",
        "GraniteSWAForCausalLM",
        {**_HEAD_DIM, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        attn=("eager",),
        note="sink logits as a gate on the output; " + _SLIDING,
    ),
    Family(
        "XGLM",
        "XGLMForCausalLM",
        {
            **{"vocab_size": VOCAB, "d_model": 64, "ffn_dim": 64, "num_layers": LAYERS, "attention_heads": 4},
            **{"max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None},
        },
        attn=("eager",),
        unrecorded=("eager",),
        note="scores not below the lowest number, bmm on [B*H, N, D]",
    ),
    Family(
        "CPM-Ant",
        "CpmAntForCausalLM",
        {
            **{"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
            **{"dim_head": 16, "dim_ff": 64, "prompt_length": 4, "prompt_types": 4, "segment_types": 4},
        },
        attn=("eager",),
        unrecorded=("eager",),
        note="weights are masked again; each step is compiled, as the program makes its length a constant",
    ),
    Family("SmolLM3", "SmolLM3ForCausalLM", {**_GQA, "use_sliding_window": False}, note="layers without RoPE"),
    Family("GLM-4", "Glm4ForCausalLM", _HEAD_DIM),
    Family(
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        {
            **_COMMON,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 32,
        },
        note=_LATENT,
    ),
    Family(
        "MiniCPM3",
        "MiniCPM3ForCausalLM",
        {
            **_COMMON,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 24,
            "v_head_dim": 20,
        },
        note=_LATENT,
    ),
    Family(
        "gpt-oss",
        "GptOssForCausalLM",
        {
            **_HEAD_DIM,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        attn=("eager",),
        note="sink logits; " + _SLIDING,
    ),
    Family(
        "Inkling 2",
        "Inkling2ForCausalLM",
        {
            **_HEAD_DIM,
            **{"unpadded_vocab_size": VOCAB, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2},
            **{"swa_head_dim": 16, "sliding_window_size": 16, "layer_types": ["hybrid_sliding", "hybrid"]},
            **{"d_rel": 8, "rel_extent": 64, "n_layers_per_attn_res_block": 1},
            **{"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2},
        },
        config="Inkling2TextConfig",
        attn=("eager",),
        unrecorded=("eager",),
        note="sink logits of each token of the query, biases by distance; " + _SLIDING,
    ),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a family.

    Attributes:
        attn: attention implementation.
        rewritten: attentions that were rewritten in the decode graph with the fewest.
        attentions: how many it has.
        reasons: why the others were not.
        quantized: layers whose cache is quantized at the end.
        window: what is kept of a cache with a sliding window; empty if none has one, or none reached it.
        recorded: ``yes`` if every decode graph that ran twice is recorded, else why one is not.
    """

    attn: str
    rewritten: int
    attentions: int
    reasons: tuple[str, ...]
    quantized: int
    window: str
    recorded: str


@threads(1)
@torch.no_grad()
def check(family: Family, attn: str, *, inductor: bool = False, new_tokens: int = 12) -> Result:
    """Generate eagerly and compiled in ``lossless``, for one sequence and for a left-padded batch, and compare.

    Raises:
        AssertionError: where tokens or logits differ.
    """
    forget_graphs()
    model = family.build(attn)
    torch.manual_seed(1)
    # each family sees both batches, though not with each attention implementation
    single = attn != "sdpa" or len(family.attn) == 1
    padded = attn == "sdpa" or len(family.attn) == 1
    batches = [prompt(1, 40, vocab=VOCAB)] * single + [prompt(2, 40, (0, 7), vocab=VOCAB)] * padded
    expected = [generate(model, inputs, new_tokens)[:2] for inputs in batches]
    innerq(model, preset="lossless")
    with warnings.catch_warnings(), emulation(), contextlib.nullcontext() if inductor else without_inductor(as_it_is):
        warnings.simplefilter("ignore")
        for inputs, (want_tokens, want) in zip(batches, expected, strict=True):
            tokens, logits, cache = generate(model, inputs, new_tokens)
            assert_same_tokens(tokens, logits, want_tokens, want, torch.float32)
    reports = [report for report in compiled_graphs() if report.kind != "prefill"]
    report = min(reports, key=lambda report: report.rewritten)
    reasons = tuple(dict.fromkeys(reason.text for reason in report.reasons))
    quantized = sum(isinstance(layer.keys, InnerQTensor) for layer in cache.layers)
    window = ", ".join(sorted({layer.window for layer in report.layers if layer.window}))
    recorded = {
        "yes" if report.recorded else str(report.cuda_graphs).partition(" (File")[0]
        for report in reports
        if report.calls > 1
    }
    return Result(attn, report.rewritten, report.attentions, reasons, quantized, window, "; ".join(sorted(recorded)))


# --- the table in the docs ------------------------------------------------------------------------------------------


def table(results: dict[str, dict[str, Result]]) -> str:
    """The table of families as Markdown, and the reasons why layers are not rewritten."""
    lines = ["| family | class | sdpa | eager | sliding window | recorded | remarks |", "|---|---|---|---|---|---|---|"]
    for family in FAMILIES:
        cells = [results[family.name].get(attn) for attn in ("sdpa", "eager")]
        shown = [f"{cell.rewritten} of {LAYERS}" if cell else "not in transformers" for cell in cells]
        found = results[family.name].values()
        shown.append(", ".join(sorted({cell.window for cell in found if cell.window})))
        shown.append("; ".join(sorted({cell.recorded for cell in found})))
        lines.append(f"| {family.name} | `{family.model}` | {' | '.join(shown)} | {family.note} |")
    kept = [
        (family.name, reason)
        for family in FAMILIES
        for reason in sorted({text for cell in results[family.name].values() for text in cell.reasons})
    ]
    if kept:
        lines += ["", "The reasons that `explain` gives for layers that are not rewritten:", ""]
        lines += [f"- {name}: {reason}" for name, reason in kept]
    return "\n".join(lines)


def page(results: dict[str, dict[str, Result]]) -> str:
    """The support matrix with the table of these results."""
    return script("docs/regions").filled(MATRIX.read_text(encoding="utf-8"), {"families": lambda: table(results)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {MATRIX.name}")
    parser.add_argument("families", nargs="*", help="names, all of them where none is given")
    args = parser.parse_args()
    results: dict[str, dict[str, Result]] = {}
    for family in FAMILIES:
        if args.families and family.name not in args.families:
            continue
        for attn in family.attn:
            results.setdefault(family.name, {})[attn] = result = check(family, attn)
            print(family.name, result)
    if args.write:
        MATRIX.write_text(page(results))


if __name__ == "__main__":
    main()
