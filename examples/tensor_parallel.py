"""A model that transformers shards over processes: each holds the quantized cache of its own heads.

torchrun --nproc-per-node 3 examples/tensor_parallel.py          # the demo model has three KV heads
torchrun --nproc-per-node 8 examples/tensor_parallel.py --model ./my-model --prompt "Once upon a time"
"""

from __future__ import annotations

import argparse
import tempfile

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

from innerq_compile import PRESETS, innerq


def demo_model() -> str:
    """A folder with the demo model, which its package holds in another form: rank 0 writes it, all read it."""
    folder = [None]
    if dist.get_rank() == 0:
        from smollm2 import load

        folder = [tempfile.mkdtemp()]
        for part in load():
            part.save_pretrained(folder[0])
    dist.broadcast_object_list(folder)
    return folder[0]


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a name on the Hugging Face hub (default: the demo model)")
    parser.add_argument("--prompt", default="The three most important ideas of computer science are")
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args(arguments)

    if torch.cuda.is_available():
        torch.cuda.set_device(int(torch.distributed.get_node_local_rank(0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    folder = args.model or demo_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").eval()

    model = innerq(model, preset=args.preset)  # as on one device

    inputs = tokenizer(args.prompt, return_tensors="pt").to(model.device)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=args.tokens, do_sample=False, return_dict_in_generate=True)
    text = tokenizer.decode(output.sequences[0], skip_special_tokens=True)
    keys = output.past_key_values.layers[0].keys
    for rank in range(dist.get_world_size()):
        if rank == dist.get_rank():
            print(f"rank {rank}: {keys.shape[1]} KV heads, cache {keys}, {text!r}", flush=True)
        dist.barrier()
    dist.destroy_process_group()
    return text


if __name__ == "__main__":
    main()
