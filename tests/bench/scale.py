"""A hundred times the usual data: `just bench scale`, or alone with other sizes. The data set is made, from a seed.

Each command is a process of its own: wall seconds, seconds of the processor, and the most memory that it held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.made_data import write_task

TOKENS = 1_000
"""Of the template, about."""

CONTEXT = 8_192
"""Tokens that the base takes: the starter's own 2,048 are too few for such a template and five shots."""

SECONDS, MEMORY, SHARE, DISK, CHECK_SECONDS = 120, 2e9, 0.99, 2, 60
"""The bars: of index and stages together, in seconds and bytes; of exact BLEU; of the input's bytes; of a check."""


def scale(count: int = 100_000, checked: int = 1_000_000, seed: int = 0) -> dict[str, Any]:
    """Index and render `count` examples with 5 shots, and check `checked` ones; `met` says which bars hold."""
    with tempfile.TemporaryDirectory(prefix="pilocal-scale-") as made:
        base = write_base(Path(made) / "base")
        task = write_task(Path(made) / "task", count, seed=seed, words=words_of_template(seed), base=base)
        index, stages = pilocal("index", task), pilocal("stages", task)
        shortlist = json.loads((task / "run" / "index" / "shots.json").read_text(encoding="utf-8")).get("shortlist")
        given = sum((task / f"{split}.jsonl").stat().st_size for split in ("train", "valid", "test"))
        written = sum(path.stat().st_size for path in (task / "run" / "stages").rglob("*.jsonl"))
        result: dict[str, Any] = {
            "title": f"{count:,} examples, a template of {TOKENS:,} tokens, 5 shots; a check of {checked:,}",
            "index": index,
            "stages": stages,
            "shortlist": shortlist,
            "disk": round(written / given, 2),
        }
        share = shortlist["mean_bleu"] / shortlist["mean_bleu_exact"] if shortlist else 1.0
        result["met"] = {
            f"{SECONDS}_seconds": index["seconds"] + stages["seconds"] <= SECONDS,
            f"{MEMORY / 1e9:g}_GB": max(index["bytes"], stages["bytes"]) <= MEMORY,
            f"{SHARE:g}_of_exact_bleu": share >= SHARE,
            f"disk_of_{DISK}_inputs": written <= DISK * given,
        }
        if checked:
            words = words_of_template(seed + 1)
            large = write_task(Path(made) / "large", checked, seed=seed + 1, words=words, base=base, alike=10)
            # The probe takes a training step, which no number of examples makes longer.
            result["check"] = pilocal("check", large, "--no-probe")
            result["met"][f"check_in_{CHECK_SECONDS}_seconds"] = result["check"]["seconds"] <= CHECK_SECONDS
    return result


def write_base(folder: Path) -> Path:
    """Write the starter with a longer context."""
    from pilocal.base.base import find_base

    shutil.copytree(find_base("starter", Path()).folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def words_of_template(seed: int) -> int:
    """Return how many words of a made template are about TOKENS tokens of the starter's."""
    from pilocal.base.base import find_base
    from pilocal.prompt.tokens import token_counter
    from tests.bench.made_data import Maker

    count = token_counter(find_base("starter", Path()).tokenizer)
    return round(TOKENS * 200 / count(Maker(seed).template(200)))


def pilocal(command: str, task: Path, *more: str) -> dict[str, float]:
    """Run a command on a task and return what it took; exits where it fails."""
    began = time.perf_counter()
    arguments = [sys.executable, "-m", "pilocal", command, str(task), "--json", *more]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"pilocal {command} {task} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "bytes": used.ru_maxrss * unit,
    }


def main() -> None:
    """Measure and print the result as JSON; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="examples that are indexed and rendered")
    parser.add_argument("--checked", type=int, default=1_000_000, help="examples of the check; 0 leaves it out")
    arguments = parser.parse_args()
    result = scale(arguments.count, arguments.checked)
    print(json.dumps(result, indent=2))
    sys.exit(0 if all(result["met"].values()) else 1)


if __name__ == "__main__":
    main()
