"""The base model: finding its folder, checking it, and what its config says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError
from pilocal.run.hashes import fingerprint, remembered_sha256
from pilocal.task import STARTER

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s that can be trained, exported and served."""


def find_base(model: str, relative_to: Path) -> Path:
    """Return the checked folder of a base model: the starter, a directory, or a Hub id (downloaded once).

    Raises ModelError when it cannot be had or is not whole.
    """
    if model == STARTER:
        folder = Path(__file__).parent.parent / "starter" / "model"
    elif (relative_to / model).is_dir():
        folder = relative_to / model
    elif model.startswith((".", "/", "~")) or model.count("/") != 1:
        fix = f'give a directory, a Hub id such as owner/name, or "{STARTER}"'
        raise ModelError(model, "no such model", fix=fix)
    else:
        folder = download(model)
    check_base(folder)
    return folder


def download(model: str) -> Path:
    """Return the local folder of a Hub id's newest files, of which those that are there already are not fetched again.

    Raises ModelError when there is no such id, or no network and no copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "vocab.txt", "sentencepiece.bpe.model"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except HFValidationError as error:
        raise ModelError(model, f"not a Hub id: {error}", fix="give owner/name") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "check the id and the network, or give a local directory"
        raise ModelError(model, f"cannot be downloaded: {reason}", fix=fix) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json with rope settings under the names that mlx-lm reads.

    transformers 5 writes `rope_parameters`; mlx-lm's Llama reads `rope_theta` and `rope_scaling` and would silently
    fall back to its defaults.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            folder, "no config.json: not a model folder", fix="point model at a Hugging Face folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(path, f"damaged: {error}", fix="copy or download the model again") from None
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default":
            scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
            config["rope_scaling"] = config.get("rope_scaling") or scaling
    return config


def stock_reads_rope(folder: Path) -> bool:
    """Tell whether mlx-lm by itself finds in config.json the rope settings that `read_config` finds."""
    own: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = read_config(folder)
    if found.get("model_type") == "qwen3":  # the one that reads rope_parameters itself
        return True
    return (own.get("rope_theta", 10000.0), own.get("rope_scaling")) == (
        found.get("rope_theta", 10000.0),
        found.get("rope_scaling"),
    )


def context_length(folder: Path) -> int:
    """Return the longest sequence the model was made for, in tokens.

    Where a layer sees only a window of the last tokens, as in Mistral 7B v0.1, that is the window: llama.cpp computes
    none for these architectures, and up to there nothing differs.
    """
    config = read_config(folder)
    longest = int(config.get("max_position_embeddings", 2048))
    return min(longest, int(config["sliding_window"])) if has_window(config) else longest


def has_window(config: Mapping[str, Any]) -> bool:
    """Tell whether a layer's attention has a window; Qwen's configs name one that is not in use.

    >>> has_window({"sliding_window": 4096}), has_window({"sliding_window": 4096, "model_type": "mistral"})
    (False, True)
    """
    if not config.get("sliding_window"):
        return False
    if layers := config.get("layer_types"):
        return "sliding_attention" in layers
    return bool(config.get("use_sliding_window", config.get("model_type") == "mistral"))


def check_base(folder: Path) -> None:
    """Raise ModelError unless the folder holds a whole model of a known kind with a tokenizer and a chat template."""
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        fix = f"take a base of one of these types: {', '.join(SUPPORTED)}"
        raise ModelError(folder / "config.json", "this architecture is not supported", got=kind, fix=fix)
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise ModelError(folder, "no model*.safetensors", fix="copy or download the model again")
    for path in weights:
        _check_safetensors(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shards.difference(path.name for path in weights)):
            raise ModelError(folder, f"missing weights: {', '.join(missing)}", fix="copy or download the model again")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(folder, "no tokenizer.json", fix="copy or download the model again")
    has_template = (folder / "chat_template.jinja").is_file()
    tokenizer_config = folder / "tokenizer_config.json"
    if not has_template and tokenizer_config.is_file():
        has_template = "chat_template" in json.loads(tokenizer_config.read_text(encoding="utf-8"))
    if not has_template:
        raise ModelError(folder, "the tokenizer has no chat template", fix="take an instruct model")


def _check_safetensors(path: Path) -> None:
    """Compare the header's promise with the file's size, which finds a download that was cut short."""
    fix = "copy or download the model again"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ModelError(path, "damaged: the header does not fit the file", got=f"{size} bytes", fix=fix)
        try:
            header = json.loads(file.read(length))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError):
            raise ModelError(path, "damaged: unreadable header", fix=fix) from None
    if 8 + length + end != size:
        raise ModelError(path, f"damaged: {8 + length + end} bytes promised", got=f"{size} bytes", fix=fix)


def base_hash(folder: Path) -> str:
    """Return one SHA-256 over everything that decides what the model says; that of large files is remembered."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = [folder / name for name in names if (folder / name).is_file()] + sorted(folder.glob("model*.safetensors"))
    return fingerprint([(path.name, remembered_sha256(path)) for path in files])
