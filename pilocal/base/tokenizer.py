"""The base's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_tokenizer(folder: Path) -> Any:
    """Return the transformers tokenizer of a model folder."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    return AutoTokenizer.from_pretrained(folder)
