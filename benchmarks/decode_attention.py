"""Speed of the Triton kernels for decode attention, append and prefill on a GPU.

For each row: the error relative to the float32 reference, the median time of a call, the bandwidth relative to a plain
read measured in the same run, and the time of the faster of SDPA's flash and cuDNN kernels on a dense cache of the same
shape. Calls are captured into one CUDA graph that goes through so many copies of the inputs that the L2 cache cannot
hold them, so that the times include neither launches nor hits in L2.

    python benchmarks/decode_attention.py [--rows base-32K,int4-32K] [--sweep] [--compiled]
        [--time-budget 400] [--json out.json]

Results are printed as they are measured; the JSON file is rewritten after each row.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import tables
import torch
import triton
import triton.language as tl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from innerq_compile import InnerQConfig
from innerq_compile.kernels import layout, lowering, reference
from innerq_compile.kernels import triton as kernels
from innerq_compile.kernels.attention_call import AttentionCall
from innerq_compile.kernels.formats import CacheFormat, blocks_for, default_scale_dtype
from innerq_compile.kernels.triton import attention, cache_append, cache_prefill
from innerq_compile.kernels.triton.attention import FieldsConfig

console = tables.console
L2_BYTES = 60 << 20


@dataclasses.dataclass(frozen=True)
class Row:
    """A shape and a format."""

    name: str
    key_bits: int
    value_bits: int
    batch: int
    heads: int
    group: int
    head_dim: int
    tokens: int
    key_mode: str = "signed"
    value_mode: str = "signed"
    dtype: str = "float16"
    scale_dtype: str = ""
    rows: int = 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def formats(self) -> tuple[CacheFormat, CacheFormat]:
        scale = self.scale_dtype or default_scale_dtype(self.torch_dtype)
        return (
            CacheFormat("key", self.key_bits, self.key_mode, 32, 32, 96, scale),
            CacheFormat("value", self.value_bits, self.value_mode, 32, 32, 96, scale),
        )

    @property
    def read_bytes(self) -> int:
        """Bytes of codes, scales and windows that a call has to read."""
        total = 0
        for fmt in self.formats:
            blocks = blocks_for(fmt, self.tokens)
            words = layout.words_per_block(fmt, self.head_dim) * 4
            scales = layout.scales_per_block(fmt, self.head_dim) * fmt.torch_scale_dtype.itemsize
            window = (self.tokens - blocks * fmt.block) * self.head_dim * self.torch_dtype.itemsize
            total += self.batch * self.heads * (blocks * (words + scales) + window)
        return total

    @property
    def dense_bytes(self) -> int:
        return 2 * self.batch * self.heads * self.tokens * self.head_dim * 2


K = 1024
ROWS = [
    Row("base-32K", 3, 3, 4, 8, 4, 128, 32 * K),
    Row("int4-32K", 4, 4, 4, 8, 4, 128, 32 * K),
    Row("small-32K", 3, 2, 4, 8, 4, 128, 32 * K),
    Row("two-32K", 2, 2, 4, 8, 4, 128, 32 * K),
    Row("base-B1-128K", 3, 3, 1, 8, 4, 128, 128 * K),
    Row("base-B1-8K", 3, 3, 1, 8, 4, 128, 8 * K),
    Row("base-B32-4K", 3, 3, 32, 8, 4, 128, 4 * K),
    Row("mha-32K", 3, 3, 1, 32, 1, 128, 32 * K),
    Row("base-D64-G3", 3, 3, 4, 8, 3, 64, 32 * K),
    Row("base-D256", 3, 3, 4, 8, 2, 256, 32 * K),
    Row("base-bf16", 3, 3, 4, 8, 4, 128, 32 * K, dtype="bfloat16"),
    Row("hybrid-32K", 3, 2, 4, 8, 4, 128, 32 * K, value_mode="hybrid"),
    Row("int8-32K", 8, 8, 4, 8, 4, 128, 32 * K),
    *(
        Row(f"{name}-pair8", *shape, "hybrid", "hybrid", scale_dtype="pair8")
        for name, *shape in [
            ("base-32K", 3, 3, 4, 8, 4, 128, 32 * K),
            ("int4-32K", 4, 4, 4, 8, 4, 128, 32 * K),
            ("small-32K", 3, 2, 4, 8, 4, 128, 32 * K),
            ("two-32K", 2, 2, 4, 8, 4, 128, 32 * K),
            ("base-B1-128K", 3, 3, 1, 8, 4, 128, 128 * K),
            ("base-B1-8K", 3, 3, 1, 8, 4, 128, 8 * K),
            ("base-B32-4K", 3, 3, 32, 8, 4, 128, 4 * K),
            ("base-D64-G3", 3, 3, 4, 8, 3, 64, 32 * K),
            ("base-D256", 3, 3, 4, 8, 2, 256, 32 * K),
        ]
    ),
    Row("base-G16", 3, 3, 4, 4, 16, 128, 32 * K),
]
#: Default of --sweep-rows.
SWEPT = "base-32K,two-32K,base-B1-8K,base-B32-4K,base-D64-G3,base-D256,base-G16"


def graph_us(calls: list, repeats: int = 30, least_us: float = 400.0) -> float:
    """Median microseconds of one of ``calls``, all of which are captured in one CUDA graph, several times."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()

    def capture(rounds):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        graph.replay()
        torch.cuda.synchronize()
        return graph

    def replays(graph, count):
        times = []
        for _ in range(count):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
        return statistics.median(times)

    graph, rounds = capture(1), 1
    once = replays(graph, 3)
    if once < least_us:
        rounds = math.ceil(least_us / once)
        graph = capture(rounds)
    return replays(graph, repeats) / (len(calls) * rounds)


def copies_for(size: int) -> int:
    """Number of copies of ``size`` bytes that is too much for the L2 cache."""
    return max(2, min(48, math.ceil(5 * L2_BYTES / size)))


@triton.jit
def read_kernel(x, out, PER: tl.constexpr, BLOCK: tl.constexpr):
    """Each program reads ``PER * BLOCK`` numbers and writes one."""
    pid = tl.program_id(0).to(tl.int64)
    b_all = tl.zeros((BLOCK,), tl.int32)
    for i in tl.range(0, PER, num_stages=1):
        b_all ^= tl.load(x + (pid * PER + i) * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + pid, tl.sum(b_all, 0))


def ceilings() -> dict[str, float]:
    """GB/s of a device-to-device copy (read + write), and of the fastest of several kernels that only read."""
    x = torch.randint(-9, 9, (1 << 29,), device="cuda", dtype=torch.int32)  # 2 GiB
    y = torch.empty_like(x)
    copy = 2 * x.nbytes / graph_us([lambda: y.copy_(x)]) / 1e3
    as_float = x.view(torch.float32)
    reads = {"amax": graph_us([lambda: x.amax()]), "sum": graph_us([lambda: as_float.sum()])}
    out = torch.empty(1 << 20, device="cuda", dtype=torch.int32)
    for per, block in ((16, 4096), (64, 4096), (16, 8192)):
        grid = (x.numel() // per // block,)
        reads[f"triton {per}x{block}"] = graph_us([lambda g=grid, p=per, b=block: read_kernel[g](x, out, p, b)])
    best = min(reads, key=reads.get)
    return {"copy": copy, "read": x.nbytes / reads[best] / 1e3, "read_by": best}


def make_call(row: Row, generator: torch.Generator) -> AttentionCall[torch.Tensor]:
    """A call of a row, over caches of random numbers."""
    start = torch.zeros(row.batch, dtype=torch.int32, device="cuda")
    caches = []
    for fmt in row.formats:
        shape = (row.batch, row.heads, row.tokens, row.head_dim)
        x = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(row.torch_dtype)
        caches.append(kernels.prefill(x, start, None, None, blocks_for(fmt, row.tokens) + 4, fmt))
    shape = (row.batch, row.heads * row.group, row.rows, row.head_dim)
    # sharper scores than those of independent normal numbers, so that the softmax is not flat
    query = 2 * torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
    return AttentionCall(query.to(row.torch_dtype), *caches, None, None, None, row.head_dim**-0.5, causal=True)


def reference_output(row: Row, call: AttentionCall[torch.Tensor]) -> torch.Tensor:
    """The reference in float32, one sequence at a time to save memory."""
    outs = []
    for b in range(row.batch):
        heads = []
        for h in range(row.heads):
            keys, values = (
                cache.map(lambda t, b=b, h=h: t[b : b + 1, h : h + 1].contiguous())
                for cache in (call.keys, call.values)
            )
            q = call.query[b : b + 1, h * row.group : (h + 1) * row.group]
            one = dataclasses.replace(call, query=q, keys=keys, values=values)
            heads.append(reference.decode_attention(one, torch.float32))
        outs.append(torch.cat(heads, 1))
    return torch.cat(outs)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def measure_dense(row: Row) -> dict[str, float]:
    """Microseconds of SDPA on a dense cache, by backend."""
    count = copies_for(row.dense_bytes)
    shape = (row.batch, row.heads, row.tokens, row.head_dim)
    keys, values = ([torch.randn(shape, device="cuda", dtype=row.torch_dtype) for _ in range(count)] for _ in range(2))
    query = torch.randn(
        (row.batch, row.heads * row.group, row.rows, row.head_dim), device="cuda", dtype=row.torch_dtype
    )
    times = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):

        def call(k, v, backend=backend):
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(query, k, v, enable_gqa=row.group > 1)

        try:
            times[name] = graph_us([lambda k=k, v=v, c=call: c(k, v) for k, v in zip(keys, values, strict=True)], 15)
        except RuntimeError as failure:
            console.print(f"  {row.name}: SDPA {name} fails: {str(failure).splitlines()[0][:110]}")
    return times


def measure_decode(
    calls: list[AttentionCall[torch.Tensor]], config: FieldsConfig, splits: int | None = None, repeats: int = 30
):
    """Microseconds of a call, and of its partial kernel alone."""
    whole = graph_us([lambda c=c: attention.decode_attention(c, splits, config) for c in calls], repeats)
    part = graph_us([lambda c=c: attention.decode_partials(c, splits, config) for c in calls], repeats)
    return whole, part


def measure_compiled(row: Row, calls: list[AttentionCall[torch.Tensor]], max_autotune: bool = False) -> float:
    """Microseconds of the operator as Inductor compiles it, with a transposition behind it."""
    lowering.register()
    torch._dynamo.reset()

    def call(query, *caches):
        out = torch.ops.innerq.decode_attention(
            query, *caches, None, None, None, row.head_dim**-0.5, 0.0, True, *(fmt.spec for fmt in row.formats)
        )
        return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)

    compiled = torch.compile(call, fullgraph=True, options={"max_autotune": max_autotune})
    tensors = [(c.query, *c.keys.encoded, *c.values.encoded) for c in calls]
    compiled(*tensors[0])  # compiled, and the combination's block sizes timed, outside the capture
    return graph_us([lambda a=a: compiled(*a) for a in tensors])


# --- configurations ---------------------------------------------------------------------------------------------


def default_config(row: Row) -> FieldsConfig:
    """The launch configuration of a call that names none."""
    return attention.choose_config(row.batch * row.heads, row.group * row.rows, row.head_dim, row.head_dim)


def sweep_configs(row: Row) -> list[FieldsConfig]:
    """The launch configurations that --sweep tries on a row."""
    best = default_config(row)
    change = functools.partial(dataclasses.replace, best)
    wide = row.head_dim > 128
    if row.group * row.rows > 8:
        tried = [{"tile": 8, "programs": p, "maxnreg": 168} for p in (10, 12)]
        tried += [{"programs": p} for p in (6, 7)] + [{"num_warps": 2, "programs": 6}]
    elif wide:
        tried = [{"stages": s, "programs": p, "maxnreg": r} for s in (2, 3) for p, r in ((5, None), (6, 168), (8, 128))]
        tried += [{"num_warps": 4, "programs": p, "maxnreg": r} for p, r in ((3, 168), (4, 128))]
    else:
        tried = [
            {"blocks": blocks, "stages": stages, "maxnreg": maxnreg, "programs": programs}
            for blocks, stages, maxnreg, per in [
                (1, 3, 168, (10, 12)),
                (1, 3, None, (10,)),
                (1, 2, 168, (12,)),
                (1, 4, 168, (10, 12)),
                (1, 3, 128, (12, 16)),
                (2, 2, 168, (10, 12)),
                (2, 2, None, (8, 9)),
                (2, 3, 168, (12,)),
            ]
            for programs in per
        ]
    tried += [{"window_splits": w} for w in (1, 2, 3)] + [{"window_tokens": 32}]
    return list(dict.fromkeys(change(**t) for t in tried))


def _compile(job) -> str:
    """Run one configuration on a tiny cache, which puts its machine code into Triton's cache on disk."""
    row, config = job
    small = dataclasses.replace(row, batch=1, heads=1, tokens=400)
    try:
        attention.decode_attention(make_call(small, torch.Generator(device="cuda").manual_seed(0)), config=config)
        torch.cuda.synchronize()
        return ""
    except Exception as failure:
        return f"{row.name} {config}: {failure!r}"[:300]


def precompile(jobs, workers: int) -> None:
    begin = time.time()
    unique = {}
    for row, config in jobs:
        code = (row.formats, row.head_dim, row.group * row.rows > 8, row.dtype)
        key = (code, dataclasses.replace(config, programs=0))
        unique.setdefault(key, (row, config))
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(unique))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for failure in pool.map(_compile, unique.values(), chunksize=1):
            if failure:
                console.print(failure)
    console.print(f"compiled {len(unique)} kernels with {workers} processes in {time.time() - begin:.0f} s")


# --- append and prefill -----------------------------------------------------------------------------------------


def preset_formats(bits: int, head_dim: int) -> list[CacheFormat]:
    """Keys and values of a float16 cache in the modes of the presets."""
    config = InnerQConfig.preset("base", key_bits=bits, value_bits=bits)
    return [config.format_for(role, head_dim, torch.float16) for role in ("key", "value")]


def measure_append(batch=4, heads=8, head_dim=128, bits=3, num_warps=None) -> dict[str, float]:
    """Microseconds of appending a token to one layer, in a step that quantizes a block and in one that does not."""
    out = {}
    tokens = 4096 + 128
    for name, length in (("flush", tokens + 31), ("no flush", tokens + 5)):
        formats = preset_formats(bits, head_dim)
        start = torch.zeros(batch, dtype=torch.int32, device="cuda")
        x = torch.randn(batch, heads, length, head_dim, device="cuda", dtype=torch.float16)
        new = torch.randn(batch, heads, 1, head_dim, device="cuda", dtype=torch.float16)
        layers = []
        for _ in range(16):
            caches = [kernels.prefill(x, start, None, None, 200, fmt) for fmt in formats]
            states = [cache.state.clone() for cache in caches]
            layers.append((caches, states))

        def reset(caches, states):
            for cache, state in zip(caches, states, strict=True):
                cache.state.copy_(state)

        def step(caches, states, new=new):
            reset(caches, states)
            cache_append.append_([(cache, new) for cache in caches], num_warps=num_warps)

        both = graph_us([lambda c=c, s=s, f=step: f(c, s) for c, s in layers])
        out[name] = both - graph_us([lambda c=c, s=s, f=reset: f(c, s) for c, s in layers])
    return out


def measure_prefill(batch=4, heads=8, head_dim=128, tokens=32 * K, bits=3, num_warps=None) -> dict[str, float]:
    """GB/s of quantizing a prompt: bytes of the prompt and of the cache.

    The query profile is given: in a model Inductor computes it in the prompt's graph.
    """
    out = {}
    moments = torch.rand(batch, heads, 2, head_dim, device="cuda")
    start = torch.zeros(batch, dtype=torch.int32, device="cuda")
    x = torch.randn(batch, heads, tokens, head_dim, device="cuda", dtype=torch.float16)
    mean = torch.randn(batch, heads, head_dim, device="cuda")
    norm = torch.rand(batch, heads, head_dim, device="cuda") + 0.5
    for fmt in preset_formats(bits, head_dim):
        steered = fmt.uses_queries
        profile = reference.query_profile(moments, norm, fmt.group_size) if steered else None
        statistics_of = (mean, norm) if fmt.is_key else (None, None)
        arguments = (x, start, *statistics_of, blocks_for(fmt, tokens), fmt, profile, num_warps)
        size = x.nbytes + sum(t.nbytes for t in kernels.prefill(*arguments[:-1]).encoded)
        us = graph_us([lambda given=arguments: cache_prefill.prefill(*given)])
        out[fmt.role] = size / us / 1e3
    return out


# --- main -------------------------------------------------------------------------------------------------------

COLUMNS = ("row", "error", "us", "partial, us", "GB/s", "% of read", "dense, us", "by", "ratio")


def describe(config: FieldsConfig, defaults: FieldsConfig) -> str:
    changed = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return " ".join(f"{k}={v}" for k, v in changed.items() if v != getattr(defaults, k.strip())) or "default"


class Run:
    """One run of the benchmark: the rows that were chosen, the time that is left, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.time() + options.time_budget
        self.rows = [row for row in ROWS if options.rows == "all" or row.name in options.rows.split(",")]
        self.swept = [row for row in self.rows if options.sweep and row.name in options.sweep_rows.split(",")]
        self.results: dict = {"device": torch.cuda.get_device_name(), "rows": {}, "sweep": {}}

    def left(self) -> float:
        """Seconds until the time budget is used up."""
        return self.end - time.time()

    def save(self) -> None:
        if self.options.json:
            self.options.json.write_text(json.dumps(self.results, indent=1))

    def everything(self) -> None:
        jobs = [(row, default_config(row)) for row in self.rows]
        precompile(jobs + [(row, c) for row in self.swept for c in sweep_configs(row)], self.options.workers)
        self.results["ceilings"] = ceilings()
        console.print(f"{self.results['device']}: {self.results['ceilings']}")
        self.save()
        for row in self.rows:
            if self.left() < 20:
                console.print(f"no time left for {row.name}")
                continue
            self.decode(row)
        tables.show(COLUMNS, [cells(name, entry) for name, entry in self.results["rows"].items()])
        if not self.options.no_append and self.left() > 10:
            self.append_and_prefill()

    def decode(self, row: Row) -> None:
        """Measure decode attention at one row, and sweep it if asked."""
        torch.cuda.empty_cache()
        dense = measure_dense(row)
        torch.cuda.empty_cache()
        first = make_call(row, torch.Generator(device="cuda").manual_seed(1))
        calls = [first, *(first.map(torch.clone) for _ in range(copies_for(row.read_bytes) - 1))]
        expected = reference_output(row, first)

        def measured(config: FieldsConfig, repeats: int = 30) -> dict:
            got = attention.decode_attention(first, config=config)
            us, part = measure_decode(calls, config, repeats=repeats)
            rate = row.read_bytes / us / 1e3
            return {
                "us": us,
                "partial_us": part,
                "error": error(got, expected),
                "gbps": rate,
                "share": rate / self.results["ceilings"]["read"],
                "ratio": min(dense.values(), default=math.nan) / us,
            }

        reason = attention.fields_reason(first)
        entry = measured(default_config(row)) | {"dense_us": dense, "portable": reason}
        if self.options.compiled:
            entry["compiled_us"] = measure_compiled(row, calls)
            entry["autotuned_us"] = measure_compiled(row, calls, max_autotune=True)
            console.print(
                f"{row.name}: eager {entry['us']:.1f} us ({entry['us'] - entry['partial_us']:.1f} of it the "
                f"combination), compiled {entry['compiled_us']:.1f} us, with max_autotune "
                f"{entry['autotuned_us']:.1f} us"
            )
        self.results["rows"][row.name] = entry
        console.print(*cells(row.name, entry), f"portable: {reason}" if reason else "")
        self.save()
        if row in self.swept:
            self.sweep(row, measured)

    def sweep(self, row: Row, measured: Callable[..., dict]) -> None:
        """Try other launch configurations, and print the best twelve and the worst two."""
        found = []
        for config in sweep_configs(row):
            if self.left() < 30:
                console.print("no time left for the rest of the sweep")
                break
            words = describe(config, default_config(row))
            try:
                entry = measured(config, repeats=12)
            except Exception as failure:
                console.print(f"  {words}: {failure!r}"[:200])
                continue
            entry["config"] = dataclasses.asdict(config)
            found.append((entry["us"], words, entry))
            self.results["sweep"].setdefault(row.name, []).append(entry)
        found.sort(key=lambda each: each[0])
        for us, words, entry in found[:12] + found[-2:]:
            wrong = "" if entry["error"] < 2e-2 else f" WRONG {entry['error']:.1e}"
            console.print(f"    {us:7.1f} us  {entry['partial_us']:7.1f} partial  {words}{wrong}")
        self.save()

    def append_and_prefill(self) -> None:
        torch.cuda.empty_cache()
        copy = self.results["ceilings"]["copy"]
        for warps in (None, 1, 2, 4, 8) if self.options.sweep else (None,):
            if self.left() < 5:
                break
            append_us, prefill_gbps = measure_append(num_warps=warps), measure_prefill(num_warps=warps)
            self.results.setdefault("append_us", {})[str(warps)] = append_us
            self.results.setdefault("prefill_gbps", {})[str(warps)] = prefill_gbps
            shares = [f"{k} {v:.0f} GB/s = {100 * v / copy:.0f}%" for k, v in prefill_gbps.items()]
            console.print(
                f"num_warps {warps}: append_ of one layer, B=4, 8 KV heads, D=128: "
                f"{', '.join(f'{k} {v:.2f} us' for k, v in append_us.items())}; "
                f"prefill: {', '.join(shares)} of the copy bandwidth"
            )
        self.save()


def cells(name: str, entry: dict) -> list[str]:
    """One line of the table, see :data:`COLUMNS`."""
    dense = entry["dense_us"]
    best = min(dense, key=dense.get) if dense else ""
    numbers = [f"{entry[key]:.1f}" for key in ("us", "partial_us")]
    numbers += [f"{entry['gbps']:.0f}", f"{100 * entry['share']:.0f}", f"{dense.get(best, math.nan):.1f}"]
    return [name, f"{entry['error']:.1e}", *numbers, best, f"{entry['ratio']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="all", help="names, comma separated")
    parser.add_argument("--sweep", action="store_true", help="try other launch configurations")
    parser.add_argument("--sweep-rows", default=SWEPT, help="names of the rows that --sweep tries them on")
    parser.add_argument("--compiled", action="store_true", help="time the operator as Inductor compiles it, too")
    parser.add_argument("--time-budget", type=float, default=420.0, help="seconds after which nothing new is begun")
    parser.add_argument("--json", type=pathlib.Path, help="file for all results")
    parser.add_argument("--no-append", action="store_true", help="leave out append and prefill")
    parser.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    begin = time.time()
    Run(options).everything()
    console.print(f"done in {time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
