"""Whether Hugging Face's tokenizer and llama.cpp cut texts into the same tokens, and why not where they do not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

from pilocal.base.base import Base
from pilocal.base.chat import OWN, ChatSettings
from pilocal.export.vocabulary import add_vocabulary
from pilocal.prompt.control import TURNS_TO_TOOLS
from pilocal.prompt.pre_tokenizers import MERGED
from tests.texts import NEW_LETTERS


@dataclass
class Differences:
    """Texts that were cut in two ways, by reason."""

    texts: int = 0
    normalized: list[str] = field(default_factory=list)
    """Cut alike but for the tokenizer's NFC, which llama.cpp leaves out."""
    new_letters: list[str] = field(default_factory=list)
    """With a letter or digit that is newer than llama.cpp's tables."""
    unexplained: list[str] = field(default_factory=list)


def write_vocabulary(folder: Path, rows: int, out: Path, chat: ChatSettings = OWN) -> Path:
    """Write a GGUF that holds a tokenizer alone; `chat` is what a task changes."""
    base = replace(Base.at(folder), chat=chat)
    writer = GGUFWriter(str(out), MERGED if TURNS_TO_TOOLS in base.tokenizer.get_vocab() else "llama")
    add_vocabulary(writer, base, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return out


def differences(tokenizer: Any, model: Any, texts: Iterable[str]) -> Differences:
    """Compare every text; `model` is llama.cpp's, of the same vocabulary.

    Where a BOS is written out, as SentencePiece's tokenizers have it, texts stand behind it, as in a chat.
    """
    found = Differences()
    begin = tokenizer.bos_token if tokenizer.bos_token == "<s>" else ""
    bare = _without_nfc(tokenizer)
    for text in texts:
        found.texts += 1
        whole = begin + text
        got = model.tokenize(whole.encode(), add_bos=False, special=True)
        if got == tokenizer.encode(whole, add_special_tokens=False):
            continue
        if got == bare.encode(whole, add_special_tokens=False).ids:
            found.normalized.append(text)
        elif not NEW_LETTERS.isdisjoint(text):
            found.new_letters.append(text)
        else:
            found.unexplained.append(text)
    return found


def _without_nfc(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["normalizer"] == {"type": "NFC"}:
        described["normalizer"] = None
    return Tokenizer.from_str(json.dumps(described))
