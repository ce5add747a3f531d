"""A Modelfile, from which Ollama makes a model out of the GGUF files beside it.

Source: Ollama's description of the format (https://github.com/ollama/ollama/blob/main/docs/modelfile.md).
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from pilocal.errors import ExportError
from pilocal.export.card import Facts, Kind, card
from pilocal.export.chat_layout import read_layout
from pilocal.llamacpp.model import Model
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.files import replacing
from pilocal.run_folder.shipped import Shipped
from pilocal.task.slots import slot_names

QUOTES = '"""'


def write_ollama(shipped: Shipped, tokenizer: Any, facts: Facts) -> list[Path]:
    """Write Modelfile and README.md beside the GGUF files that are shipped; return the two.

    There is no SYSTEM line, since the prompt is in the weights, unless a part of it stays. Raises ExportError when the
    chat template or what stays cannot be said in Ollama's language, RunError when the disk is full.
    """
    served, residue = shipped.served_path, shipped.residue
    if residue.shots:
        what, fix = (
            "a Modelfile cannot choose shots for each query",
            "serve it with `pilocal serve`, or end at no shots",
        )
        raise ExportError("until_shots", what, got=residue.shots, fix=fix)
    if stays := slot_names(residue.template):
        what, fix = "a Modelfile cannot fill in slots", "serve it with `pilocal serve`, or take them out of what stays"
        raise ExportError("template", what, got=", ".join(stays), fix=fix)
    with Model(served, vocabulary_only=True) as model:
        template = read_layout(tokenizer, adds_bos=model.tokenizer.adds_bos).go()
    ends = tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer)))
    for where, texts in (("chat template", (template, *ends)), ("template", (residue.template,))):
        if any(QUOTES in text for text in texts):
            raise ExportError(where, "a Modelfile cannot hold three quotes", fix="serve it with `pilocal serve`")
    name = ollama_name(shipped.name)
    lines = [
        f"# ollama create {name} -f Modelfile",
        *(f"# {line}".rstrip() for line in _form(residue)),
        f"FROM {f'./{served.name}' if served.parent == shipped.folder else served}",
        *([f"ADAPTER ./{shipped.adapter}"] if shipped.adapter else []),
        f"TEMPLATE {QUOTES}{template}{QUOTES}",
        *([f"SYSTEM {QUOTES}{residue.template}{QUOTES}"] if residue else []),
        *(f'PARAMETER stop "{end}"' for end in ends),
        "PARAMETER temperature 0",
    ]
    paths = [shipped.folder / "Modelfile", shipped.folder / "README.md"]
    for path, text in zip(paths, ("\n".join(lines) + "\n", card(facts, _kind(shipped, name))), strict=True):
        with replacing(path) as file:
            file.write(text)
    return paths


def _form(residue: Preamble) -> list[str]:
    """Return lines that show what a request says, where that is more than the query."""
    return ["A request says:", *residue.user_turn.split("\n")] if residue.slots else []


def ollama_name(task: str) -> str:
    """Return a task's name in the letters that Ollama takes.

    >>> ollama_name("Smart home (v2)")
    'smart-home-v2'
    """
    return re.sub(r"[^a-z0-9._]+", "-", task.lower()).strip("-._") or "task"


def _kind(shipped: Shipped, name: str) -> Kind:
    files = f"-m {shipped.fused or shipped.base}" + (f" --lora {shipped.adapter}" if shipped.adapter else "")
    files += f" --jinja --chat-template-file {shipped.chat_template}" if shipped.served_template else ""
    turn = shlex.quote(shipped.residue.user_turn) if shipped.slots else '"the query"'
    how = f"""```sh
ollama create {name} -f Modelfile
ollama run {name} {turn}
```

```sh
llama-server {files} --temp 0   # llama.cpp's own, OpenAI-compatible
```

Ollama does not trim what it is sent: leave no blank space around the query."""
    return Kind(library="gguf", tags=["gguf", "llama.cpp", "ollama"], what="GGUF files", how=how)
