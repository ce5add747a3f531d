"""The base's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.base.plain import plain_folder
from pilocal.errors import ModelError
from pilocal.packages import keep_torch_apart


def load_tokenizer(folder: Path) -> Any:
    """Return the transformers tokenizer of a model folder; raises ModelError when it cannot be loaded."""
    keep_torch_apart()
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        with plain_folder(folder) as plain:
            return _with_its_own_steps(AutoTokenizer.from_pretrained(plain), folder / "tokenizer.json")
    except Exception as error:  # whatever the files make the libraries raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "copy or download the model again"
        raise ModelError(folder, f"its tokenizer cannot be loaded: {reason}", fix=fix) from None


def _with_its_own_steps(tokenizer: Any, file: Path) -> Any:
    """Return a tokenizer that cuts text as its file says.

    transformers 5 gives every GPT2Tokenizer GPT-2's own steps, and SmolLM2's, of that class, are others.
    """
    from tokenizers import Tokenizer

    if type(tokenizer).__name__ == "GPT2Tokenizer" and file.is_file():
        tokenizer.backend_tokenizer.pre_tokenizer = Tokenizer.from_file(str(file)).pre_tokenizer
    return tokenizer
