"""Families of transformers: tiny random models of all that generate text, and what is rewritten of each.

A family is a class that transformers lists as one that generates, with a configuration made small by the names of its
fields (``tiny_configs.py``). ``sweep.py`` tries them all, and ``support_matrix.py`` writes the page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from transformers import GenerationMixin

from innerq_compile import GraphReport, InnerQTensor, compiled_graphs, innerq
from tests.helpers.emulated_graphs import emulation
from tests.helpers.family_overrides import OVERRIDES, VARIANTS, WITH_IMAGE, WITH_OWN_TOKENS, WITHOUT_SDPA
from tests.helpers.models import assert_same_tokens, generate, prompt
from tests.helpers.tiny_configs import VOCAB, tiny
from tests.helpers.torch_threads import threads
from tests.helpers.without_inductor import as_it_is, forget_graphs, without_inductor

#: What transformers lists, and how the page calls it, in the page's order. A class in several lists is of the last.
#: But the last list repeats classes of all others: only those that no other has are of its kind.
LISTS = {
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "decoders",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "text and images",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "encoder and decoder, or speech",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "encoder and decoder, or speech",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "encoder and decoder, or speech",
}
#: The kinds in the page's order.
ORDER = tuple(dict.fromkeys(LISTS.values()))
ATTN = ("sdpa", "eager")
#: One for each kind of attention, positions, weights or masks.
KINDS = (
    *("Qwen3ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel"),
    *("GPTNeoXForCausalLM", "GPTJForCausalLM", "OPTForCausalLM", "FalconForCausalLM", "FalconForCausalLM, ALiBi"),
    *("MptForCausalLM", "BloomForCausalLM", "GraniteSWAForCausalLM", "XGLMForCausalLM", "SmolLM3ForCausalLM"),
    *("MiniCPM3ForCausalLM", "GptOssForCausalLM", "Inkling2ForCausalLM"),
)
PROMPT = 40
NEW_TOKENS = 12
#: Of sound: frames of an encoder that takes features, and samples of one that takes those.
FRAMES, SAMPLES = 64, 8000


@dataclasses.dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        model: class in transformers.
        kind: one of ``ORDER``.
        variant: what its fields below make of it; empty for the family itself.
        types: names of its configurations, the ``model_type`` of a ``config.json``.
        fields: of the configuration, beside those that are made small.
        config_type: name of the configuration, of several that a class takes; empty for the class's own.
    """

    model: str
    kind: str = "decoders"
    types: tuple[str, ...] = ()
    variant: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config_type: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}, {self.variant}" if self.variant else self.model

    @property
    def attn(self) -> tuple[str, ...]:
        """Its attention implementations that are tried: sdpa if it has it, and eager as well for one of each kind."""
        try:
            has_sdpa = self._class._supports_sdpa and self.model not in WITHOUT_SDPA
        except Exception:  # a class that is missing, or stands for one whose packages are; ``check`` says which
            has_sdpa = False
        found = ATTN if has_sdpa else ATTN[1:]
        return found if self.name in KINDS else found[:1]

    @property
    def _class(self) -> Any:
        return getattr(importlib.import_module("transformers"), self.model)

    def config(self, **fields: Any) -> Any:
        """A small configuration; ``fields`` override all others."""
        lists = importlib.import_module("transformers")
        config = (lists.CONFIG_MAPPING[self.config_type] if self.config_type else self._class.config_class)()
        fields = {**OVERRIDES.get(self.model, {}), **self.fields, **fields}
        if getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
            fields.setdefault("is_decoder", True)  # else a BERT reads its tokens in both directions
        return tiny(config, **fields)

    def build(self, attn: str, seed: int = 0, **fields: Any) -> Any:
        """The model with random weights, large enough for its logits to differ clearly."""
        config = self.config(**fields)
        config._attn_implementation = attn
        torch.manual_seed(seed)
        model = self._class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
                elif not parameter.any():  # biases and sink logits
                    parameter.normal_(0, 0.1)
        return model


def families() -> list[Family]:
    """All of the installed transformers, and the variants of them that have other attention."""
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    types: dict[str, dict[str, None]] = {}
    kinds: dict[str, str] = {}
    for name, kind in LISTS.items():
        for config, model in getattr(lists, name, {}).items():  # transformers 5.0 has not all of them
            types.setdefault(model, {})[config] = None
            kinds[model] = kind if name != list(LISTS)[-1] else kinds.get(model, kind)
    found = {model: Family(model, kinds[model], types=tuple(types[model])) for model in sorted(kinds, key=str.lower)}
    variants = (
        dataclasses.replace(found[model], variant=variant, fields=fields)
        for model, variant, fields in VARIANTS
        if model in found
    )
    return sorted([*found.values(), *variants], key=lambda one: ORDER.index(one.kind))


def family(name: str) -> Family:
    """The family of a class, or one of its variants.

    Raises:
        KeyError: the installed transformers has none.
    """
    return {family.name: family for family in families()}[name]


def inputs_for(model: Any, batch: int, padding: tuple[int, ...] = ()) -> dict[str, Any]:
    """Text for ``generate``, and an image or sound where a model takes nothing else."""
    inputs: dict[str, Any] = {**prompt(batch, PROMPT, padding, vocab=VOCAB), "decoder_start_token_id": 1}
    argument = inspect.signature(model.generate).parameters.get("pixel_values")
    is_needed = argument is not None and argument.default is inspect.Parameter.empty
    if model.main_input_name == "pixel_values" or is_needed or type(model).__name__ in WITH_IMAGE:
        inputs["pixel_values"] = torch.randn(batch, 3, *_image_size(model.config))
    elif model.main_input_name == "flattened_patches":
        patches = torch.randn(batch, 20, 2 + model.config.vision_config.patch_embed_hidden_size)
        patches[:, :, :2] = 1  # row and column
        inputs["flattened_patches"] = patches
    elif model.main_input_name == "input_features":
        inputs["input_features"] = torch.randn(batch, *_sound_size(model.config))
    elif model.main_input_name == "input_values":
        inputs["input_values"] = torch.randn(batch, SAMPLES)
    if model.config.is_encoder_decoder and model.main_input_name != "input_ids":
        del inputs["input_ids"], inputs["attention_mask"]
    return inputs


def _image_size(config: Any) -> tuple[int, int]:
    size = _first(config, "image_size")
    return (size, size) if isinstance(size, int) else tuple(size)


def _sound_size(config: Any) -> tuple[int, int]:
    """Frames and the features of one; a model whose encoder has a fixed number of positions takes features first."""
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        return config.num_mel_bins, 2 * config.max_source_positions  # a convolution halves them
    return FRAMES, _first(config, "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")


def _first(config: Any, *names: str) -> Any:
    """The first of these fields that a configuration or one of its parts has."""
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "model_type"))]
    return next(getattr(part, name) for part in parts for name in names if getattr(part, name, None))


# --- what becomes of one --------------------------------------------------------------------------------------------

#: How the problem of a family begins that needs a package which is not installed here.
NEEDS = "needs "
_PACKAGE = re.compile(r"requires the (\S+) library|No module named '([^'.]+)")
#: Why nothing is rewritten where no graph runs in a step.
NOT_RUN = "no graph compiled with backend='innerq' ran: generate() calls a part of the model, and not the model"
#: Why nothing is recorded where no graph runs twice.
EACH_STEP = "each step is compiled"
#: Steps are alike, so their attentions are a multiple of what one has, unless Dynamo left one uncompiled.
UNEVEN = "a step ran uncompiled, or had another number of attentions than the others"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a family with one attention implementation.

    Attributes:
        rewritten: attentions of a step that were rewritten.
        attentions: how many a step has.
        caches: how many layers cache keys in the uncompiled model. Values are not counted: both are quantized, or none.
        quantized: how many of these keys are quantized at the end.
        reasons: why the others are not; of graphs without attention only where no other graph has a reason.
        window: what is kept of caches with a sliding window; empty if none has one, or none reached it.
        recorded: ``yes`` if every graph of a step with attention is recorded, else why one is not.
        graphs: how many a step runs on average; more than one where Dynamo splits the program.
        problem: why the uncompiled model does not run here; then the rest is empty. It begins with ``NEEDS`` where a
            package is missing.
        failure: what goes wrong with the compiled model alone.
    """

    rewritten: int = 0
    attentions: int = 0
    caches: int = 0
    quantized: int = 0
    reasons: tuple[str, ...] = ()
    window: str = ""
    recorded: str = ""
    graphs: int = 1
    problem: str = ""
    failure: str = ""


@threads(1)
@torch.no_grad()
def check(family: Family, attn: str, *, inductor: bool = False) -> Result:
    """Generate eagerly and compiled in ``lossless``, and compare.

    With sdpa a left-padded batch, with eager one sequence, and both where there is no sdpa.

    Raises:
        AssertionError: where tokens or logits differ.
    """
    forget_graphs()
    try:
        model = family.build(attn)
        torch.manual_seed(1)
        batches: list[Any] = []
        if attn != "sdpa":
            batches.append(inputs_for(model, 1))
        if attn == "sdpa" or len(family.attn) == 1:
            batches.append(inputs_for(model, 2, (0, 7)))
        steps = 2 * NEW_TOKENS if model.config.is_encoder_decoder else NEW_TOKENS
        expected = [_generated(family, model, inputs, steps) for inputs in batches]
        if any(tokens.dim() != 2 for tokens, *_ in expected):
            raise ValueError("its tokens are not text")
    except Exception as error:
        return Result(problem=_short(error))
    caches = len(expected[0][2])
    innerq(model, preset="lossless")
    runs = []
    with warnings.catch_warnings(), emulation(), contextlib.nullcontext() if inductor else without_inductor(as_it_is):
        warnings.simplefilter("ignore")
        for inputs, (want_tokens, want, _) in zip(batches, expected, strict=True):
            calls = []
            for count in (1, steps):  # what runs for one token is the prompt
                before = {report.index: report.calls for report in compiled_graphs()}
                tokens, logits, are_quantized = _generated(family, model, inputs, count)
                assert_same_tokens(tokens, logits, want_tokens[:, :count], want[:, :count], torch.float32)
                calls.append({r.index: r.calls - before.get(r.index, 0) for r in compiled_graphs()})
            of_steps = {index: count - calls[0].get(index, 0) for index, count in calls[1].items()}
            run = [(r, of_steps[r.index]) for r in compiled_graphs() if of_steps[r.index] > 0]
            runs.append([(report, count) for report, count in run if report.kind != "prefill"])  # compiled anew
    return min(
        (_of_run(run, steps - 1, caches, sum(are_quantized)) for run in runs), key=lambda result: result.rewritten
    )


def _generated(family: Family, model: Any, inputs: Any, count: int) -> tuple[torch.Tensor, torch.Tensor, list[bool]]:
    """As ``generate`` does; for each key that the innermost ``generate`` returns, whether it is quantized.

    A class may make dense copies of caches that its base class returns, as Whisper does to cut sound into segments.
    """
    innermost, found = GenerationMixin.generate, []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = innermost(self, *args, **kwargs)
        found.append([isinstance(keys, InnerQTensor) for keys in _keys(getattr(out, "past_key_values", None))])
        return out

    own = {"special_tokens": False} if family.model in WITH_OWN_TOKENS else {}
    with mock.patch.object(GenerationMixin, "generate", watched):
        tokens, logits, cache = generate(model, inputs, count, num_beams=1, **own)
    return tokens, logits, found[-1] if found else [isinstance(keys, InnerQTensor) for keys in _keys(cache)]


def _of_run(run: list[tuple[GraphReport, int]], steps: int, caches: int, quantized: int) -> Result:
    """Of graphs, and how often each ran in all steps."""
    reports = [report for report, _ in run]
    layers = [layer for report in reports for layer in report.layers]
    rewritten, attentions = (
        sum(getattr(report, name) * calls for report, calls in run) for name in ("rewritten", "attentions")
    )
    reasons = _reasons([report for report in reports if report.attentions])
    if not reasons and not (attentions and quantized == caches):  # graphs without attention may have lost it
        reasons = _reasons(reports) if run or not caches else (NOT_RUN,)
    recorded = {_recorded(report) for report, calls in run if report.attentions and calls > 1}
    if attentions and not recorded:
        recorded = {f"no: {EACH_STEP}"}
    return Result(
        rewritten=rewritten // steps,
        attentions=-(-attentions // steps),
        caches=caches,
        quantized=quantized,
        reasons=reasons,
        window=", ".join(sorted({layer.window for layer in layers if layer.window})),
        recorded="; ".join(sorted(recorded)),
        graphs=round(sum(calls for _, calls in run) / steps),
        failure=UNEVEN if attentions % steps else "",
    )


def _reasons(reports: list[GraphReport]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason.text for report in reports for reason in report.reasons))


def _recorded(report: GraphReport) -> str:
    """Without the names of nodes and lines, which say nothing outside of the graph."""
    return "yes" if report.recorded else str(report.cuda_graphs).partition(" (File")[0].partition(", at ")[0]


def _keys(cache: Any) -> list[torch.Tensor]:
    """Keys of all layers that cache some, of an encoder as well."""
    if cache is None:
        return []
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    layers = [layer for part in (cache, *parts) for layer in getattr(part, "layers", ())]
    keys = [getattr(layer, "keys", None) for layer in layers]
    return [side for side in keys if isinstance(side, torch.Tensor) and side.dim() > 2]


def _short(error: BaseException) -> str:
    """The first sentence of an error's text, or the package that is missing."""
    if isinstance(error, ImportError) and (package := _PACKAGE.search(str(error))):
        return NEEDS + (package[1] or package[2])
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if "Class validation error" in text:
        text = str(error).splitlines()[-1].strip()
    return f"{type(error).__name__}: {text.partition('. ')[0]}"[:200].rstrip(" .")
