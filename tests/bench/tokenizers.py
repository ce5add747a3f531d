"""The ids of Hugging Face's tokenizer beside llama.cpp's, on real texts and on random ones: `just bench tokenizers`.

The starter's tokenizer is always there; the real vocabularies are those that folders are named for: Llama 3's
(encoder.json and vocab.bpe), Llama 2's and Qwen 2's (the files ggml-vocab-*.gguf in the folder models of llama.cpp).
How long the vocabulary takes to be put into GGUF's terms, and how much memory, is measured in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, TokenType

from pilocal.base.base import find_base
from pilocal.base.tokenizer import load_tokenizer
from tests import vocabularies
from tests.bench import export, retrieval
from tests.same_ids import differences
from tests.texts import hard_texts

NL2BASH, LLAMA3 = retrieval.DATA, export.DATA
MBPP = "PILOCAL_MBPP"
"""The environment's name for the folder with mbpp.jsonl."""
VOCABULARIES = "PILOCAL_VOCABULARIES"
"""The environment's name for the folder with ggml-vocab-llama-spm.gguf and ggml-vocab-qwen2.gguf."""

SHOWN = 3
"""How many unexplained texts are listed."""

WRITE = """
import json, re, resource, sys, time
from pathlib import Path
from transformers import AutoTokenizer
from tests.same_ids import write_vocabulary

def peak():
    # On Linux ru_maxrss begins with what the parent had.
    if sys.platform == "linux":
        return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before, began = peak(), time.perf_counter()
write_vocabulary(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
print(json.dumps({"seconds": round(time.perf_counter() - began, 2), "mib": (peak() - before) >> 20}))
"""
"""The tokenizer is loaded within the time, the library before it."""


def tokenizers(folders: Mapping[str, Path], count: int = 10_000) -> dict[str, Any]:
    """Compare `count` lines of each kind; `folders` are the data's, by the environment's names for them."""
    texts = dict(_texts(folders, count))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        for name, (base, rows) in _bases(folders, Path(made)).items():
            gguf = Path(made) / "vocabulary.gguf"
            command = [sys.executable, "-c", WRITE, str(base), str(rows), str(gguf)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[name] = {"rows": rows, **json.loads(done.stdout), **_compare(base, gguf, texts)}
    exact = all(each["unexplained"] == 0 for result in results.values() for each in result["texts"].values())
    return {
        "title": "the same ids from Hugging Face's tokenizer and llama.cpp",
        "tokenizers": results,
        "met": {
            "no_difference_unexplained": exact,
            "a_vocabulary_in_5_seconds": all(result["seconds"] < 5 for result in results.values()),
        },
    }


def _compare(folder: Path, gguf: Path, texts: Mapping[str, list[str]]) -> dict[str, Any]:
    from llama_cpp import Llama

    tokenizer, model = load_tokenizer(folder), Llama(str(gguf), vocab_only=True, verbose=False)
    found = {name: differences(tokenizer, model, some) for name, some in texts.items()}
    model.close()
    counts = {
        name: {
            "count": each.texts,
            "not_in_nfc": len(each.normalized),
            "newer_letters": len(each.new_letters),
            "unexplained": len(each.unexplained),
        }
        for name, each in found.items()
    }
    examples = [ascii(text) for each in found.values() for text in each.unexplained][:SHOWN]
    return {"texts": counts, "examples": examples}


def _texts(folders: Mapping[str, Path], count: int) -> Iterator[tuple[str, list[str]]]:
    if folder := folders.get(NL2BASH):
        for name in ("all.nl", "all.cm"):
            yield f"nl2bash/{name}", (folder / name).read_text(encoding="utf-8").split("\n")[:count]
    if folder := folders.get(MBPP):
        rows = [json.loads(line) for line in (folder / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()]
        yield "mbpp", [row["code"] for row in rows][:count]
    yield "random", hard_texts(0, count)


def _bases(folders: Mapping[str, Path], made: Path) -> dict[str, tuple[Path, int]]:
    """Return the folder of every tokenizer and its number of rows."""
    bases = {"starter": (find_base("starter", Path()).folder, 2048)}
    if folder := folders.get(LLAMA3):
        bases["llama 3"] = vocabularies.llama3(made / "llama3", folder), 128_256
    if folder := folders.get(VOCABULARIES):
        known = _read(folder / "ggml-vocab-llama-spm.gguf")
        pieces = dict(zip(known["tokens"], known["scores"], strict=True))
        bases["llama 2"] = vocabularies.sentencepiece_like(made / "llama2", pieces=pieces), len(pieces)
        known = _read(folder / "ggml-vocab-qwen2.gguf")
        kinds = zip(known["tokens"], known["token_type"], strict=True)
        learned = {token: row for row, (token, kind) in enumerate(kinds) if kind == TokenType.NORMAL}
        merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in known["merges"])]
        bases["qwen 2"] = vocabularies.qwen_like(made / "qwen2", learned=(learned, merges)), len(known["tokens"])
    return bases


def _read(gguf: Path) -> dict[str, list[Any]]:
    fields = GGUFReader(gguf).fields
    return {name: fields[key].contents() for name in _ARRAYS if (key := f"tokenizer.ggml.{name}") in fields}


_ARRAYS = ("tokens", "scores", "token_type", "merges")


def named_folders() -> dict[str, Path]:
    """Return the folders that the environment names."""
    names = (NL2BASH, MBPP, LLAMA3, VOCABULARIES)
    return {name: Path(folder) for name in names if (folder := os.environ.get(name))}
