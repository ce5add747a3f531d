"""The base's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.base.plain import plain_folder
from pilocal.errors import ModelError


def load_tokenizer(folder: Path) -> Any:
    """Return the transformers tokenizer of a model folder; raises ModelError when it cannot be loaded."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        with plain_folder(folder) as plain:
            return AutoTokenizer.from_pretrained(plain)
    except Exception as error:  # whatever the files make the libraries raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "copy or download the model again"
        raise ModelError(folder, f"its tokenizer cannot be loaded: {reason}", fix=fix) from None
