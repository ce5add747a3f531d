from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from pilocal.base.device import keeps_packed
from pilocal.base.load import load_base
from pilocal.errors import ModelError
from pilocal.export.weights import BaseWeights
from tests.tiny import make_adapter

NAME = "model.layers.0.mlp.up_proj"


def linear(base: Path) -> Any:
    return load_base(base).model.layers[0].mlp.up_proj


def test_packed_weights_stay_packed_on_a_device_that_trains_with_them(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not keeps_packed()
    monkeypatch.setattr("pilocal.base.device.on_cpu", lambda: False)
    assert keeps_packed()
    assert isinstance(linear(tiny_base), nn.QuantizedLinear)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_device_without_the_quantized_product_gets_the_same_numbers_in_float32(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
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
    assert type(found) is nn.Linear
    assert found.weight.dtype == mx.float32
    assert np.array_equal(np.array(found.weight), BaseWeights(tiny_base).read(f"{NAME}.weight"))


def test_an_adapter_of_another_base_is_one_line(tiny_base: Path, starter: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", starter, rank=2, scale=2.0)
    with pytest.raises(ModelError, match=r"does not fit the base: .*; train it again, on this base$"):
        load_base(tiny_base, adapter)
