"""pilocal beside what it is measured against: ratios with their range; absolute times belong to the machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import backends


def predicted_memory(repeats: int, precision: str | None = None, kind: str = "llama") -> dict[str, Any]:
    """What `pilocal check` predicts without a probe, beside what is measured; one step each, whatever `repeats`."""
    from tests.bench import memory

    return said(memory.memory(8 if precision else 24, precision=precision, kind=kind))


def choice_of_shots(repeats: int) -> dict[str, Any]:
    """How long the choice of shots takes beside brute force, and what it finds; once, whatever `repeats`."""
    from tests.bench import retrieval

    folder = data("retrieval", retrieval.DATA, "NL2Bash's all.nl and all.cm")
    return said(retrieval.retrieval(folder) if folder else {"skipped": True})


def large_data(repeats: int) -> dict[str, Any]:
    """How long 100,000 examples take, and a check of 1,000,000, with how much memory; once, whatever `repeats`."""
    from tests.bench import scale

    return said(scale.scale())


def lossless_export(repeats: int) -> dict[str, Any]:
    """How long the export of an 8B shape takes beside `cp`, and how much memory."""
    from tests.bench import export

    folder = data("export", export.DATA, "Llama 3's encoder.json and vocab.bpe")
    return said(export.export(folder, repeats) if folder else {"skipped": True})


def same_ids(repeats: int) -> dict[str, Any]:
    """Whether llama.cpp cuts texts as Hugging Face's tokenizers do, for what folders are named; once."""
    from tests.bench import tokenizers

    folders = tokenizers.named_folders()
    for variable in (tokenizers.NL2BASH, tokenizers.MBPP, tokenizers.LLAMA3, tokenizers.VOCABULARIES):
        if variable not in folders:
            print(f"tokenizers goes without {variable}, which names no folder", file=sys.stderr)
    return said(tokenizers.tokenizers(folders))


def first_token(shape: str, templates: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """How much sooner the bare query's first token comes than the full prompt's, cold and warm."""
    from tests.bench import export, latency

    folder = data(f"latency-{shape}", export.DATA, "Llama 3's encoder.json and vocab.bpe")
    return said(latency.latency(folder, shape, templates, repeats) if folder else {"skipped": True})


def steps_of_a_run(repeats: int) -> dict[str, Any]:
    """How long a step of a run's own stages takes, and how much memory, beside mlx-lm's and peft's."""
    from tests.bench import run_steps

    folder = data("run-steps", run_steps.RUN, "a run's rendered stages")
    return run_steps.run_steps(folder, repeats) if folder else {"skipped": True}


def sharded_base(repeats: int) -> dict[str, Any]:
    """What a step of several processes takes where the base is sharded over them, beside one that is whole in each."""
    from tests.bench.sharded import sharded

    return said(sharded(repeats))


def teachers_pass(repeats: int) -> dict[str, Any]:
    """How much faster a teacher reads rows that share a template than each of them whole."""
    from tests.bench.teacher import teacher

    return said(teacher(repeats))


def served(repeats: int) -> dict[str, Any]:
    """How pilocal's server does beside llama.cpp's own: all parts of tests/bench/serving.py."""
    from tests.bench import serving
    from tests.bench.two_servers import Setting

    if why := serving.missing(os.environ.get(serving.RUN)):
        print(f"serving is {why}", file=sys.stderr)
        return said({"skipped": True})
    setting = Setting(run=Path(os.environ[serving.RUN]), repeats=repeats)
    return said({name: part(setting) for name, part in serving.PARTS.items()})


def data(bench: str, variable: str, files: str) -> Path | None:
    """Return the folder that an environment variable names, or None with a line that says what is skipped."""
    folder = os.environ.get(variable)
    if folder is None:
        print(f"{bench} is skipped: {variable} names no folder with {files}", file=sys.stderr)
    return Path(folder) if folder else None


def said(result: dict[str, Any]) -> dict[str, Any]:
    """Print a result as a line, and return it."""
    print(json.dumps(result), flush=True)
    return result


def step(name: str, *arguments: int) -> dict[str, Any]:
    """Return what a bench of the training step finds; MLX is imported now."""
    from tests.bench import train_step

    found: dict[str, Any] = getattr(train_step, name)(*arguments)
    return found


BENCHES: dict[str, Callable[[int], dict[str, Any]]] = {
    "stage-1-batch-4": partial(step, "stage_1", 4),
    "stage-1-batch-8": partial(step, "stage_1", 8),
    "stage-1-batch-16": partial(step, "stage_1", 16),
    "query-only": partial(step, "query_only"),
    "schedule": partial(step, "schedule"),
    "savings": partial(step, "savings"),
    "recompute": partial(step, "recomputation"),
    "groups": partial(step, "groups"),
    "last-layers": partial(step, "last_layers"),
    "compile": partial(step, "compilation"),
    "growth": partial(step, "growth"),
    "windows": partial(step, "windows"),
    "run-steps": steps_of_a_run,
    "teacher": teachers_pass,
    "memory": predicted_memory,
    "memory-experts": partial(predicted_memory, kind="qwen3_moe"),
    "memory-bfloat16": partial(predicted_memory, precision="bfloat16"),
    "retrieval": choice_of_shots,
    "scale": large_data,
    "backends": lambda repeats: said(backends.backends(repeats)),
    "sharded": sharded_base,
    "export": lossless_export,
    "tokenizers": same_ids,
    "serving": served,
    "latency-1b": partial(first_token, "1b", (500, 1000, 4000)),
    "latency-8b": partial(first_token, "8b", (1000,)),
}


def main() -> None:
    """Run the benches that are named, or all, and write the results to a file if asked."""
    parser = argparse.ArgumentParser(prog="just bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHES)}; all when left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write all results to this file, as JSON")
    parser.add_argument("--plot", type=Path, help="draw the bench growth into this file, as SVG")
    arguments = parser.parse_args()
    if unknown := set(arguments.names).difference(BENCHES):
        sys.exit(f"no such bench: {', '.join(sorted(unknown))}; take any of {', '.join(BENCHES)}")
    results = {name: BENCHES[name](arguments.repeats) for name in arguments.names or BENCHES}
    if arguments.plot and "growth" in results:
        from tests.bench.plot import draw_growth

        draw_growth(results["growth"], arguments.plot)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
