"""The tokens of a run's own chats: those of Hugging Face's tokenizer, which training used, and of the exported GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.llamacpp.model import Model
from pilocal.prompt.tokens import layout_of
from pilocal.run_folder.rows import located_records


def tokenizer_figures(context: Context, gguf: Path) -> dict[str, Any]:
    """Return how many of the validation and test chats of all stages, answers included, have other ids in llama.cpp.

    The first that differs is named by file and line. Raises ModelError if llama.cpp refuses the file.
    """
    tokenizer, seen, differing = context.base.tokenizer, set[str](), list[str]()
    layout, stages = layout_of(tokenizer), range(len(context.schedule.stages))
    with Model(gguf, vocabulary_only=True) as served:
        for number in stages:
            for split in ("valid", "test"):
                for where, record in located_records(context.run.stage(number), split):
                    text = layout.text(record["messages"], add_generation_prompt=False)
                    if text in seen:
                        continue
                    seen.add(text)
                    ids = tokenizer.encode(text, add_special_tokens=False)
                    if ids != served.tokenizer.tokens(text, special=True):
                        differing.append(where)
                context.progress("parity: tokenizers", 2 * number + 1 + (split == "test"), 2 * len(stages))
    return {"rows": len(seen), "differing": len(differing), "first": differing[0] if differing else None}
