"""What one rank runs: ``torchrun --nproc-per-node N -m tests.helpers.rank JOB``, JOB a file that `Ranks` wrote."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import innerq_compile
from innerq_compile import InnerQTensor, innerq
from tests.helpers.models import generate
from tests.helpers.without_inductor import forget_graphs, without_inductor


@contextlib.contextmanager
def counted_collectives(inductor: bool):
    """A list with the collectives of each graph; without ``inductor`` the graphs run operator by operator."""
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[dict[str, int]] = []

    def count(gm, example_inputs):
        names = (str(node.target).split(".")[1] for node in gm.graph.nodes if "_c10d_functional" in str(node.target))
        graphs.append(dict(Counter(names)))
        return gm.forward

    with contextlib.nullcontext() if inductor else without_inductor(aot_autograd(fw_compiler=count)):
        yield graphs


def run_case(case: dict[str, Any], device: str) -> dict[str, Any]:
    """One model, compiled and asked for tokens: what came out, and what this rank holds."""
    from transformers import AutoModelForCausalLM

    forget_graphs()
    dtype = getattr(torch, case.get("dtype", "float32"))
    model = AutoModelForCausalLM.from_pretrained(case["model"], tp_plan=case.get("plan", "auto"), dtype=dtype).eval()
    with counted_collectives(case.get("inductor", False)) as graphs:
        try:
            innerq(model, **case["options"])
        except innerq_compile.InnerQError as error:
            return {"error": str(error)}
        inputs = {name: tensor.to(device) for name, tensor in case["inputs"].items()}
        with torch.no_grad():
            tokens, logits, cache = generate(model, inputs, case["new"], **case.get("arguments", {}))
    layers = cache.layers
    return {
        "tokens": tokens.cpu(),
        "logits": logits.cpu(),
        "heads": [layer.keys.shape[1] for layer in layers],
        "quantized": [isinstance(layer.keys, InnerQTensor) for layer in layers],
        "bytes": [getattr(layer.keys, "nbytes_held", 0) + getattr(layer.values, "nbytes_held", 0) for layer in layers],
        "rewritten": [(report.kind, report.rewritten) for report in innerq_compile.compiled_graphs()],
        "cuda_graphs": [str(report.cuda_graphs) for report in innerq_compile.compiled_graphs()],
        "collectives": graphs,
    }


def main() -> None:
    faulthandler.register(signal.SIGTERM, chain=True)
    job = torch.load(sys.argv[1], weights_only=False)
    folder = Path(sys.argv[1]).parent
    device = job["device"]
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank = dist.get_rank()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    results = [run_case(case, device) for case in job["cases"]]
    torch.save(results, folder / f"rank_{rank}.pt")
    torch.compiler.reset()  # NCCL waits for the CUDA graphs that recorded its collectives
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
