"""Run a script with operators as they are in Inductor's place, as the fixture `cheap_inductor`: SCRIPT ARGUMENTS."""

from __future__ import annotations

import runpy
import sys

import torch
import torch._inductor.compile_fx
from torch._dynamo.backends.debugging import aot_eager

if __name__ == "__main__":
    torch._inductor.compile_fx.compile_fx = lambda gm, inputs, *args, **kwargs: aot_eager(gm, inputs)
    torch.set_num_threads(1)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
