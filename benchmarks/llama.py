"""The model that benchmarks without a checkpoint run, and the times of the tokens that it generates."""

from __future__ import annotations

import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}


def model_8b(
    layers: int = 32, device: str = "cuda", dtype: torch.dtype = torch.float16, **changes: int
) -> LlamaForCausalLM:
    """A Llama of the 8B shape with random weights, made on the device; ``changes`` of its config for smaller shapes."""
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    config = LlamaConfig(
        **(shape | changes),
        num_hidden_layers=layers,
        max_position_embeddings=1 << 20,
        attn_implementation="sdpa",
    )
    default = torch.get_default_dtype()
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(default)
    return model


class Clock(BaseStreamer):
    """The times at which ``generate`` returned the prompt and each token."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # generate has brought the token to the CPU
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass
