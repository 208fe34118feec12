"""Ranks under torchrun, and what each of them found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


class Ranks:
    """Runs ``cases`` (see ``rank.run_case``) on ``ranks`` processes, while the test computes what it expects."""

    def __init__(self, cases: list[dict[str, Any]], ranks: int, folder: Path, device: str = "cpu") -> None:
        job = folder / "job.pt"
        torch.save({"cases": cases, "device": device}, job)
        self._folder, self._ranks = folder, ranks
        self._log = (folder / "log.txt").open("w")
        self._process = subprocess.Popen(
            torchrun(ranks, "-m", "tests.helpers.rank", str(job)),
            cwd=ROOT,
            env=environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def results(self) -> list[list[dict[str, Any]]]:
        """For each rank, the result of each case."""
        try:
            code = self._process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # torchrun ends its ranks, each of which writes where it stands
            code = self._process.wait()
        self._log.close()
        assert code == 0, (self._folder / "log.txt").read_text()[-6000:]
        return [torch.load(self._folder / f"rank_{rank}.pt", weights_only=False) for rank in range(self._ranks)]


def torchrun(ranks: int, *arguments: str) -> list[str]:
    """The command line that runs ``arguments`` on ``ranks`` processes of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, *arguments]


def environment() -> dict[str, str]:
    """The environment of the ranks: this repository, a thread each."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
