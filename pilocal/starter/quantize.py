"""Turn the trained starter into MLX 4-bit weights: `python -m pilocal.starter.quantize FROM TO`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from pilocal.base.blas import load_fast_blas

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def quantize(source: Path, target: Path, *, bits: int = 4, group_size: int = 32) -> None:
    """Write `source` (a float Hugging Face folder) to `target` in mlx-lm's affine quantization.

    config.json gets the rope settings under both the names of transformers 5 and those that mlx-lm reads.
    """
    load_fast_blas()
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.utils import quantize_model

    config = json.loads((source / "config.json").read_text())
    rope = config["rope_parameters"]
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["dtype"] = "float16"
    model = Model(ModelArgs.from_dict(config))
    weights: dict[str, mx.array] = mx.load(str(source / "model.safetensors"))  # type: ignore[assignment]
    model.load_weights(
        [(name, value.astype(mx.float16)) for name, value in weights.items() if name != "lm_head.weight"]
    )
    model, config = quantize_model(model, config, group_size=group_size, bits=bits)
    config.pop("quantization_config", None)
    target.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(target / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]))
