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
rows = [row for path in sys.argv[1:] for row in json.load(open(path))]
print(f"{'batch x tokens':>15} {'ranks':>5} {'side':>7} {'ms':>8} {'GiB a rank':>10}")
for row in rows:
    print(f"{row['row']:>15} {row['ranks']:>5} {row['side']:>7} {row['ms']:>8.2f} {row['peak_gib']:>10.1f}")
PYTHON
