"""What the process does once from which ``sweep.py`` forks those of the families: it imports, and compiles a model."""

from __future__ import annotations

import gc
import os

os.environ.update(TORCH_FAKE_TENSOR_DISPATCH_CACHE="0", INNERQ_PROGRESS="0", INNERQ_TRACES="0", OMP_NUM_THREADS="1")

from tests.helpers.families import check, family

check(family("LlamaForCausalLM"), "sdpa")
gc.freeze()
gc.set_threshold(10_000, 10, 10)
