"""How large a base is, without loading it and without downloading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pilocal.base.base import find_base
from pilocal.base.hub import asks_hub, downloaded_bytes, offered_bytes

WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSize:
    """What is known of a base."""

    model: str
    """As task.toml names it."""
    bytes: int | None = None
    """Of its weights' files; None where that is not known."""
    here: bool = False
    """Whether it lies on this machine."""
    fault: str = ""
    """Why it cannot be used, in a line."""


def base_size(model: str) -> BaseSize:
    """Return how large a base is; the Hub is asked about one that was not downloaded, unless it is offline."""
    if asks_hub(model):
        return _on_the_hub(model)
    try:
        base = find_base(model, Path())
    except Exception as error:
        return BaseSize(model=model, fault=str(error))
    files = [base.gguf] if base.gguf else [file for file in base.folder.iterdir() if file.suffix in WEIGHTS]
    return BaseSize(model=model, bytes=sum(file.stat().st_size for file in files), here=True)


def _on_the_hub(model: str) -> BaseSize:
    from huggingface_hub.errors import HFValidationError

    try:
        if size := downloaded_bytes(model):
            return BaseSize(model=model, bytes=size, here=True)
        return BaseSize(model=model, bytes=offered_bytes(model))
    except HFValidationError as error:
        return BaseSize(model=model, fault=f"{model}: not a Hub id: {' '.join(str(error).split())}")
    except Exception as error:
        said = (str(error).splitlines() or [repr(error)])[0]
        return BaseSize(model=model, fault=f"{model} is not downloaded, and cannot be: {said}")
