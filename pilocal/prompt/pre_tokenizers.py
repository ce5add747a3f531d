"""How text is cut before tokens are merged: llama.cpp's names, and the same in the terms of a tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's pre-tokenization pattern (tokenizer.json of Meta-Llama-3-8B)."""

QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
"""Qwen 2's pre-tokenization pattern, of Qwen 3's too: every digit for itself."""

TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Tekken's pattern (tokenizer.json of Mistral-Nemo-Instruct-2407): words end before a capital."""

_APOSTROPHE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + _APOSTROPHE
    + r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + _APOSTROPHE
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of GPT-4o's tokenizer (tiktoken's o200k_base), which Phi-4-mini has."""

SPACE = "\u2581"
"""What stands for a space in a token of SentencePiece's."""

BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token of SentencePiece's for one byte."""

PREPEND: Mapping[str, Any] = {"type": "Prepend", "prepend": SPACE}
REPLACE: Mapping[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}

MERGED = "gemma4"
"""llama.cpp's name of a tokenizer with SentencePiece's tokens that merges by a list of pairs, not by scores."""


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """What a byte-level BPE does before it merges."""

    name: str
    """llama.cpp's."""
    steps: tuple[Mapping[str, Any], ...]
    """tokenizer.json's steps, with every key that decides something."""
    whole_words: bool = False
    """Whether a word that is a token is taken whole (`ignore_merges`)."""
    adds_bos: bool = False
    """Whether llama.cpp puts BOS before a text where the file does not say."""
    aliases: tuple[str, ...] = ()
    """Other names for the same."""
    ascii_alone: bool = False
    """Whether llama.cpp cuts only ASCII text in this way: of other letters it knows no capitals, and no marks."""

    def does(self, steps: Sequence[Mapping[str, Any] | None], whole_words: bool) -> bool:
        """Tell whether a tokenizer.json with these steps cuts text in this way."""
        if len(steps) != len(self.steps) or whole_words != self.whole_words:
            return False
        pairs = zip(self.steps, map(_keeping, steps), strict=True)
        return all(found is not None and step.items() <= found.items() for step, found in pairs)


def _keeping(step: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a step as one that keeps what its pattern finds; every pattern here finds all of a text.

    Some tokenizer.json say so, others that what the pattern does not find is removed.
    """
    removes = step and step["type"] == "Split" and (step["behavior"], step["invert"]) == ("Removed", True)
    return {**step, "behavior": "Isolated", "invert": False} if step and removes else step


def bytes_left_out(vocabulary: Collection[str]) -> list[Mapping[str, Any]]:
    """Return the step that leaves out the bytes for which a byte-level BPE has no token; none where it has them all.

    SmolLM2 lacks some. llama.cpp leaves them out, too, and merges nothing across them; Hugging Face's tokenizers would.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    missing = sorted(set(ByteLevel.alphabet()).difference(vocabulary))
    pattern = {"Regex": "|".join(map(re.escape, missing))}
    return [{"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": False}] if missing else []


def _isolated(pattern: str) -> tuple[Mapping[str, Any], ...]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


_SMOLLM = (
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
)
"""Every digit for itself, the rest by GPT-2's pattern."""

PRE_TOKENIZERS = (
    PreTokenizer("llama-bpe", _isolated(LLAMA3_SPLIT), True, True, ("llama3", "llama-v3", "falcon3", "pixtral")),
    PreTokenizer("smaug-bpe", _isolated(LLAMA3_SPLIT)),
    PreTokenizer("qwen2", _isolated(QWEN2_SPLIT), aliases=("deepseek-r1-qwen",)),
    PreTokenizer("smollm", _SMOLLM, aliases=("refact",)),
    PreTokenizer("tekken", _isolated(TEKKEN_SPLIT), True, True, ascii_alone=True),
    PreTokenizer("gpt-4o", _isolated(O200K_SPLIT), ascii_alone=True),
)
"""Every one that llama.cpp and Hugging Face's tokenizers share."""


def broken_at_newlines(vocabulary: Collection[str], merges: Iterable[tuple[str, str]]) -> str | None:
    """Return a token that llama.cpp's "gemma4" cuts otherwise than its merges say; None where there is none.

    It cuts a text where newlines begin and end, and takes a run of them whole where that is a token.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges) if "\n" in pair[0] + pair[1]}
    for token in vocabulary:
        if "\n" not in token:
            continue
        parts = list(token)
        while known := [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]:
            at = min(known)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if set(token) != {"\n"} or parts != [token]:
            return token
    return None


def ascii_alone(tokenizer: Any) -> bool:
    """Tell whether llama.cpp cuts only ASCII text as a transformers tokenizer does."""
    step = tokenizer.backend_tokenizer.pre_tokenizer
    described = json.loads(step.__getstate__()) if step is not None else {}
    steps = described.get("pretokenizers", [described])
    first = [each.steps[0]["pattern"] for each in PRE_TOKENIZERS if each.ascii_alone]
    return any(step.get("pattern") in first for step in steps)
