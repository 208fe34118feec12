#!/usr/bin/env bash
# Checks and figures of more than one GPU, on a machine with two or more: benchmarks/parallel.sh [RANKS]
# Ends with a table: ms a decode step and GiB a rank at the shape of an 8B Llama, on one GPU and on RANKS.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ranks=${1:-$(python -c "import torch; print(torch.cuda.device_count())")}
out=$(mktemp -d)
python -m pytest -m gpu tests/gpu/test_parallel_gpu.py -q 2>&1 | tail -15
rows=(1x32768 4x32768 1x122880)
python benchmarks/generate_8b.py --rows "${rows[@]}" --json "$out/1.json"
torchrun --standalone --nproc-per-node "$ranks" benchmarks/generate_8b.py --rows "${rows[@]}" --json "$out/n.json"
python - "$out"/*.json <<'PYTHON'
import json, sys
print(f"{'batch x tokens':>15} {'ranks':>5} {'side':>7} {'ms':>8} {'GiB, rank 0':>11}")
for path in sys.argv[1:]:
    found = json.load(open(path))
    for row in found["results"]:
        figures = f"{row['ms']:>8.2f} {row['decode_peak_gib']:>11.1f}" if "ms" in row else row["failed"]
        print(f"{row['row']:>15} {found['ranks']:>5} {row['side']:>7} {figures}")
PYTHON
