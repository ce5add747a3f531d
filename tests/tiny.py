"""Small real things to test with: random models on the starter's or another tokenizer, and an adapter for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.base import Base
from pilocal.base.blas import load_fast_blas

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
OTHERS = (
    *("tiny_biased_base", "tiny_mistral_base", "tiny_granite_base", "tiny_smollm3_base"),
    *("tiny_qwen2_base", "tiny_qwen3_base", "tiny_gemma3_base", "tiny_phi3_base"),
    "tiny_qwen3_moe_base",
    "tiny_ministral3_base",
    *("tiny_gemma4_base", "tiny_gemma4_shared_base"),
)
"""Fixtures of conftest.py: of every architecture a base, beside `tiny_base` and a Llama's other shapes."""

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 384,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "tie_word_embeddings": False,
}


GRANITE: dict[str, Any] = {
    "model_type": "granite",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.6,
    "residual_multiplier": 0.8,
    "tie_word_embeddings": True,
}


GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 96,
    "num_hidden_layers": 7,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 24,
    "sliding_window_pattern": 6,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "tie_word_embeddings": True,
}
"""All layers but the sixth see 24 tokens."""


GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 24,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "tie_word_embeddings": True,
}
"""Of 31B's kind: every second layer sees all tokens, has wider heads, and its keys are its values."""


GEMMA4_SHARED: dict[str, Any] = {
    **GEMMA4,
    "num_hidden_layers": 6,
    "attention_k_eq_v": False,
    "num_global_key_value_heads": None,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "full", "sliding", "full")],
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 2048,
}
"""Of E2B's kind: the last three layers take keys and values of an earlier one, and all have inputs of their own."""


PHI3: dict[str, Any] = {
    "model_type": "phi3",
    "num_attention_heads": 4,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 512,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1 + i / 8 for i in range(24)],
        "long_factor": [2 + i for i in range(24)],
    },
    "tie_word_embeddings": True,
}


QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rope_scaling": None,
    "rope_theta": 1e6,
}


MINISTRAL3: dict[str, Any] = {
    "model_type": "ministral3",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 64,
    "rope_scaling": None,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 24,
        "beta_fast": 2.0,
        "beta_slow": 0.5,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "llama_4_scaling_beta": 0.3,
    },
}
"""Queries are scaled from the 24th token on; heads are wider together than the model."""


CONFIGS = {each["model_type"]: each for each in (GRANITE, GEMMA3, PHI3, QWEN3_MOE, MINISTRAL3, GEMMA4)}
"""What is said of an architecture that a Llama's config.json does not say, by `model_type`."""


def make_base(
    folder: Path,
    tokenizer: Path,
    *,
    quantized: bool = True,
    dtype: str = "float16",
    exceptions: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> Base:
    """Write a random model with the tokenizer of a folder: MLX 4-bit in groups of 32 (with exceptions), or floats.

    `changes` are keys of config.json; without a `model_type` it is a Llama.
    """
    load_fast_blas()
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map_with_path
    from mlx_lm.utils import MODEL_REMAPPING, quantize_model

    config = {**CONFIG, **changes}
    if "layer_types" in config and "rope_parameters" in config:  # as in Gemma 4
        config = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    if known := ARCHITECTURES.get(config["model_type"]):
        config["architectures"] = [known.causal]
    kind = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    module = import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))

    def drawn(name: str, value: Any) -> Any:
        start = value - known.offset(name) if known else value  # norms begin at 1, whatever is added to them
        if known and known.unlike_layers and name.endswith("k_norm.weight"):
            start = start / value.size**0.5  # which alone keeps Gemma 4's scores small
        spread = 1.0 if name.endswith("mlp.gate.weight") else 0.05  # a trained router is decided
        return start + spread * mx.random.normal(value.shape)

    # Wider than MLX's own start, so that the logits differ enough to compare.
    model.update(tree_map_with_path(drawn, model.parameters()))
    if config.get("tie_word_embeddings", True):
        model.pop("lm_head", None)  # as Gemma's `sanitize` does
    model.set_dtype(getattr(mx, dtype))
    if quantized:
        model, config = quantize_model(model, config, 32, 4, quant_predicate=lambda path, _: exceptions.get(path, True))
        config.pop("quantization_config", None)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    return Base.at(folder)


def make_adapter(
    folder: Path, base: Base, *, kind: str = "lora", rank: int = 4, scale: float = 2.0, seed: int = 1
) -> Path:
    """Write a random LoRA or DoRA on every linear layer of `base`, that changes what the model says."""
    load_fast_blas()
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    config = json.loads((base.folder / "config.json").read_text())
    model, _ = load_model(base.folder)
    model.freeze()
    keys = [*ARCHITECTURES[config["model_type"]].matrices]
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, config["num_hidden_layers"], parameters, use_dora=kind == "dora")
    mx.random.seed(seed)
    size = 0.05 if kind == "lora" else 0.02  # a DoRA's change is not held down by the base's size
    weights = dict(tree_flatten(model.trainable_parameters()))
    lora = {name: size * mx.random.normal(value.shape) for name, value in weights.items()}
    # Magnitudes are never negative.
    lora |= {name: weights[name] * (1 + noise) for name, noise in lora.items() if name.endswith(".m")}
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), lora)
    settings = {"fine_tune_type": kind, "num_layers": config["num_hidden_layers"], "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@contextmanager
def put_back(folder: Path, aside: Path) -> Iterator[Path]:
    """Give a folder to one test, and put it back as it was, where it was, from a copy in `aside`."""
    shutil.copytree(folder, aside)
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(aside, folder)
