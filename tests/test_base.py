from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

from pilocal.base.base import Base, find_base
from pilocal.base.device import keeps_packed
from pilocal.base.load import load_base
from pilocal.errors import ModelError
from pilocal.export.card import Facts
from pilocal.export.mlx_folder import write_mlx_folder
from pilocal.export.weights import BaseWeights
from pilocal.task import Training
from pilocal.task.text import MARK
from tests.tiny import make_adapter, make_base

NAME = "model.layers.0.mlp.up_proj"


def linear(base: Base) -> Any:
    return load_base(base).model.layers[0].mlp.up_proj


def test_packed_weights_stay_packed_on_a_device_that_trains_with_them(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not keeps_packed()
    monkeypatch.setattr("pilocal.base.device.on_cpu", lambda: False)
    assert keeps_packed()
    assert isinstance(linear(tiny_base), QuantizedLinear)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_device_without_the_quantized_product_gets_the_same_numbers_in_float32(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    plain = mx.quantized_matmul

    def lacking(*arguments: Any, **more: Any) -> Any:
        if not backwards:
            raise RuntimeError("QuantizedMatmul has no CUDA implementation")
        return fails(plain(*arguments, **more))

    @mx.custom_function
    def fails(product: Any) -> Any:
        return product

    @fails.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        raise RuntimeError("QuantizedMatmul has no CUDA implementation")

    monkeypatch.setattr("pilocal.base.device.on_cpu", lambda: False)
    monkeypatch.setattr(mx, "quantized_matmul", lacking)
    assert not keeps_packed()
    found = linear(tiny_base)
    assert type(found) is Linear
    assert found.weight.dtype == mx.float32
    assert np.array_equal(np.array(found.weight), BaseWeights(tiny_base).read(f"{NAME}.weight"))


def test_an_adapter_of_another_base_is_one_line(tiny_base: Base, starter: Base, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", starter, rank=2, scale=2.0)
    with pytest.raises(ModelError, match=r"does not fit the base: .*; train it again, on this base$"):
        load_base(tiny_base, adapter)


@pytest.mark.parametrize("window", [8, 30, 400])
def test_what_is_shared_behind_a_window_has_the_same_gradients(window: int, starter: Base, tmp_path: Path) -> None:
    from pilocal.training.torch_backend.trainer import TorchTrainer
    from tests.test_torch import LORA, distance, mlx_start
    from tests.test_train import random_rows, trainable

    base = make_base(tmp_path / "base", starter.folder, model_type="mistral", rope_scaling=None, sliding_window=window)
    rows = random_rows(2, 30, 20, 2, 8)
    start = {name: value + 0.01 for name, value in mlx_start(trainable(base)).items()}
    whole, shared = (TorchTrainer(base, LORA, Training(), start, share=share) for share in (False, True))
    assert shared.computed_tokens(rows)[0] < whole.computed_tokens(rows)[0] - 100
    (loss, found), (expected, gradients) = shared.gradients(rows), whole.gradients(rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert all(distance(found[name], value) < 1e-5 for name, value in gradients.items())


def test_a_base_knows_how_a_task_named_it(starter: Base, tiny_base: Base, tmp_path: Path) -> None:
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    found = find_base("base", tmp_path)
    assert (found.model, found.local, found.address) == ("base", True, str((tmp_path / "base").resolve()))
    assert (starter.model, starter.local, starter.address) == ("starter", True, str(starter.folder.resolve()))
    assert Base(tmp_path, "owner/name", local=False).address == "owner/name"


def test_a_base_is_read_once(tiny_base: Base, tmp_path: Path) -> None:
    base = Base.at(shutil.copytree(tiny_base.folder, tmp_path / "base"))
    config, sha256, tokenizer = base.config, base.sha256, base.tokenizer
    (base.folder / "config.json").unlink()
    assert (base.config, base.sha256, base.tokenizer) == (config, sha256, tokenizer)
    assert sha256 == tiny_base.sha256
    with pytest.raises(ModelError, match=r"no config\.json: not a model folder"):
        Base.at(base.folder).check()


def test_a_base_whose_files_begin_with_a_byte_order_mark_is_the_same_base(
    tiny_base: Base, starter: Base, tmp_path: Path
) -> None:
    base = Base.at(shutil.copytree(tiny_base.folder, tmp_path / "base"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = base.folder / name
        path.write_bytes(MARK.encode() + path.read_bytes())
    base.check()
    assert base.config == tiny_base.config
    assert base.tokenizer.encode("turn on the light") == tiny_base.tokenizer.encode("turn on the light")
    assert np.array_equal(np.array(linear(base).weight), np.array(linear(tiny_base).weight))
    exported = write_mlx_folder(base, None, tmp_path / "mlx", Facts(task="t", base="owner/model"))
    assert not [path for path in exported if path.read_bytes().startswith(MARK.encode())]
    assert not list(Path(tempfile.gettempdir()).glob("pilocal-base-*"))
