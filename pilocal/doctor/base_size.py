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
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
        files = [file for file in folder.rglob("*") if file.suffix == WEIGHTS[0]]
        if files:
            return BaseSize(model=model, bytes=sum(file.stat().st_size for file in files), here=True)
    except HFValidationError as error:
        return BaseSize(model=model, fault=f"not a Hub id: {error}")
    except Exception:  # not downloaded
        pass
    try:
        found: Any = HfApi().model_info(model, files_metadata=True, timeout=20)
        sizes = [file.size or 0 for file in found.siblings if file.rfilename.endswith(WEIGHTS[0])]
        return BaseSize(model=model, bytes=sum(sizes) or None)
    except Exception as error:
        said = (str(error).splitlines() or [repr(error)])[0]
        return BaseSize(model=model, fault=f"{model} is not downloaded, and cannot be: {said}")
