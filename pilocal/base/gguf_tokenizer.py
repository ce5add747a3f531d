"""The tokenizer of a GGUF file, rebuilt from its metadata alone, with the ids that llama.cpp gives.

What `pilocal.export.vocabulary` writes is read here. Byte-level BPE merges by the file's list of pairs. SentencePiece
has scores instead: llama.cpp merges any two neighbours that together are a token, the highest score first, so the list
of pairs is every such pair in the order of the scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError
from pilocal.prompt.control import CONTROL_MARKS, END_MARKS, NFC_KEY, ends_by_its_text
from pilocal.prompt.pre_tokenizers import (
    MERGED,
    PRE_TOKENIZERS,
    PREPEND,
    REPLACE,
    SPACE,
    PreTokenizer,
    broken_at_newlines,
    bytes_left_out,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of tokens in a file; the others, for bytes and for rows that nothing uses, need no care."""

MOST_SQUARES = 2**30
"""Of the lengths of all tokens, which is how long it takes to find where each may be merged; a hundred times what the
largest vocabularies have."""

AGAIN = "copy or download the file again"

Described = dict[str, Any]
"""A part of a tokenizer.json."""


def load_gguf_tokenizer(metadata: Mapping[str, Any], where: Path) -> Any:
    """Return a transformers tokenizer made from the metadata of a GGUF file, whose values are plain Python.

    It has the file's chat template, or none. Raises ModelError, which names the file by `where`, for a tokenizer of
    another kind and for one that is damaged.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = _File(metadata, where)
    makers = {"gpt2": _byte_level, "llama": _sentencepiece, MERGED: _merged_pieces}
    kind = file.read("model")
    if kind not in makers:
        fix = f"take a file whose tokenizer.ggml.model is one of {', '.join(makers)}"
        raise ModelError(where, "this kind of tokenizer is not supported", got=kind, fix=fix)
    described = makers[kind](file) | {
        "version": "1.0",
        "added_tokens": list(_added_tokens(file)),
        "post_processor": _around(file),
    }
    try:
        tokenizer = Tokenizer.from_str(json.dumps(described))
    except Exception as error:  # the library has no error of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(where, f"its tokenizer cannot be rebuilt: {reason}", fix=AGAIN) from None
    template = metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=template if isinstance(template, str) and template.strip() else None,
        **{f"{name}_token": file.tokens[row] for name, row in file.special.items()},
    )


@dataclass(frozen=True)
class _File:
    """The keys of the tokenizer, checked when they are read."""

    metadata: Mapping[str, Any]
    where: Path

    def read(self, name: str) -> Any:
        """Return a value; None where there is none."""
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def read_list(self, name: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any]:
        """Return a list of values of that kind; raises ModelError for anything else, and for another length."""
        found = self.read(name)
        if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
            raise self.damaged(name, "no list" if not isinstance(found, list) else "values of another kind")
        if length is not None and len(found) != length:
            raise self.damaged(name, f"{len(found)} values for {length} tokens")
        return found

    def damaged(self, name: str, got: str) -> ModelError:
        """Return the error for a value that cannot be."""
        return ModelError(self.where, f"tokenizer.ggml.{name} is missing or damaged", got=got, fix=AGAIN)

    @cached_property
    def sentencepiece(self) -> bool:
        """Whether it is SentencePiece's, which decides what holds where the file does not say."""
        return bool(self.read("model") == "llama")

    @cached_property
    def tokens(self) -> list[str]:
        """What stands in each row."""
        found = self.read_list("tokens", str)
        if not found:
            raise self.damaged("tokens", "no tokens")
        if sum(len(token) ** 2 for token in found) > MOST_SQUARES:
            raise self.damaged("tokens", "tokens that are too long")
        return found

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The row of every token; of two that are alike the last, as in llama.cpp."""
        return {token: row for row, token in enumerate(self.tokens)}

    @cached_property
    def types(self) -> list[int]:
        """The type of each row."""
        if self.read("token_type") is None:
            return [NORMAL] * len(self.tokens)
        return self.read_list("token_type", int, len(self.tokens))

    @cached_property
    def pre_tokenizer(self) -> PreTokenizer:
        """What a byte-level BPE does before it merges; raises ModelError for one that is not known."""
        name = self.read("pre")
        for known in PRE_TOKENIZERS:
            if name in (known.name, *known.aliases):
                return known
        fix = f"take a file with one of these: {', '.join(known.name for known in PRE_TOKENIZERS)}"
        raise ModelError(self.where, "its pre-tokenizer (tokenizer.ggml.pre) is not supported", got=name, fix=fix)

    @cached_property
    def special(self) -> dict[str, int]:
        """The rows of the special tokens that there are, by transformers' names for them."""
        keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        usual = {"bos": 1, "eos": 2, "unk": 0} if self.sentencepiece else {}
        found: dict[str, int] = {}
        for name, key in keys.items():
            row = self.read(f"{key}_token_id")
            if row is None and usual.get(name, len(self.tokens)) < len(self.tokens):
                row = usual[name]
            if row is None:
                continue
            if not isinstance(row, int) or not 0 <= row < len(self.tokens):
                raise self.damaged(f"{key}_token_id", f"{row!r} of {len(self.tokens)} tokens")
            found[name] = row
        return found

    def adds(self, name: str) -> bool:
        """Tell whether BOS ("bos") or EOS ("eos") is put around a text."""
        said = self.read(f"add_{name}_token")
        if name == "bos" and self.read("model") == MERGED:
            said = True  # as llama.cpp does, whatever the file says
        if said is None:
            said = name == "bos" and (self.sentencepiece or self.pre_tokenizer.adds_bos)
        return bool(said) and name in self.special


def _byte_level(file: _File) -> Described:
    """Return pre-tokenizer, model and decoder of a byte-level BPE."""
    steps = [
        {"trim_offsets": True, **step} if step["type"] == "ByteLevel" else step for step in file.pre_tokenizer.steps
    ]
    steps += bytes_left_out(file.vocabulary)
    merges = _listed(file)
    return {
        "normalizer": {"type": "NFC"} if file.metadata.get(NFC_KEY) else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(file, merges, ignore_merges=file.pre_tokenizer.whole_words),
    }


def _listed(file: _File) -> list[tuple[str, str]]:
    """Return the pairs of tokens that the file lists, and that together are one."""
    # The first of a token's characters may be the space.
    cuts = [(pair, pair.find(" ", 1)) for pair in file.read_list("merges", str)]
    pairs = [(pair[:cut], pair[cut + 1 :]) for pair, cut in cuts if cut > 0]
    known = file.vocabulary
    return [pair for pair in pairs if pair[0] in known and pair[1] in known and "".join(pair) in known]


def _sentencepiece(file: _File) -> Described:
    """Return normalizer, model and decoder of SentencePiece's BPE."""
    prefix = file.read("add_space_prefix") in (None, True)
    return _pieces(file, _pairs(file), prefix=prefix)


def _merged_pieces(file: _File) -> Described:
    """Return the same of Gemma 4's, which lists its pairs; llama.cpp lays no space before its texts."""
    pairs = _listed(file)
    if (token := broken_at_newlines(file.vocabulary, pairs)) is not None:
        what, fix = "llama.cpp cuts text at newlines before it merges", "take another base"
        raise ModelError(file.where, what, got=token, fix=fix)
    return _pieces(file, pairs, prefix=False)


def _pieces(file: _File, pairs: Sequence[tuple[str, str]], *, prefix: bool) -> Described:
    if missing := [token for byte in range(256) if (token := f"<0x{byte:02X}>") not in file.vocabulary]:
        raise file.damaged("tokens", f"no {missing[0]}")
    if "unk" not in file.special:
        raise file.damaged("unknown_token_id", "none")
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    unknown = file.tokens[file.special["unk"]]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE] if prefix else [REPLACE]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(file, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _bpe(file: _File, merges: Sequence[Sequence[str]], **settings: Any) -> Described:
    plain: Described = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    plain |= dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return {"type": "BPE", **plain, **settings, "vocab": file.vocabulary, "merges": merges}


def _pairs(file: _File) -> list[tuple[str, str]]:
    """Return every two tokens that together are one, those of the highest score first.

    Of equal scores llama.cpp takes the leftmost, which makes a run grow from the left: the longest left part first.
    """
    scores = [0.0] * len(file.tokens)
    if file.read("scores") is not None:
        scores = file.read_list("scores", (int, float), len(file.tokens))
    known = file.vocabulary
    found = [
        (-scores[row], -cut, -len(token), left, right)
        for token, row in known.items()
        for cut in range(1, len(token))
        if (left := token[:cut]) in known and (right := token[cut:]) in known
    ]
    found.sort(key=lambda pair: pair[:3])
    return [(left, right) for *_, left, right in found]


def _added_tokens(file: _File) -> Iterator[Described]:
    """Yield the tokens that are cut out of a text before anything is merged; only control tokens are special."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for row, (text, kind) in enumerate(zip(file.tokens, file.types, strict=True)):
        marks = text in CONTROL_MARKS and (text not in END_MARKS or ends_by_its_text(text, file.vocabulary))
        special = kind in (CONTROL, UNKNOWN) or marks
        if text and file.vocabulary[text] == row and (special or kind == USER_DEFINED):
            yield {"id": row, "content": text, "special": special, **flags}


def _around(file: _File) -> Described | None:
    """Return the step that puts BOS and EOS around a text; None where there is none."""
    marks = {name: file.tokens[file.special[name]] for name in ("bos", "eos") if file.adds(name)}
    if not marks:
        return None

    def around(text: str) -> list[Described]:
        parts: list[Described] = [{"Sequence": {"id": text, "type_id": 0}}]
        if "bos" in marks:
            parts.insert(0, {"SpecialToken": {"id": marks["bos"], "type_id": 0}})
        if "eos" in marks:
            parts.append({"SpecialToken": {"id": marks["eos"], "type_id": 0}})
        return parts

    ids = {token: {"id": token, "ids": [file.vocabulary[token]], "tokens": [token]} for token in marks.values()}
    pair = [*around("A"), *around("B")]
    return {"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": ids}
