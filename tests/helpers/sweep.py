"""All families of transformers, each in a process of its own, which may hang or crash.

    python -m tests.helpers.sweep [--results FILE] [NAMES ...]

Results are kept in a file while it runs, and an interrupted sweep goes on from there, unless the code has changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.helpers.families import Family, Result, check, families

#: Seconds for a family with one attention implementation, and how the failure of one that takes longer begins.
LIMIT = 300
TOO_LONG = "takes more than"

ROOT = Path(__file__).parents[2]
#: Endings of files that are code.
SOURCES = {".py", ".h"}

Results = dict[str, dict[str, Result]]


def sweep(
    wanted: Iterable[Family],
    kept: Path | None = None,
    workers: int = 1,
    done: Callable[[str], None] = print,
    limit: int = 0,
) -> Results:
    """What becomes of each family with each of its attention implementations.

    Args:
        wanted: families.
        kept: file that holds what has been found, and to which each result is added. What is in it is dropped where
            ``identity`` has changed since.
        workers: processes at once.
        done: told of each result.
        limit: seconds for each, where it is not ``LIMIT``.
    """
    of, limit = identity(), limit or LIMIT
    results = _read(kept, of) if kept is not None and kept.exists() else {}
    cases = [(one, attn) for one in wanted for attn in one.attn if attn not in results.get(one.name, {})]
    cases.sort(key=lambda case: case[0].attn.index(case[1]))  # what is found first says something of each family
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.sweep_server"])
    running: dict[Connection, tuple[Family, str, float, BaseProcess]] = {}
    while cases or running:
        while cases and len(running) < workers:
            one, attn = cases.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(one, attn, theirs))
            process.start()
            theirs.close()
            running[ours] = one, attn, time.monotonic(), process
        ready = wait(list(running), timeout=1)
        for pipe, (one, attn, start, process) in list(running.items()):
            if pipe not in ready and time.monotonic() - start < limit:
                continue
            result = _received(pipe, process, limit)
            del running[pipe]
            results.setdefault(one.name, {})[attn] = result
            if kept is not None:
                _write(kept, results, of)
            done(f"{one.name} {attn} {time.monotonic() - start:.1f} s: {result}")
    return results


def _received(pipe: Connection, process: BaseProcess, limit: int) -> Result:
    try:
        result = pipe.recv() if pipe.poll() else Result(failure=f"{TOO_LONG} {limit} seconds")
    except EOFError:
        process.join()
        result = Result(failure=f"the process ended with {process.exitcode}")
    process.kill()
    process.join()
    return result


def _run(one: Family, attn: str, pipe: Connection) -> None:
    os.environ["INNERQ_PROGRESS"] = "0"
    try:
        result = check(one, attn)
    except AssertionError as error:
        result = Result(failure="wrong tokens: " + " ".join(str(error).split())[:300])
    except Exception as error:
        traceback.print_exc()
        result = Result(failure=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    pipe.send(result)


# --- results in a file ----------------------------------------------------------------------------------------------


def fields_of(result: Result) -> dict[str, object]:
    """A result as JSON values, without those that are as in most."""
    plain = dataclasses.asdict(Result())
    return {name: value for name, value in dataclasses.asdict(result).items() if value != plain[name]}


def result_of(fields: dict[str, Any]) -> Result:
    """What ``fields_of`` has made values of."""
    return Result(**{**fields, "reasons": tuple(fields.get("reasons", ()))})


def identity() -> dict[str, str]:
    """What results depend on: versions, and a hash of the sources of the package and of these helpers."""
    digest = hashlib.sha256()
    for folder in ("innerq_compile", "kernels", "passes", "tests/helpers"):
        for path in sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
    return {**versions, "sources": digest.hexdigest()}


def _write(path: Path, results: Results, of: dict[str, str]) -> None:
    """At once, so that a sweep that is interrupted here leaves the former results."""
    values = {name: {attn: fields_of(result) for attn, result in found.items()} for name, found in results.items()}
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps({"identity": of, "results": values}), encoding="utf-8")
    os.replace(new, path)


def _read(path: Path, of: dict[str, str]) -> Results:
    """What is kept for ``of``; nothing if it was found by other code."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept.get("identity") != of:
        print(f"{path} was found by other code or versions: the sweep starts anew")
        return {}
    return {name: {attn: result_of(one) for attn, one in found.items()} for name, found in kept["results"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="file to keep results in, and to go on from")
    parser.add_argument("names", nargs="*", help="of families, as classes of transformers; all of them without any")
    args = parser.parse_args()
    wanted = [one for one in families() if not args.names or one.name in args.names]
    sweep(wanted, args.results)


if __name__ == "__main__":
    main()
