"""SentencePiece's BPE for llama.cpp: scores that make it merge as the tokenizer does, and where a space is added.

Hugging Face merges by a list of pairs, llama.cpp whatever two neighbours together are a token, the highest score first.
The two agree when the list holds every such pair and those of one token stand together, as a conversion from
SentencePiece writes them; the tokens' scores are then their order in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType

from pilocal.errors import ExportError
from pilocal.prompt.pre_tokenizers import BYTE, PREPEND, REPLACE, SPACE, broken_at_newlines

FIX = "take a base whose tokenizer.json was converted from SentencePiece"


def mark_bytes(tokens: Sequence[str], types: MutableSequence[TokenType]) -> None:
    """Set the type of the tokens that stand for one byte."""
    for row, token in enumerate(tokens):
        if types[row] == TokenType.NORMAL and BYTE.fullmatch(token):
            types[row] = TokenType.BYTE


def scores(described: Mapping[str, Any], tokens: Sequence[str], types: Sequence[TokenType], where: Path) -> list[float]:
    """Return each token's score; raises ExportError when no scores make llama.cpp merge as the tokenizer does."""
    _check_bytes(described["model"]["vocab"], where)
    pairs = _pairs(described)
    added = {token["content"] for token in described["added_tokens"]}  # cut out before anything is merged
    _check_complete(tokens, types, set(pairs), added, where)
    score: dict[str, float] = {}
    for group in _in_order([pair for pair in pairs if "".join(pair) not in added]):
        made = {left + right for left, right in group}
        # Of equal scores llama.cpp takes the leftmost, which makes a run grow from the left, as these pairs do.
        growing = group == sorted(group, key=lambda pair: (-len(pair[0]), -len(pair[1])))
        if len(made) > 1 and not (growing and len(set("".join(made))) == 1):
            raise ExportError(where, "no scores put these merges in their order", got=sorted(made), fix=FIX)
        score |= dict.fromkeys(made, -float(len(score)))
    return [score.get(token, -float(len(score))) for token in tokens]


def check_merges(described: Mapping[str, Any], prefix: bool, where: Path) -> None:
    """Raise ExportError unless llama.cpp merges by the same pairs in the same order."""
    vocabulary = described["model"]["vocab"]
    _check_bytes(vocabulary, where)
    if prefix:
        raise ExportError(where, "llama.cpp lays no space before texts for this kind of model", fix=FIX)
    if (token := broken_at_newlines(vocabulary, _pairs(described))) is not None:
        what = "llama.cpp cuts text at newlines before it merges"
        raise ExportError(where, what, got=token, fix="take a base whose tokens hold newlines alone, or none")


def _check_bytes(vocabulary: Collection[str], where: Path) -> None:
    if missing := [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]:
        raise ExportError(where, "llama.cpp needs a token for every byte", got=f"no {missing[0]}", fix=FIX)


def _pairs(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(left, right) for left, right in described["model"]["merges"]]


def _in_order(pairs: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Yield the pairs in order, together those between the first and the last that make the same token."""
    last = {left + right: place for place, (left, right) in enumerate(pairs)}
    group: list[tuple[str, str]] = []
    end = -1
    for place, (left, right) in enumerate(pairs):
        group.append((left, right))
        end = max(end, last[left + right])
        if place == end:
            yield group
            group = []


def _check_complete(
    tokens: Sequence[str],
    types: Sequence[TokenType],
    pairs: Collection[tuple[str, str]],
    added: Collection[str],
    where: Path,
) -> None:
    """Refuse a token that llama.cpp would also merge from two parts that the tokenizer leaves apart."""
    whole = {token for token, kind in zip(tokens, types, strict=True) if kind in (TokenType.NORMAL, TokenType.BYTE)}
    known = whole - set(added)
    for token in tokens:
        for cut in range(1, len(token) if token in known else 0):
            left, right = token[:cut], token[cut:]
            apart = (left, right) not in pairs
            if apart and (left in known or len(left) == 1) and (right in known or len(right) == 1):
                what = f"llama.cpp would make {token!r} of two parts that this tokenizer leaves apart"
                raise ExportError(where, what, got=f"{left} {right}", fix=FIX)


def space_before(described: Mapping[str, Any], chat: str, added: Collection[str], where: Path) -> tuple[bool, str]:
    """Return whether llama.cpp shall lay a space before every text between special tokens, as it does or never does.

    A tokenizer may do so for the first text alone; then the second value, a piece of chat template to stand before the
    rest, writes that space. Decided on `chat`, a rendered one. Raises ExportError where neither is what the tokenizer
    does.
    """
    scheme = _scheme(described, where)
    texts = re.split("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)) or "$^", chat)
    wanted = []
    for place, text in enumerate(texts):
        if text:
            spaced = not text.startswith((" ", SPACE))
            wanted.append({"each": True, "always": spaced, "first": place == 0 and spaced, "never": False}[scheme])
    if len(set(wanted)) < 2:
        return any(wanted), ""
    if texts[0] and wanted[0] and not any(wanted[1:]):
        return False, "{{ ' ' }}"
    fix = "take a base whose chat template lays none between special tokens and text"
    raise ExportError(where, "llama.cpp cannot lay spaces before texts as this tokenizer does", got=scheme, fix=fix)


def _scheme(described: Mapping[str, Any], where: Path) -> str:
    """Return before which texts between special tokens the tokenizer lays a space: each, always, first or never.

    "always" spares those that begin with one.
    """
    normalizer, splitter = described["normalizer"], _splitter(described)
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    whole = {"type": "Metaspace", "replacement": SPACE, "split": False}
    model = described["model"]
    if not (model.get("ignore_merges") or model["continuing_subword_prefix"] or model["end_of_word_suffix"]):
        if not steps and splitter and whole.items() <= splitter.items():
            return str(splitter["prepend_scheme"])
        if splitter is None and steps in ([PREPEND, REPLACE], [REPLACE]):
            return "each" if PREPEND in steps else "never"
    got = [step["type"] for step in (*steps, splitter) if step]
    raise ExportError(where, "llama.cpp cannot treat spaces as this tokenizer does", got=got, fix=FIX)


def _splitter(described: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the step that cuts text before it is merged; Gemma's cuts at spaces, when the normalizer has left none."""
    step: Mapping[str, Any] | None = described["pre_tokenizer"]
    idle = step and step["type"] == "Split" and step["pattern"] == {"String": " "}
    return None if idle and described["normalizer"] == REPLACE else step
