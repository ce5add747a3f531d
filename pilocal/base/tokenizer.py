"""The base's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.base.plain import plain_folder
from pilocal.errors import ModelError
from pilocal.packages import keep_torch_apart

SETTLED: Mapping[tuple[str, str], str] = {
    ("llama", "PreTrainedTokenizer"): "PreTrainedTokenizerFast",
    ("llama", "TokenizersBackend"): "PreTrainedTokenizerFast",
    ("smollm3", "PreTrainedTokenizer"): "PreTrainedTokenizerFast",
    ("smollm3", "TokenizersBackend"): "PreTrainedTokenizerFast",
    ("ministral3", "PreTrainedTokenizer"): "PreTrainedTokenizerFast",
    ("ministral3", "TokenizersBackend"): "PreTrainedTokenizerFast",
    ("qwen2", "Qwen2Tokenizer"): "Qwen2Tokenizer",
    ("qwen3", "Qwen2Tokenizer"): "Qwen2Tokenizer",
}
"""The class that AutoTokenizer takes, in every version, for a model_type and a tokenizer_class, its "Fast" left off."""

MOST_BYTES = 256 * 2**20
"""Of a file of a tokenizer; the largest that are published have a fifth of it."""


def load_tokenizer(folder: Path) -> Any:
    """Return the transformers tokenizer of a model folder; raises ModelError when it cannot be loaded."""
    keep_torch_apart()
    from transformers.utils import logging

    logging.set_verbosity_error()
    _check_sizes(folder)
    try:
        with plain_folder(folder) as plain:
            # Left open, transformers would ask whether to run code from the folder.
            found = _tokenizer_class(plain).from_pretrained(plain, trust_remote_code=False)
            found = _with_whole_marks(_with_its_own_steps(found, folder / "tokenizer.json"))
            return _with_its_own_template(found, folder)
    except Exception as error:  # whatever the files make the libraries raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "copy or download the model again"
        raise ModelError(folder, f"its tokenizer cannot be loaded: {reason}", fix=fix) from None


def _check_sizes(folder: Path) -> None:
    """Raise ModelError where a file is longer than any tokenizer's: reading it would take all memory."""
    for path in (*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.model"), *folder.glob("*.txt")):
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            fix = "copy or download the model again"
            raise ModelError(path, f"more than {MOST_BYTES >> 20} MiB", got=path.stat().st_size, fix=fix)


def _tokenizer_class(folder: Path) -> Any:
    """Return the class that AutoTokenizer takes for a folder, or AutoTokenizer itself, which imports PyTorch."""
    import transformers

    return getattr(transformers, SETTLED.get(_declared(folder), "AutoTokenizer"))


def _declared(folder: Path) -> tuple[str, str]:
    """Return the model_type and the tokenizer_class that a folder declares; empty where it does not, or not plainly."""
    try:
        model, tokenizer = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer_config.json")
        )
        if "auto_map" in tokenizer:
            return "", ""
        return str(model["model_type"]), str(tokenizer["tokenizer_class"]).removesuffix("Fast")
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _with_its_own_template(tokenizer: Any, folder: Path) -> Any:
    """Return a tokenizer; if it has no chat template with that of chat_template.json, where models that see have it."""
    path = folder / "chat_template.json"
    if not tokenizer.chat_template and path.is_file():
        tokenizer.chat_template = json.loads(path.read_text(encoding="utf-8-sig")).get("chat_template")
    return tokenizer


def _with_whole_marks(tokenizer: Any) -> Any:
    """Return a tokenizer whose control tokens take no white space from the text beside them, as in llama.cpp.

    Phi's do. What a message begins with is then the same in training and serving.
    """
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    if any(token.special and (token.lstrip or token.rstrip) for token in backend.get_added_tokens_decoder().values()):
        described = json.loads(backend.to_str())
        for token in described["added_tokens"]:
            if token["special"]:
                token |= {"lstrip": False, "rstrip": False}
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(described))
    return tokenizer


def _with_its_own_steps(tokenizer: Any, file: Path) -> Any:
    """Return a tokenizer that cuts text as its file says.

    transformers 5 gives every GPT2Tokenizer GPT-2's own steps, and SmolLM2's, of that class, are others.
    """
    from tokenizers import Tokenizer

    if type(tokenizer).__name__ == "GPT2Tokenizer" and file.is_file():
        tokenizer.backend_tokenizer.pre_tokenizer = Tokenizer.from_file(str(file)).pre_tokenizer
    return tokenizer
