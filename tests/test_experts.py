"""A mixture of experts: its files in both forms, what of it is refused, and what of it is adapted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base, find_base
from pilocal.base.load import load_base
from pilocal.errors import ExportError, InputError, ModelError, PilocalError
from pilocal.export.fused import export_fused
from pilocal.export.gguf import check_exportable
from pilocal.export.lossless import export_lossless
from pilocal.export.weights import BaseWeights
from pilocal.run_folder.hashes import sha256_file
from pilocal.run_folder.tensors import read_tensors, save_tensors
from pilocal.task import Lora
from pilocal.training.memory import read_sizes
from tests.test_export import mlx_logits
from tests.tiny import QWEN3_MOE, make_base


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory, qwen_tokenizer: Path) -> Base:
    """As MLX writes it, in floats."""
    return make_base(tmp_path_factory.mktemp("bases") / "stacked", qwen_tokenizer, quantized=False, **QWEN3_MOE)


@pytest.fixture(scope="module")
def alone(stacked: Base) -> Base:
    """The same model as Hugging Face's files have it: each expert's weights alone, by transformers 5's names."""
    folder = shutil.copytree(stacked.folder, stacked.folder.parent / "alone")
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in read_tensors(folder / "model.safetensors").items():
        module, found, part = name.partition(".switch_mlp.")
        each = {f"{module}.experts.{number}.{part}": one for number, one in enumerate(tensor)} if found else {}
        tensors |= {key: value.astype(np.float16) for key, value in (each or {name: tensor}).items()}
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["num_local_experts"] = config.pop("num_experts")
    (folder / "config.json").write_text(json.dumps(config))
    return Base.at(folder)


def edited(base: Base, folder: Path, **changes: Any) -> Base:
    shutil.copytree(base.folder, folder)
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value != "left out"})
    )
    return Base.at(folder)


def test_experts_that_are_stored_alone_are_the_same_model(stacked: Base, alone: Base, tmp_path: Path) -> None:
    alone.check()
    mine, theirs = BaseWeights(stacked), BaseWeights(alone)
    assert mine.shapes == theirs.shapes
    assert mine.shapes["model.layers.1.mlp.switch_mlp.down_proj.weight"] == (8, 64, 96)
    for name in mine.shapes:
        assert np.array_equal(mine.read(name), theirs.read(name)), name
    across = "model.layers.0.mlp.switch_mlp.up_proj.weight"
    assert np.array_equal(theirs.part(across, 90, 200), mine.read(across).reshape(-1, 64)[90:200])
    assert np.array_equal(mlx_logits(stacked, None), mlx_logits(alone, None))
    files = [export_lossless(base, tmp_path / base.folder.name).path for base in (stacked, alone)]
    assert [path.stat().st_size for path in files] == [files[0].stat().st_size] * 2
    gguf = Base.of_gguf(files[0])
    for name in mine.shapes:
        assert np.array_equal(gguf.gguf_weights.read(name), mine.read(name)), name


@pytest.mark.parametrize("form", ["stacked", "alone"])
def test_pytorch_has_the_same_experts(form: str, request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch")
    from pilocal.training.torch_backend.model import linears, load_model

    base = request.getfixturevalue(form)
    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    experts, weights = model.model.layers[1].mlp.experts, BaseWeights(base)
    parts = [weights.read(f"model.layers.1.mlp.switch_mlp.{part}_proj.weight") for part in ("gate", "up", "down")]
    assert np.array_equal(experts.gate_up_proj.numpy(), np.concatenate(parts[:2], axis=1))
    assert np.array_equal(experts.down_proj.numpy(), parts[2])
    assert linears(model, Lora()) == sorted(base.architecture.matrices)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob: llama.cpp computes this model in another way; got False"),
        ({"norm_topk_prob": "left out"}, "norm_topk_prob: llama.cpp computes this model in another way; take"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step: llama.cpp computes this model in another way; got 2"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers: llama.cpp computes this model in another way; got [0]"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: llama.cpp computes this model in another way; got 9"),
        ({"num_experts": "left out"}, "num_experts must be a whole number above 0; copy or download"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size must be a whole number above 0; got 0"),
        (
            {"num_experts": 7},
            "model.layers.0.mlp.switch_mlp.gate_proj.weight is not what config.json says, 7 x 96 x 64",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling: this kind cannot be exported; got 'yarn'",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_one_line(
    changes: dict[str, Any], line: str, stacked: Base, tmp_path: Path
) -> None:
    base = edited(stacked, tmp_path / "base", **changes)
    assert line in refused(base)


@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_an_expert_that_does_not_fit_is_one_line(change: str, alone: Base, tmp_path: Path) -> None:
    base = edited(alone, tmp_path / "base")
    path, name = base.folder / "model.safetensors", "model.layers.1.mlp.experts.3.up_proj.weight"
    tensors = dict(read_tensors(path))
    whole = tensors.pop(name)
    save_tensors(path, tensors if change == "missing" else tensors | {name: whole[:5]}, {"format": "pt"})
    assert "model.layers.1.mlp.switch_mlp.up_proj.weight: its experts are not alike, or one is missing" in refused(base)


def refused(base: Base) -> str:
    """What is said of a base before any work; one line."""
    with pytest.raises(PilocalError) as caught:
        find_base(str(base.folder), base.folder.parent)
        check_exportable(base)
    assert isinstance(caught.value, ModelError | ExportError)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(base.folder))
    return str(caught.value)


@pytest.mark.parametrize("name", ["mlp.gate", "mlp.switch_mlp.up_proj", "mlp.up_proj"])
def test_neither_experts_nor_what_scores_them_are_adapted(name: str, stacked: Base) -> None:
    assert set(read_sizes(stacked.config, Lora()).blocks[0]) == {f"self_attn.{part}_proj" for part in "qkvo"}
    with pytest.raises(InputError, match="no such linear layer"):
        read_sizes(stacked.config, Lora(linears=(name,)))


def test_a_quantized_file_of_experts_is_a_base_in_the_bits_that_it_has(stacked: Base, tmp_path: Path) -> None:
    """What MLX can hold packed: it computes by the same numbers from packed experts as from floats."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from pilocal.base.gguf_mlx import load_gguf

    gguf = export_fused(stacked, None, tmp_path / "model.gguf", "q4_0")
    before, base = sha256_file(gguf), find_base(str(gguf), tmp_path)
    name = "model.layers.1.mlp.switch_mlp.up_proj"
    assert base.gguf_weights.type(f"{name}.weight") == "Q4_0"
    assert base.gguf_weights.type("model.layers.1.mlp.gate.weight") == "F32"
    packed, floats = load_gguf(base, packed=True, precision="float32"), load_base(base)
    held = dict(tree_flatten(packed.parameters()))
    assert held[f"{name}.weight"].dtype == mx.uint32
    tokens = mx.array([list(range(5, 60))])
    assert mx.allclose(packed(tokens), floats(tokens), rtol=0, atol=1e-4)
    assert sha256_file(gguf) == before
