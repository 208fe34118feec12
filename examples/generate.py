"""transformers' own ``generate`` with a quantized cache.

python examples/generate.py                              # SmolLM2-135M, if `make demo` has installed it
python examples/generate.py --model ./my-model --prompt "Once upon a time" --preset small
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from innerq_compile import PRESETS, innerq


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a name on the Hugging Face hub (default: the demo model)")
    parser.add_argument("--prompt", default="The three most important ideas of computer science are")
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args(arguments)

    if args.model is None:
        from smollm2 import load

        model, tokenizer = load()
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model)

    model = innerq(model, preset=args.preset)  # the only line that a program needs

    inputs = tokenizer(args.prompt, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=args.tokens, do_sample=False, return_dict_in_generate=True)
    text = tokenizer.decode(output.sequences[0], skip_special_tokens=True)
    print(text)
    layers = output.past_key_values.layers
    print(f"cache: {layers[0].keys}")
    print(f"bytes: {sum(layer.keys.nbytes_held + layer.values.nbytes_held for layer in layers):,}")
    return text


if __name__ == "__main__":
    main()
