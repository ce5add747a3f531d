"""What is said of a model that is not supported: which part of it is not, and what to take instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pilocal.base.architectures import ARCHITECTURES
from pilocal.errors import ModelError

PARTS = {
    "vision_config": "images",
    "visual": "images",
    "audio_config": "audio",
    "speech_config": "audio",
    "encoder_config": "what an encoder reads",
}
"""Keys of config.json of a part that reads something else than text, and what it reads."""

GGUF_PARTS = {"v.": "images", "mm.": "images", "a.": "audio"}
"""How tensors are called in GGUF that are of such a part, which Ollama keeps in the model's own file."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
"""Keys that say that a layer has several MLPs of which some are run."""

STATES = ("mamba", "ssm", "conv_", "linear_", "rwkv", "recurrent", "time_mix")
"""How keys begin that are of layers that keep a state instead of keys and values."""

OTHER_LAYERS = ("linear_attention", "conv", "mamba", "recurrent", "lightning")
"""Kinds of layers in `layer_types` or `layers_block_type` that are not attention."""

EMBEDS = "an embedding model: it makes no text"
TYPES = f"one of these types: {', '.join(ARCHITECTURES)}"
PLAIN = f"take a base of {TYPES}"
TEXT = f"take its text alone: a GGUF file without the other part, or a folder of {TYPES}"


def refusal(path: Path, config: Mapping[str, Any]) -> ModelError:
    """Return the error for a config.json whose `model_type` is not in ARCHITECTURES."""
    kind = config.get("model_type")
    if key := next((key for key in PARTS if isinstance(config.get(key), dict)), None):
        return ModelError(path, f"{key}: a model that also reads {PARTS[key]} is not supported", got=kind, fix=TEXT)
    what = "this architecture is not supported"
    if key := _said(config, EXPERTS):
        what = f"{key}: a mixture of experts is not supported"
    elif key := _state(config):
        what = f"{key}: layers that keep a state instead of keys and values are not supported"
    return ModelError(path, what, got=kind, fix=PLAIN)


def _state(config: Mapping[str, Any]) -> str | None:
    """Return what says that there are layers that keep a state; None where nothing does."""
    types = config.get("layer_types") or config.get("layers_block_type")
    others = [str(name) for name in types if name in OTHER_LAYERS] if isinstance(types, list) else []
    return others[0] if others else _said(config, (key for key in config if key.startswith(STATES)))


def gguf_refusal(path: Path, architecture: object, metadata: Mapping[str, Any], fix: str) -> ModelError:
    """Return the error for a GGUF file of an architecture that is not supported."""
    what = "this architecture is not supported"
    if metadata.get(f"{architecture}.pooling_type"):
        what = EMBEDS
    elif metadata.get(f"{architecture}.expert_count"):
        what = "a mixture of experts is not supported"
    elif any(key.startswith(f"{architecture}.ssm.") for key in metadata):
        what = "layers that keep a state instead of keys and values are not supported"
    return ModelError(path, what, got=architecture, fix=fix)


def check_parts(path: Path, tensors: Iterable[str]) -> None:
    """Raise ModelError for a GGUF file that also holds a part that reads images or audio."""
    for name in tensors:
        if reads := next((reads for start, reads in GGUF_PARTS.items() if name.startswith(start)), None):
            raise ModelError(path, f"{name}: a model that also reads {reads} is not supported", fix=TEXT)


def check_answers(folder: Path, config: Mapping[str, Any], causal: str) -> None:
    """Raise ModelError for a folder whose model makes no text, or is another than its `model_type` says.

    `causal` is the class of that type which does.
    """
    path = folder / "config.json"
    said = config.get("architectures")
    names = [str(name) for name in said] if isinstance(said, list) else []
    if (folder / "modules.json").is_file():  # which sentence-transformers writes
        fix = f"take a base of the class {causal}"
        raise ModelError(folder / "modules.json", EMBEDS, got=names[0] if names else None, fix=fix)
    if names and causal.lower() not in [name.lower() for name in names]:
        bare = causal.removesuffix("ForCausalLM")
        made = names[0].removeprefix(bare)
        fix = f"take a base of the class {causal}"
        if names[0].startswith(bare) and made != "ForCausalLM":
            what = EMBEDS if made.endswith("Model") else "it makes no text"
            raise ModelError(path, what, got=names[0], fix=fix)
        raise ModelError(path, "architectures and model_type do not belong together", got=names[0], fix=fix)


def _said(config: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return the first of some keys that is there and not 0."""
    return next((key for key in keys if config.get(key)), None)
