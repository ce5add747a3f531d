"""Text is text: what a user or a record wrote never becomes a control token.

A chat template is a program that mixes its own control tokens with what users wrote. Where a content holds the text of
a control token, such as "<|eot_id|>", that text is hidden while the template renders; afterwards only the tokens that
the template itself wrote are control tokens. llama.cpp does so where it is told not to parse special tokens.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pilocal.errors import InputError

END_MARKS = (
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>", "<eos>", "[EOS]"),
    *("<end_of_turn>", "<|end|>", "<EOT>", "_<EOT>", "[EOT]", "<end_of_utterance>"),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "[e~["),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|file_sep|>"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
)
"""Added tokens at which llama.cpp ends an answer by their text, whatever a file says: ends of turns and of files."""

CONTROL_MARKS = (
    *END_MARKS,
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>", "\u2581<MID>"),
    *("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", "<|prefix|>", "<|suffix|>", "<|middle|>"),
)
"""Added tokens that llama.cpp takes for control tokens by their text, whatever a file says."""

TURNS_TO_TOOLS = "<|tool_response>"
"""Gemma 4's mark; beside it llama.cpp takes "</s>" for a plain token, which ends nothing."""

NFC_KEY = "pilocal.tokenizer.nfc"
"""In the metadata of a GGUF file: whether the tokenizer brings text into Unicode's form NFC before it is cut."""

Cut = Callable[[str, bool], list[int]]
"""From a text to tokens; the flag tells whether it may hold control tokens."""


def ends_by_its_text(token: str, vocabulary: Container[str]) -> bool:
    """Tell whether llama.cpp ends an answer at a token of a vocabulary, whatever a file says.

    >>> [ends_by_its_text("</s>", vocabulary) for vocabulary in (["</s>"], ["</s>", "<|tool_response>"])]
    [True, False]
    """
    return token in END_MARKS and not (token == "</s>" and TURNS_TO_TOOLS in vocabulary)


class ControlTokens:
    """The control tokens of a tokenizer, and how a rendered chat is cut so that the same text in a content is none."""

    def __init__(self, texts: Iterable[str], cut: Cut) -> None:
        """Take their texts, and what cuts a text into tokens, control tokens among them or none.

        Raises InputError for a text that is in the names of what every message has: no message could be told then.
        """
        longest_first = sorted(texts, key=lambda text: (-len(text), text))
        self._find = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        for name in ("role", "content"):
            if inside := self._find.search(name):
                what, fix = f"a control token is a part of {name!r}", "copy or download the model again"
                raise InputError("the base's tokenizer", what, got=inside[0], fix=fix)
        self._cut = cut

    def hide(self, value: Any) -> tuple[Any, Hidden]:
        """Return a value of JSON's kinds with every control token's text in its strings hidden, and what was hidden.

        >>> value, hidden = ControlTokens(["</s>"], cut=None).hide([{"content": "a </s>"}])
        >>> value[0]["content"], hidden.restore(value[0]["content"])
        ('a pilocal0x0x', 'a </s>')
        """
        strings = list(_strings(value))
        found = sorted({text for string in strings for text in self._find.findall(string)})
        nonce = next(f"pilocal{n}x" for n in itertools.count() if not any(f"pilocal{n}x" in each for each in strings))
        numbers = {text: f"{nonce}{number}x" for number, text in enumerate(found)}
        if found:
            value = _replace(value, lambda text: self._find.sub(lambda match: numbers[match[0]], text))
        return value, Hidden(nonce, tuple(found))

    def encode(self, text: str, hidden: Hidden, *, goes_on: bool = False) -> list[int]:
        """Return the tokens of a rendered chat, or of what goes on after one; what was hidden is plain text.

        What was hidden is cut for itself, as transformers' `apply_chat_template` does with `sanitize_control_tokens`.
        """
        first, *others = hidden.split(text)
        tokens = self._cut_after_newline(first, True) if goes_on else self._cut(first, True)
        for number, piece in enumerate(others):
            if piece:
                tokens += self._cut_after_newline(piece, number % 2 == 1)
        return tokens

    def _cut_after_newline(self, piece: str, control: bool) -> list[int]:
        """Return the tokens of a text that goes on in a line, before which SentencePiece must not lay a space."""
        newline, tokens = self._cut("\n", control), self._cut("\n" + piece, control)
        return tokens[len(newline) :] if tokens[: len(newline)] == newline else self._cut(piece, control)


@dataclass(frozen=True, slots=True)
class Hidden:
    """What `ControlTokens.hide` put in the place of texts."""

    nonce: str
    """No string that was given holds it."""
    texts: tuple[str, ...]

    def restore(self, text: str) -> str:
        """Return the text with what was hidden in it."""
        return "".join(self.split(text))

    def split(self, text: str) -> list[str]:
        """Return a rendered chat in pieces: what was rendered and what was hidden, in turn."""
        pieces = re.split(f"{self.nonce}(\\d+)x", text) if self.texts else [text]
        return [self.texts[int(piece)] if number % 2 else piece for number, piece in enumerate(pieces)]


def control_tokens(tokenizer: Any) -> ControlTokens:
    """Return the control tokens of a Hugging Face tokenizer."""
    from tokenizers import Tokenizer

    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder.values()
    texts = [token.content for token in added if token.special or token.content in CONTROL_MARKS]
    plain = Tokenizer(backend.model)  # without any added token
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer

    def cut(text: str, control: bool) -> list[int]:
        ids: list[int] = (backend if control else plain).encode(text, add_special_tokens=False).ids
        return ids

    return ControlTokens(texts, cut)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _replace(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_replace(key, change): _replace(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, change) for item in value]
    return value
