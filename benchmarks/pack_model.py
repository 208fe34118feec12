"""Pack a GGUF model, documents and questions into a few files, for a machine without a network.

    python benchmarks/pack_model.py --out ../fidelity-data                     # here: SmolLM2
    python benchmarks/pack_model.py --model gemma3 --out ../fidelity-data-gemma
    python benchmarks/fidelity.py --data ../fidelity-data --device cuda        # there

The quantized bytes of the GGUF file are kept, under the names that transformers uses. The files are read back and
compared with what transformers loads from the GGUF file.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from emulation.documents import documents
from emulation.ggml import BLOCKS
from emulation.models import MODELS, load, model_file
from emulation.packed import load_packed
from emulation.retrieval import questions

#: Most bytes of weights in a file.
PART_BYTES = 50_000_000
#: transformers' names of the weights of a layer, by those of GGUF.
LLAMA = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3 = LLAMA | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
NAMES = {"llama": LLAMA, "gemma3_text": GEMMA3}
#: Fields of a config that are about its files and not about the model.
FOREIGN = ("_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version")


def _name(name: str, layer_names: dict[str, str]) -> str:
    if name in ("token_embd.weight", "output_norm.weight"):
        return "model.embed_tokens.weight" if name == "token_embd.weight" else "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{layer_names[kind]}.weight"


def _tensors(gguf_file: Path, config) -> dict[str, tuple[str, list[int], torch.Tensor]]:
    """GGML type, shape and blocks ``[blocks, bytes]`` by name, laid out as transformers has the weights."""
    import gguf
    import numpy

    llama = config.model_type == "llama"
    found = {}
    for t in gguf.GGUFReader(gguf_file).tensors:
        shape, kind = [int(n) for n in reversed(t.shape)], t.tensor_type.name
        raw = torch.from_numpy(numpy.array(t.data).reshape(-1).view(numpy.uint8))
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = heads.get(t.name.split(".")[-2]) if llama and t.name.startswith("blk.") else None
        if count:  # GGUF interleaves the halves of each rotary pair
            raw = raw.reshape(count, shape[0] // count // 2, 2, -1).transpose(1, 2).reshape(-1)
        if not llama and t.name.endswith("norm.weight"):  # Gemma multiplies by 1 + weight, GGUF has the sum
            raw = (raw.view(torch.float32) - 1).view(torch.uint8)
        found[_name(t.name, NAMES[config.model_type])] = (kind, shape, raw.reshape(-1, BLOCKS[kind][1]))
    return found


def pack(gguf_file: Path, config, out: Path) -> None:
    """Write ``model-0.pt ...`` of a GGUF file. A tensor may be in several files, loaded in the order of their names.

    Raises:
        SystemExit: for a model whose names or rotary layout are not known.
    """
    if config.model_type not in NAMES:
        raise SystemExit(f"{config.model_type} cannot be packed: known are {', '.join(NAMES)}")
    kept = {name: value for name, value in config.to_dict().items() if name not in FOREIGN and value is not None}
    parts: list[dict] = [{}]
    room = PART_BYTES
    for name, (kind, shape, raw) in _tensors(gguf_file, config).items():
        while len(raw):
            blocks = min(len(raw), room // raw.shape[1])
            if blocks == 0:
                parts.append({})
                room = PART_BYTES
                continue
            parts[-1][name] = (kind, shape, raw[:blocks].clone())
            raw, room = raw[blocks:], room - blocks * raw.shape[1]
    for old in out.glob("model-*.pt"):
        old.unlink()
    digits = len(str(len(parts) - 1))
    for index, part in enumerate(parts):
        torch.save({"config": kept, "tensors": part}, out / f"model-{index:0{digits}}.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=120, help="of each retrieval task")
    args = parser.parse_args()
    from smollm2 import prose

    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(args.model)
    pack(model_file(args.model), model.config, args.out)
    packed, state = load_packed(args.out), model.state_dict()
    for name, value in packed.state_dict().items():
        if not torch.equal(value, state[name]):
            raise SystemExit(f"{name} is not what transformers loads")
    names, tokens = documents(tokenizer)
    torch.save(
        {"model": MODELS[args.model], "names": names, "tokens": tokens.to(torch.int32)}, args.out / "documents.pt"
    )
    asked = questions(tokenizer, prose(), args.questions)
    torch.save({task: dataclasses.asdict(q) for task, q in asked.items()}, args.out / "questions.pt")
    print(f"{len(names)} documents: {', '.join(names)}")
    for file in sorted(args.out.iterdir()):
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
