"""How large a base is, without loading it and without downloading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.base.base import find_base
from pilocal.base.places import OLLAMA

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
    path = Path(model).expanduser()
    if not path.exists() and model.count("/") == 1 and not model.startswith((".", "/", "~", OLLAMA)):
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
        if size := _downloaded(model):
            return BaseSize(model=model, bytes=size, here=True)
        return BaseSize(model=model, bytes=_offered(model))
    except HFValidationError as error:
        return BaseSize(model=model, fault=f"{model}: not a Hub id: {' '.join(str(error).split())}")
    except Exception as error:
        said = (str(error).splitlines() or [repr(error)])[0]
        return BaseSize(model=model, fault=f"{model} is not downloaded, and cannot be: {said}")


def _downloaded(model: str) -> int:
    """Return the bytes of a model's weights in the Hub's cache; 0 where it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except LocalEntryNotFoundError:
        return 0
    return sum(file.stat().st_size for file in folder.rglob(f"*{WEIGHTS[0]}"))


def _offered(model: str) -> int | None:
    """Return the bytes of a model's weights on the Hub; None where it does not tell."""
    from huggingface_hub import HfApi

    found: Any = HfApi().model_info(model, files_metadata=True, timeout=20)
    return sum(file.size or 0 for file in found.siblings if file.rfilename.endswith(WEIGHTS[0])) or None
