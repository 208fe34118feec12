"""A script under torchrun whose graphs run operator by operator: ``-m tests.helpers.cheaply SCRIPT ARGUMENTS``."""

from __future__ import annotations

import runpy
import sys

from tests.helpers.rank import counted_collectives

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with counted_collectives(inductor=False):
        runpy.run_path(sys.argv[0], run_name="__main__")
