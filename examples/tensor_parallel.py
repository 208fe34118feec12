"""A model that transformers splits among ranks, each with the quantized cache of its own heads.

torchrun --nproc-per-node 2 examples/tensor_parallel.py --model ./my-model --prompt "Once upon a time"

Any number of ranks that divides the model's KV heads; on GPUs through NCCL, without one on CPUs through gloo.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

from innerq_compile import PRESETS, innerq


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a name on the Hugging Face hub")
    parser.add_argument("--prompt", default="The three most important ideas of computer science are")
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args(arguments)

    model = AutoModelForCausalLM.from_pretrained(args.model, tp_plan="auto").eval()  # joins the ranks of torchrun
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = innerq(model, preset=args.preset)  # the same line as on one device, on every rank

    inputs = tokenizer(args.prompt, return_tensors="pt").to(model.device)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=args.tokens, do_sample=False, return_dict_in_generate=True)
    text = tokenizer.decode(output.sequences[0], skip_special_tokens=True)

    layers = output.past_key_values.layers
    mine = (layers[0].keys.shape[1], sum(layer.keys.nbytes_held + layer.values.nbytes_held for layer in layers))
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    if dist.get_rank() == 0:
        print(text)
        for rank, (heads, held) in enumerate(ranks):
            print(f"rank {rank}: {heads} KV heads, {held:,} bytes of cache")
    torch.compiler.reset()  # NCCL would wait for CUDA graphs of its collectives, if mode asks for some
    dist.destroy_process_group()
    return text


if __name__ == "__main__":
    main()
