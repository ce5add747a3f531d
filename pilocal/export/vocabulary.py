"""A tokenizer as GGUF metadata: tokens, their types, how text is cut into them, special ids and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from pilocal.base.base import Base
from pilocal.errors import ExportError
from pilocal.export import sentencepiece as pieces
from pilocal.prompt.control import CONTROL_MARKS, NFC_KEY, ends_by_its_text
from pilocal.prompt.pre_tokenizers import MERGED, PRE_TOKENIZERS, bytes_left_out
from pilocal.prompt.render import Message
from pilocal.prompt.tokens import tokenize

CHAT = tuple(Message(role=role, content="x") for role in ("user", "assistant", "user"))
"""What is rendered to see how the chat template ends an answer, and what stands between special tokens."""


def add_vocabulary(writer: GGUFWriter, base: Base, rows: int) -> None:
    """Add the tokenizer of `base` to a GGUF whose embedding has `rows` rows.

    Rows that no token names get an unused one. Raises ExportError when llama.cpp would cut text in another way than the
    tokenizer does, or there are more tokens than rows; ModelError when the chat template cannot be used; InputError
    when it does not end an answer.
    """
    tokenizer, where = base.tokenizer, base.gguf or base.folder / "tokenizer.json"
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    _check_added(tokenizer, where)
    tokens, types = _tokens(tokenizer, rows, where)
    layout = base.layout
    template = layout.template
    if described["model"]["type"] == "BPE" and described["model"].get("byte_fallback"):
        pieces.mark_bytes(tokens, types)
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = TokenType.UNKNOWN
            writer.add_unk_token_id(tokenizer.unk_token_id)
        prefix, lead = pieces.space_before(described, layout.text(CHAT), tokenizer.added_tokens_encoder, where)
        if writer.arch == MERGED:
            pieces.check_merges(described, prefix, where)
            writer.add_tokenizer_model(MERGED)
            writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
        else:
            writer.add_tokenizer_model("llama")
            writer.add_tokenizer_pre("default")
            writer.add_token_scores(pieces.scores(described, tokens, types, where))
        writer.add_add_space_prefix(prefix)
        template = lead + template
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(described, where))
        writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    if "NFC" in _kinds(described["normalizer"]):
        writer.add_bool(NFC_KEY, True)
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in types])  # Python ints become INT32, the only type llama.cpp takes
    _add_special_ids(writer, tokenizer, str(where))
    writer.add_chat_template(template)


def _check_added(tokenizer: Any, where: Path) -> None:
    """Refuse added tokens that are not found wherever their text stands: llama.cpp finds every one."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    for token in tokenizer.added_tokens_decoder.values():
        text = token.content
        changed = token.normalized and normalizer is not None and normalizer.normalize_str(text) != text
        if changed or token.lstrip or token.rstrip or token.single_word:
            fix = "take a base whose added tokens have lstrip, rstrip, single_word and normalized set to false"
            raise ExportError(where, "llama.cpp would find this token in other places", got=text, fix=fix)


def _tokens(tokenizer: Any, rows: int, where: Path) -> tuple[list[str], list[TokenType]]:
    """Return what stands in each row and of which type it is.

    A plain token that llama.cpp would take for an end, such as Qwen's "</s>", which its split pattern never lets come
    about, is left out.
    """
    tokens = [f"[UNUSED{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    added = tokenizer.added_tokens_decoder
    vocabulary = tokenizer.get_vocab()
    for token, row in vocabulary.items():
        if row >= rows:
            fix = "remove the tokens that were added, or take the tokenizer of this model"
            raise ExportError(where, f"{token!r} has no embedding among {rows}", got=row, fix=fix)
        if row in added:
            tokens[row] = token
            control = added[row].special or token in CONTROL_MARKS
            types[row] = TokenType.CONTROL if control else TokenType.USER_DEFINED
        elif not ends_by_its_text(token, vocabulary):
            tokens[row], types[row] = token, TokenType.NORMAL
    return tokens, types


def _pre_tokenizer(described: Mapping[str, Any], where: Path) -> str:
    """Return llama.cpp's name of what a byte-level BPE does before it merges."""
    model, steps, plain = described["model"], _steps(described), _is_plain(described)
    whole_words = bool(model.get("ignore_merges"))
    if known := [each.name for each in PRE_TOKENIZERS if plain and each.does(steps, whole_words)]:
        return known[0]
    pattern = str(steps[0]["pattern"].get("Regex", "")) if plain and _kinds(*steps).startswith("Split") else ""
    got = f"{model['type']} after {_kinds(described['normalizer'])} and {pattern or _kinds(*steps)}"
    fix = "take a base with the tokenizer of Llama, Mistral, Gemma, Qwen, Granite or SmolLM"
    raise ExportError(where, "llama.cpp cannot cut text as this tokenizer does", got=got, fix=fix)


def _is_plain(described: Mapping[str, Any]) -> bool:
    """Tell whether nothing but the steps before it merges sets a tokenizer apart from llama.cpp's byte-level BPE."""
    model, normalizer = described["model"], described["normalizer"]
    if model["type"] != "BPE" or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return False
    # llama.cpp has no NFC, which leaves nearly all text alone. `pilocal serve` does it where the file says NFC_KEY.
    return normalizer is None or normalizer["type"] == "NFC"


def _steps(described: Mapping[str, Any]) -> list[Any]:
    """Return the steps before a tokenizer merges, but for what llama.cpp does by itself."""
    steps: list[Any] = (described["pre_tokenizer"] or {}).get("pretokenizers", [described["pre_tokenizer"]])
    left_out = bytes_left_out(described["model"]["vocab"]) if described["model"]["type"] == "BPE" else []
    return steps[:-1] if left_out and steps[-1] == left_out[0] else steps


def _kinds(*steps: Mapping[str, Any] | None) -> str:
    return ", ".join(step["type"] for step in steps if step) or "nothing"


def _add_special_ids(writer: GGUFWriter, tokenizer: Any, where: str) -> None:
    """Add which tokens begin, end and fill; what the chat template ends an answer with ends a turn."""
    turn = tokenize({"messages": list(CHAT[:2])}, tokenizer, where).completion[-1]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    # llama.cpp would take token 11 or 2 for the end where none is named.
    writer.add_eos_token_id(turn if eos is None else eos)
    writer.add_eot_token_id(turn)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    around: Sequence[int] = tokenizer.encode("")
    begins = bos is not None and list(around[:1]) == [bos]
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(eos is not None and list(around[begins:]) == [eos])
