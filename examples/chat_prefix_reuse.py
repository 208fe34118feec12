"""One long document, several questions: the document is read once, and its quantized cache is copied for each question.

A copy of a quantized cache is a copy of its bytes, a quarter of what a 16-bit one takes, and what one conversation
appends is not seen by the others.

    python examples/chat_prefix_reuse.py
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from innerq_compile import innerq

QUESTIONS = ("What is the text about?", "Which keywords does it name?", "Summarize it in a sentence.")


def main(arguments: list[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a name on the Hugging Face hub (default: the demo model)")
    parser.add_argument("--document", help="a text file (default: a part of Python's own documentation)")
    parser.add_argument("--document-tokens", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args(arguments)

    if args.model is None:
        from smollm2 import load

        model, tokenizer = load()
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.document is None:
        from smollm2 import prose

        text = prose()[: 12 * args.document_tokens]
    else:
        with open(args.document, encoding="utf-8") as file:
            text = file.read()
    innerq(model)

    document = tokenizer(text, return_tensors="pt")["input_ids"][:, : args.document_tokens]
    answers = []
    with torch.no_grad():
        began = time.perf_counter()
        prefix = model(document, use_cache=True, logits_to_keep=1).past_key_values
        print(f"read {document.shape[1]} tokens once: {time.perf_counter() - began:.2f} s")
        for question in QUESTIONS:
            asked = tokenizer(f"\n\nQuestion: {question}\nAnswer:", return_tensors="pt", add_special_tokens=False)
            ids = torch.cat((document, asked["input_ids"]), dim=1)
            cache = copy.deepcopy(prefix)  # each conversation continues its own copy
            began = time.perf_counter()
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=args.tokens,
                do_sample=False,
            )
            answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
            print(f"{question} ({time.perf_counter() - began:.2f} s)\n    {answers[-1]!r}")
    assert prefix.layers[0].keys.shape[2] == document.shape[1]  # nothing was appended to the prefix
    return answers


if __name__ == "__main__":
    main()
