"""Machine code of every Triton kernel of a model's prompt and decode graphs, without a GPU.

    python -m tests.helpers.compile_step 3000 80 90     # the prompt's tokens, and capabilities of GPUs

Inductor makes the kernels as it would on a GPU (``inductor.py``); none is run, and each is compiled. So this finds
code that the interpreter runs and a compiler refuses. Prints how many there were, and those
that failed.
"""

from __future__ import annotations

import sys
from unittest import mock

import torch

from innerq_compile import compiled_graphs, innerq
from innerq_compile.kernels.lowering import dependent
from tests.helpers import inductor
from tests.helpers.models import prompt, tiny_llama


def main(tokens: int, targets: list[int]) -> int:
    made, load = [], inductor._load

    def loaded(self, name, source, device_str="cuda"):
        made.append((name, load(self, name, source, device_str)))
        return made[-1][1]

    def nothing(self, *args, **options):
        for each in args:
            if isinstance(each, torch.Tensor):
                each.zero_()  # the host reads some tensors, such as the padding of a prompt, so these need real numbers

    with (
        mock.patch.object(inductor, "_load", loaded),
        mock.patch.object(inductor.Interpreted, "run", nothing),
        mock.patch.object(dependent, "launch_options", lambda device: {"PDL": True}),
        inductor.as_on_a_gpu(),
        torch.no_grad(),
    ):
        model = innerq(tiny_llama(layers=2, dtype=torch.float16), preset="base")
        cache = model(**prompt(1, tokens), use_cache=True).past_key_values
        mask, place = torch.ones(1, tokens + 1, dtype=torch.long), torch.tensor([[tokens]])
        model(torch.ones(1, 1, dtype=torch.long), attention_mask=mask, position_ids=place, past_key_values=cache)
        assert [report.kind for report in compiled_graphs()] == ["prefill", "decode"]
        failed = 0
        for name, kernel in made:
            for target in targets:
                try:
                    kernel.compile_for(target)
                except Exception as failure:
                    failed += 1
                    print(f"{name} for sm_{target}: {failure!r}")
    print(f"{len(made)} kernels for {len(targets)} targets, {failed} failed")
    return int(failed > 0 or not any("decode_attention" in name for name, _ in made))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), [int(target) for target in sys.argv[2:]]))
