"""The base as transformers computes it, with peft's LoRA on its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import torch

from pilocal.base.architectures import architecture_of
from pilocal.base.base import ROPES, Base
from pilocal.errors import InputError, ModelError
from pilocal.packages import quiet_bitsandbytes
from pilocal.run_folder.adapter import AdapterConfig
from pilocal.task import Lora
from pilocal.training.backend import NF4, PACKED, UNPACKED
from pilocal.training.memory import check_lora
from pilocal.training.torch_backend.experts import stack_experts
from pilocal.training.torch_backend.nf4 import round_to_nf4
from pilocal.training.torch_backend.packed import PackedEmbedding, keep_packed, tie
from pilocal.training.torch_backend.sharding import sharder
from pilocal.training.torch_backend.weights import grouping, read_weights

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
"""What the model's two ends are called, which may have the same weights."""


def load_model(
    base: Base, *, dtype: torch.dtype, device: torch.device, weights: str = UNPACKED, sharded: bool = False
) -> Any:
    """Return the frozen base, computing in `dtype`, with its weights as `pilocal.training.backend.WEIGHTS` has them.

    If `sharded`, every process of the team calls this, and each keeps a part of every layer. Raises ModelError when its
    weights are not those that config.json describes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    config = AutoConfig.for_model(**transformers_config(base.config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.requires_grad_(False)
    shard = sharder(device) if sharded else _keep_whole
    at = torch.device("cpu") if weights == NF4 else device  # unpacked it may be more than the device holds
    stored = stack_experts(read_weights(base, dtype=dtype, device=at, unpack=weights != PACKED))
    unknown = [name for module, parts in _modules(stored) for name in _fill(model, base, module, parts, dtype, shard)]
    _check_names(model, base, unknown)
    if config.tie_word_embeddings:
        _tie(model, shard)
    _compute_rest(model.model, device)
    if weights == NF4:
        round_to_nf4(model, device, dtype)
    model.config.use_cache = False
    return model.requires_grad_(False)


def _modules(stored: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield each module's name and its weights; they lie one after the other."""
    for module, some in groupby(stored, key=lambda one: one[0].rpartition(".")[0]):
        yield module, {name.rpartition(".")[2]: value for name, value in some}


def _fill(
    model: Any,
    base: Base,
    name: str,
    parts: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    shard: Callable[[torch.nn.Module], None],
) -> list[str]:
    """Give a module its weights, packed where they come so; return the names of those that the model does not have.

    Of ends that are tied the embedding is filled, and not sharded yet. Raises ModelError when the shapes are not
    config.json's.
    """
    tied = model.config.tie_word_embeddings
    if tied and name == HEAD:
        return []
    try:
        model.get_submodule(name)
    except AttributeError:
        unknown = list(parts)
    else:
        if "scales" in parts:
            keep_packed(model, name, grouping(base, name), dtype)
        try:
            _, unknown = model.get_submodule(name).load_state_dict(parts, strict=False, assign=True)
        except RuntimeError as error:
            what, fix = "the weights do not have config.json's shapes", "copy or download the model again"
            got = f"{name}: {str(error).splitlines()[-1].strip()}"
            raise ModelError(base.path, what, got=got, fix=fix) from None
        if not (tied and name == EMBEDDING) and not any(model.get_submodule(name).children()):
            shard(model.get_submodule(name))
    names = [f"{name}.{part}" for part in unknown]
    return [each for each in names if not each.endswith("rotary_emb.inv_freq")]


def _check_names(model: Any, base: Base, unknown: Sequence[str]) -> None:
    """Raise ModelError where weights are missing, or there are `unknown` ones."""
    tied = model.config.tie_word_embeddings
    missing = [name for name, value in model.state_dict().items() if value.is_meta and not (tied and HEAD in name)]
    if missing or unknown:
        what = f"weights that are {'missing' if missing else 'unknown'}"
        raise ModelError(base.path, what, got=(missing or unknown)[0], fix="copy or download the model again")


def _tie(model: Any, shard: Callable[[torch.nn.Module], None]) -> None:
    """Give the output layer the embedding's weights; sharded, each has parts of its own, which hold the same."""
    if isinstance(model.model.embed_tokens, PackedEmbedding):
        model.lm_head = tie(model.model.embed_tokens, model.lm_head)
    else:
        model.tie_weights()
    shard(model.model.embed_tokens)
    shard(model.lm_head)


def _keep_whole(layer: torch.nn.Module) -> None:
    """Change nothing: the base is not sharded."""


def _compute_rest(inner: Any, device: torch.device) -> None:
    """Give a value to what is computed and not stored, which `meta` has none of."""
    inner.rotary_emb = type(inner.rotary_emb)(inner.config).to(device)
    config = inner.config
    for name, key in (("embed_tokens", "hidden_size"), ("embed_tokens_per_layer", "hidden_size_per_layer_input")):
        embedding: Any = getattr(inner, name, None)
        if getattr(embedding, "embed_scale", None) is not None:  # Gemma's
            embedding.embed_scale = torch.tensor(getattr(config, key) ** 0.5, device=device)


def transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json as transformers means it, with the values that MLX takes where a key is left out.

    >>> shape = {"model_type": "qwen2", "num_attention_heads": 4, "quantization": {"bits": 4}}
    >>> made = transformers_config({**shape, "rope_scaling": {"type": "linear", "factor": 2.0}})
    >>> made["rope_parameters"]
    {'factor': 2.0, 'rope_type': 'linear', 'rope_theta': 1000000.0}
    >>> made["num_key_value_heads"], made["tie_word_embeddings"]
    (4, True)
    """
    dropped = ("quantization", "quantization_config", *ROPES, "rope_scaling", "rope_parameters")
    made = {key: value for key, value in config.items() if key not in dropped}
    theta = config.get("rope_theta") or architecture_of(config).rope_theta
    scaling = dict(config.get("rope_scaling") or {})
    kind = scaling.pop("type", "default")
    made["rope_parameters"] = {**scaling, "rope_type": scaling.get("rope_type", kind), "rope_theta": float(theta)}
    made["num_key_value_heads"] = config.get("num_key_value_heads") or config["num_attention_heads"]
    made["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    if architecture_of(config).unlike_layers:
        made["rope_parameters"] = {kind: dict(rope) for kind, rope in config["rope_parameters"].items()}
    elif local := architecture_of(config).local_theta:
        near = {"rope_type": "default", "rope_theta": float(config.get("rope_local_base_freq") or local)}
        made["rope_parameters"] = {"full_attention": made["rope_parameters"], "sliding_attention": near}
    else:
        made["hidden_act"] = "silu"
    made["pad_token_id"] = None  # some classes name one of their own, which a small vocabulary does not have
    return made


def lora_config(model: Any, lora: Lora) -> Any:
    """Return peft's settings for the modules that `[lora]` names.

    Raises InputError when the model has fewer layers, a linear layer is not in them, or the kind is not "lora".
    """
    quiet_bitsandbytes()
    from peft import LoraConfig

    if lora.kind != "lora":
        fix = 'take kind = "lora", or --backend mlx'
        raise InputError("[lora] kind", "the PyTorch backend does not train magnitudes (DoRA)", got=lora.kind, fix=fix)
    layers, names = len(model.model.layers), linears(model, lora)
    adapted = range(layers - (lora.layers or layers), layers)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.scale * lora.rank),  # so it is annotated; a fraction does as well
        lora_dropout=lora.dropout,
        target_modules=[f"model.layers.{i}.{name}" for i in adapted for name in names],
        bias="none",
        task_type="CAUSAL_LM",
    )


def linears(model: Any, lora: Lora) -> list[str]:
    """Return the names of the linear layers that are adapted, sorted; raises InputError where `lora` does not fit."""
    kind, layers = torch.nn.Linear, model.model.layers
    return check_lora(
        lora, [[name for name, each in layer.named_modules() if isinstance(each, kind)] for layer in layers]
    )


def adapter_config(model: Any, lora: Lora) -> AdapterConfig:
    """Return the adapter's settings, as mlx-lm has them."""
    return AdapterConfig.of(lora, lora.layers or len(model.model.layers), linears(model, lora))


def add_lora(model: Any, settings: Any) -> None:
    """Put peft's LoRA layers into the model, in place, with float32 weights that alone are trainable."""
    quiet_bitsandbytes()
    from peft import inject_adapter_in_model

    inject_adapter_in_model(settings, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
