"""A model in a few files that need neither gguf nor a tokenizer; ``benchmarks/pack_model.py`` makes them."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from .ggml import dequantize


def load_packed(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """The model of the ``model-*.pt`` files in ``folder``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    pieces: dict[str, list[torch.Tensor]] = {}
    config, shapes = None, {}
    for file in sorted(Path(folder).glob("model-*.pt")):
        part = torch.load(file, weights_only=True)
        config = part["config"]
        for name, (kind, shape, raw) in part["tensors"].items():
            pieces.setdefault(name, []).append(dequantize(kind, raw.to(device)).to(dtype).flatten())
            shapes[name] = shape
    if config is None:
        raise SystemExit(f"no model-*.pt in {folder}: make them with benchmarks/pack_model.py --out {folder}")
    config = dict(config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    whole = {name: torch.cat(found) for name, found in pieces.items()}
    short = [name for name, found in whole.items() if found.numel() != math.prod(shapes[name])]
    if short:
        raise SystemExit(f"{folder} lacks parts of {', '.join(short)}: copy all its model-*.pt")
    tensors = {name: found.reshape(shapes[name]) for name, found in whole.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise SystemExit(f"packed model does not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.to(device, dtype).eval()
