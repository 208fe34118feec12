"""One rank of `test_tensor_parallel.py`: the model sharded by transformers beside the same model whole, on this rank.

torchrun --nproc-per-node N tests/parallel/cheaply.py tests/parallel/worker.py FOLDER OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from innerq_compile import clear_reports, compiled_graphs, innerq

PROMPT, NEW = 200, 8


def generated(model, ids):
    """``(tokens, logits [steps, vocabulary], cache)`` of greedy decoding."""
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[0, PROMPT:].tolist(), torch.cat(output.logits), output.past_key_values


def compiled(model, preset, ids):
    torch._dynamo.reset()
    clear_reports()
    result = generated(innerq(model, preset=preset), ids)
    return result, [[report.kind, report.rewritten, list(map(str, report.reasons))] for report in compiled_graphs()]


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    ids = torch.randint(0, 256, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    sharded = AutoModelForCausalLM.from_pretrained(folder / "divides", tp_plan="auto").eval()
    whole = AutoModelForCausalLM.from_pretrained(folder / "divides").eval()
    rows = {"ranks": dist.get_world_size()}
    with torch.no_grad():
        eager = generated(whole, ids)
        for preset in ("lossless", "base"):
            (tokens, logits, cache), graphs = compiled(sharded, preset, ids)
            expected, graphs_whole = (eager, None) if preset == "lossless" else compiled(whole, preset, ids)
            rows[preset] = {
                "tokens": tokens,
                "expected": expected[0],
                "error": ((logits - expected[1]).norm() / expected[1].norm()).item(),
                # of the first decode step, before which both sides have taken the same token
                "from_eager": ((logits[1] - eager[1][1]).norm() / eager[1][1].norm()).item(),
                "graphs": graphs,
                "graphs_whole": graphs_whole,
                "caches": [[type(layer.keys).__name__, list(layer.keys.shape)] for layer in cache.layers],
                "bytes": sum(layer.keys.nbytes_held for layer in cache.layers),
                "bytes_whole": sum(getattr(layer.keys, "nbytes_held", 0) for layer in expected[2].layers),
            }
        uneven = AutoModelForCausalLM.from_pretrained(folder / "uneven", tp_plan="auto").eval()
        for side in ("eager", "innerq"):
            try:
                generated(uneven if side == "eager" else innerq(uneven), ids)
                rows[side] = "no error"
            except Exception as error:
                rows[side] = f"{type(error).__name__}: {error}"[:2000]
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
