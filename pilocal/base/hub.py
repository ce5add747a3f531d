"""The models of the Hugging Face Hub: asked for, weighed and downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.errors import ModelError
from pilocal.task.hub import is_hub_id, split_hub_id
from pilocal.task.text import from_home, holds

WEIGHTS = ".safetensors"


def asks_hub(model: str) -> bool:
    """Tell whether the Hub is asked for a base of this name: it can be a Hub id, and there is no such path here."""
    return is_hub_id(model) and not holds(Path(from_home(model)).exists)


def download(model: str, *, weights: bool = True) -> Path:
    """Return the local folder of a Hub id's files, of which those that are there already are not fetched again.

    They are the newest, or those of the revision in owner/name@REVISION; without `weights`, all but those. Raises
    ModelError when there is no such id or revision, or no network and no copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "vocab.txt", "sentencepiece.bpe.model"]
    left_out = None if weights else [f"*{WEIGHTS}"]
    name, revision = split_hub_id(model)
    if revision == "":
        raise ModelError(model, "no revision after the @", fix="give owner/name@REVISION or owner/name")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=left_out))
    except HFValidationError as error:
        raise ModelError(model, f"not a Hub id: {error}", fix="give owner/name or owner/name@REVISION") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "check the id and the network, or give a local directory"
        raise ModelError(model, f"cannot be downloaded: {reason}", fix=fix) from None


def downloaded_bytes(model: str) -> int:
    """Return the bytes of a Hub id's weights that are here; 0 where they are not.

    Raises huggingface_hub's HFValidationError for what is no Hub id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, revision = split_hub_id(model)
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return 0
    return sum(file.stat().st_size for file in folder.rglob(f"*{WEIGHTS}"))


def offered_bytes(model: str) -> int | None:
    """Return the bytes of a Hub id's weights on the Hub; None where it does not tell.

    Raises what huggingface_hub raises where there is no network, or no such id.
    """
    from huggingface_hub import HfApi

    name, revision = split_hub_id(model)
    found: Any = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=20)
    return sum(file.size or 0 for file in found.siblings if file.rfilename.endswith(WEIGHTS)) or None
