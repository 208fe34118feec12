"""A GGUF model in a few files that need neither the gguf package nor a tokenizer: for machines without a network.

    python benchmarks/emulation/packed.py --out ../fidelity-data      # here: packs SmolLM2 and the documents
    load_packed("/tmp/fidelity-data")                                   # there

The quantized bytes of the GGUF file are kept as they are (lossless), under the names that transformers uses.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

BLOCK = 32


def dequantize(kind: str, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """GGML blocks of 32, ``raw [blocks, bytes]``, as float32 of ``shape``."""
    if kind == "F32":
        return raw.flatten().view(torch.float32).reshape(shape)
    scale = raw[:, :2].contiguous().view(torch.float16).float()
    if kind == "Q8_0":
        return (raw[:, 2:].contiguous().view(torch.int8).float() * scale).reshape(shape)
    if kind == "Q4_1":
        low = raw[:, 2:4].contiguous().view(torch.float16).float()
        codes = torch.cat((raw[:, 4:] & 15, raw[:, 4:] >> 4), 1).float()
        return (codes * scale + low).reshape(shape)
    raise ValueError(f"GGML type {kind} is not supported: allowed are F32, Q8_0, Q4_1")


def load_packed(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """The model of the ``model-*.pt`` files in ``folder``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tensors, config = {}, None
    for file in sorted(Path(folder).glob("model-*.pt")):
        part = torch.load(file, weights_only=True)
        config = part["config"]
        for name, (kind, shape, raw) in part["tensors"].items():
            tensors[name] = dequantize(kind, raw.to(device), tuple(shape)).to(dtype)
    if config is None:
        raise SystemExit(f"no model-*.pt in {folder}: make them with packed.py --out {folder}")
    config = dict(config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise SystemExit(f"packed model does not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.to(device, dtype).eval()


def _names(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    place = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }[kind]
    return f"model.layers.{layer}.{place}.weight"


def pack(gguf_file: Path, config, out: Path, parts: int = 2) -> None:
    """Write ``model-0.pt ...`` of a Llama GGUF file."""
    import gguf
    import numpy

    tensors = {}
    for t in gguf.GGUFReader(gguf_file).tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        raw = torch.from_numpy(numpy.array(t.data).reshape(-1).view(numpy.uint8))
        kind = t.tensor_type.name
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = heads.get(t.name.split(".")[-2]) if t.name.startswith("blk.") else None
        if count:  # GGUF interleaves the halves of each rotary pair
            rows = raw.reshape(count, shape[0] // count // 2, 2, -1)
            raw = rows.transpose(1, 2).reshape(-1)
        width = {"F32": 128, "Q8_0": 34, "Q4_1": 20}[kind]
        tensors[_names(t.name)] = (kind, list(shape), raw.reshape(-1, width).clone())
    wanted = ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    wanted += ["num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings"]
    wanted += ["tie_word_embeddings", "rope_theta", "rope_parameters", "rope_scaling", "bos_token_id", "eos_token_id"]
    kept = {name: value for name, value in config.to_dict().items() if name in wanted and value is not None}
    total, share, part, index = sum(r.numel() for _, _, r in tensors.values()), 0, {}, 0
    for name, entry in tensors.items():
        part[name] = entry
        share += entry[2].numel()
        if share >= total / parts or name == list(tensors)[-1]:
            torch.save({"config": kept, "tensors": part}, out / f"model-{index}.pt")
            part, share, index = {}, 0, index + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=120, help="of each retrieval task")
    args = parser.parse_args()
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / "examples"), str(root / "benchmarks")]
    from smollm2 import load, model_file, prose

    from emulation.documents import documents
    from emulation.retrieval import questions

    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load()
    pack(model_file(), model.config, args.out)
    packed, state = load_packed(args.out), model.state_dict()
    for name, value in packed.state_dict().items():
        if not torch.equal(value, state[name]):
            raise SystemExit(f"{name} is not what transformers loads")
    names, tokens = documents(tokenizer)
    torch.save({"names": names, "tokens": tokens.to(torch.int32)}, args.out / "documents.pt")
    asked = questions(tokenizer, prose(), args.questions)
    torch.save({task: dataclasses.asdict(q) for task, q in asked.items()}, args.out / "questions.pt")
    print(f"{len(names)} documents: {', '.join(names)}")
    for file in sorted(args.out.iterdir()):
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
