"""PyTorch reads a base's weights as MLX does, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from tests.tiny import make_base


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_weights_are_unpacked_as_mlx_does_bit_for_bit(
    bits: int, dtype: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    import torch

    from pilocal.training.torch_backend import weights

    mx.random.seed(bits)
    packed, scales, biases = mx.quantize(mx.random.normal((9, 384)).astype(getattr(mx, dtype)), size, bits)
    wide = [value.astype(mx.float32) for value in (scales, biases)]
    expected = np.array(mx.dequantize(packed, wide[0], wide[1], group_size=size, bits=bits))
    monkeypatch.setattr(weights, "AT_ONCE", 1000)  # some rows at a time
    words = torch.from_numpy(np.array(packed).view(np.int32)).view(torch.uint32)
    parts = (torch.from_numpy(np.array(value.astype(mx.float32))) for value in (scales, biases))
    found = weights.dequantize(words, *parts, bits=bits).numpy()
    if dtype == "float32":  # where the product does not fit a float, MLX may round it once or twice
        assert np.abs(found - expected).max() <= 2e-7 * np.abs(expected).max()
    else:
        assert np.array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("fixture", ["starter", "tiny_base", "tiny_float_base", "tiny_qwen3_base", "mixed"])
def test_every_weight_of_a_base_is_mlxs(
    fixture: str, request: pytest.FixtureRequest, starter: Base, tmp_path: Path
) -> None:
    import torch
    from mlx.utils import tree_flatten

    from pilocal.training.torch_backend.weights import read_weights

    if fixture == "mixed":
        exceptions = {"model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 64}, "model.layers.1.mlp.up_proj": False}
        base = make_base(tmp_path / "base", starter.folder, exceptions=exceptions)
    else:
        base = request.getfixturevalue(fixture)
    found = dict(read_weights(base, dtype=torch.float32, device=torch.device("cpu")))
    parameters = dict(tree_flatten(load_base(base, None, "float32").parameters()))
    expected = {name: np.array(value) for name, value in parameters.items()}
    assert set(found) == set(expected)
    for name, value in found.items():
        assert np.array_equal(value.numpy().view(np.int32), expected[name].view(np.int32)), name


def test_a_base_in_shards_is_read_whole(tiny_base: Base, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from pilocal.training.torch_backend.weights import read_weights

    tensors = load_file(tiny_base.folder / "model.safetensors")
    names = sorted(tensors)  # a module's parts lie next to each other, and the cut goes through one
    cut = names.index("model.layers.0.mlp.up_proj.scales")
    for number, part in enumerate((names[:cut], names[cut:])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    settings: Any = {"dtype": torch.float32, "device": torch.device("cpu")}
    shutil.copyfile(tiny_base.folder / "config.json", tmp_path / "config.json")
    split = dict(read_weights(Base.at(tmp_path), **settings))
    whole = dict(read_weights(tiny_base, **settings))
    assert set(split) == set(whole)
    assert all(torch.equal(split[name], value) for name, value in whole.items())
