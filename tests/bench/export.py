"""The lossless export of a real shape beside `cp` of the same bytes: `just bench export`.

The weights are random, the shape is Llama 3.1's 8B with its own vocabulary, whose folder PILOCAL_LLAMA3 names. Each
side runs in a process of its own, in turn, on files that are in the page cache, and is done when its bytes are on disk.
A pause stands before each: right after a large file was removed its memory is still at hand, and a virtual machine
writes three times as fast for some seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.shapes import write_checkpoint

DATA = "PILOCAL_LLAMA3"
"""The environment's name for the folder with encoder.json and vocab.bpe."""

PAUSE = 10
"""Seconds."""

EXPORT = """
import json, resource, sys, time
from pathlib import Path
from pilocal.base.base import Base
base = Base.at(Path(sys.argv[1]))
base.sha256
began = time.perf_counter()
from pilocal.export.lossless import export_lossless
made = export_lossless(base, Path(sys.argv[2]))
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak, "floats": len(made.floats)}))
"""
"""With the base's fingerprint, which every run knows from its training."""


def export(llama3: Path, repeats: int = 3, shape: str = "8b") -> dict[str, Any]:
    """Return seconds of both in turn, their ratio, and the export's peak resident memory in bytes.

    `llama3` is the folder with the vocabulary's files.
    """
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        base = write_checkpoint(Path(made) / "base", shape, llama3)
        weights, copy, out = base / "model.safetensors", Path(made) / "copy", Path(made) / "out"
        for _ in range(repeats + 1):
            time.sleep(PAUSE)
            began = time.perf_counter()
            subprocess.run(["cp", weights, copy], check=True)
            subprocess.run(["sync", copy], check=True)
            copied = time.perf_counter() - began
            copy.unlink()
            time.sleep(PAUSE)
            done = subprocess.run([sys.executable, "-c", EXPORT, base, out], check=True, capture_output=True, text=True)
            rounds.append(json.loads(done.stdout) | {"cp_seconds": copied})
            for file in out.iterdir():
                written = file.stat().st_size
                file.unlink()
        read = weights.stat().st_size
    rounds = rounds[1:]  # the first fills the page cache
    ratios = sorted(each["seconds"] / each["cp_seconds"] for each in rounds)
    return {
        "title": f"export {shape}",
        "bytes_read": read,
        "bytes_written": written,
        "rounds": rounds,
        "ratio": ratios[len(ratios) // 2],
        "ratios": ratios,
        "peak": max(each["peak"] for each in rounds),
    }
