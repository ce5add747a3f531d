"""A Llama 3 tokenizer as GGUF metadata: tokens, their types, merges, special ids and the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from pilocal.base import load_tokenizer
from pilocal.errors import ExportError
from pilocal.starter.tokenizer import LLAMA3_SPLIT

END_OF_TURN = "<|eot_id|>"


def add_vocabulary(writer: GGUFWriter, base: Path, rows: int) -> None:
    """Add the tokenizer of `base` to a GGUF whose embedding has `rows` rows.

    Rows that no token names get an unused one. Raises ExportError when the tokenizer is not Llama 3's kind (byte-level
    BPE on its split pattern), which llama.cpp would silently split in another way, or has more tokens than rows.
    """
    tokenizer = load_tokenizer(base)
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, splits = model["model"]["type"], _patterns(model["pre_tokenizer"])
    if kind != "BPE" or LLAMA3_SPLIT not in splits or model.get("normalizer"):
        got = f"{kind} split by {splits}"
        raise ExportError(base / "tokenizer.json", "not a Llama 3 tokenizer", got=got, fix="take a Llama 3 base")
    tokens = [f"[UNUSED{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    for token, row in tokenizer.get_vocab().items():
        if row >= rows:
            fix = "remove the tokens that were added, or take the tokenizer of this model"
            raise ExportError(base / "tokenizer.json", f"{token!r} has no embedding among {rows}", got=row, fix=fix)
        tokens[row], types[row] = token, TokenType.NORMAL
    for row, added in tokenizer.added_tokens_decoder.items():
        types[row] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in types])  # Python ints become INT32, the only type llama.cpp takes
    writer.add_token_merges([" ".join(pair) for pair in model["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if END_OF_TURN in tokens:
        writer.add_eot_token_id(tokens.index(END_OF_TURN))
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tokenizer.get_chat_template())


def _patterns(pre_tokenizer: dict[str, Any] | None) -> list[str]:
    """Return the split patterns of a pre-tokenizer or of each in a sequence."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    return [step.get("pattern", {}).get("Regex", "") for step in steps]
