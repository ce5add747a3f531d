"""The adapter's two files: what is written is what is read, in the bytes of mlx-lm's writer where MLX writes it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.run_folder.adapter import FILES, Adapter, AdapterConfig, copy_adapter, read_adapter, read_start
from pilocal.task import Lora, Training

LORA = Lora(rank=4, scale=2.0)
CONFIG = AdapterConfig(kind="lora", layers=2, rank=4, scale=2.0, linears=("mlp.up_proj",), model="m", base_sha256="00")
TENSORS = {"m.lora_a": np.arange(12, dtype=np.float32).reshape(3, 4), "m.lora_b": np.ones((4, 5), np.float32)}


def test_an_adapter_comes_back_as_it_was_written(tmp_path: Path) -> None:
    files = Adapter(config=CONFIG, tensors=TENSORS).write(tmp_path / "a")
    assert [path.name for path in files] == list(FILES) == ["adapters.safetensors", "adapter_config.json"]
    found = read_adapter(tmp_path / "a")
    assert found.config == CONFIG
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        name: value.tolist() for name, value in TENSORS.items()
    }
    assert json.loads(files[1].read_text()) == {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["mlp.up_proj"]},
        "model": "m",
        "base_sha256": "00",
    }
    copied = copy_adapter(tmp_path / "a", tmp_path / "b")
    assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in files]


def test_what_mlx_trained_has_the_bytes_of_mlx_lms_writer(tiny_base: Base, tmp_path: Path) -> None:
    from pilocal.training.mlx.trainer import MlxTrainer

    trainer = MlxTrainer(tiny_base, LORA, Training())
    trainer.save(tmp_path)
    import mlx.core as mx

    arrays = {name: mx.array(value) for name, value in sorted(trainer.adapter().items())}
    mx.save_safetensors(str(tmp_path / "wanted.safetensors"), arrays, {"format": "mlx"})
    assert (tmp_path / FILES[0]).read_bytes() == (tmp_path / "wanted.safetensors").read_bytes()
    said = json.loads((tmp_path / FILES[1]).read_text())
    assert list(said) == ["fine_tune_type", "num_layers", "lora_parameters", "model", "base_sha256"]
    assert (said["model"], said["base_sha256"]) == (tiny_base.model, tiny_base.sha256)


def test_both_backends_say_the_same_of_an_adapter(tiny_base: Base, tmp_path: Path) -> None:
    from pilocal.training.mlx.trainer import MlxTrainer
    from pilocal.training.torch_backend.trainer import TorchTrainer

    lora = replace(LORA, layers=1, linears=("self_attn.v_proj", "mlp.up_proj"))
    mlx = MlxTrainer(tiny_base, lora, Training())
    mlx.save(tmp_path / "mlx")
    TorchTrainer(tiny_base, lora, Training(), mlx.adapter()).save(tmp_path / "torch")
    one, other = (read_adapter(tmp_path / name) for name in ("mlx", "torch"))
    assert one.config == other.config
    assert set(one.tensors) == set(other.tensors)
    assert all(np.array_equal(value, other.tensors[name]) for name, value in one.tensors.items())


def test_an_adapter_of_mlx_lms_own_is_read(tiny_adapter: Path) -> None:
    found = read_adapter(tiny_adapter)
    assert (found.config.kind, found.config.layers, found.config.rank, found.config.scale) == ("lora", 2, 4, 2.0)
    assert (found.config.model, found.config.base_sha256) == (None, None)
    assert {value.dtype for value in found.tensors.values()} == {np.dtype(np.float32)}


def test_bfloat16_is_read_as_the_same_numbers(tmp_path: Path) -> None:
    import mlx.core as mx

    Adapter(config=CONFIG, tensors=TENSORS).write(tmp_path)
    halves = mx.random.normal((3, 4)).astype(mx.bfloat16)
    mx.save_safetensors(str(tmp_path / FILES[0]), {"m.lora_a": halves})
    assert np.array_equal(read_adapter(tmp_path).tensors["m.lora_a"], np.array(halves.astype(mx.float32)))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "noise"])
def test_a_missing_or_damaged_file_is_one_line(file: str, damage: str, tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    whole = (folder / file).read_bytes()
    if damage == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\xff" * 99}[damage])
    with pytest.raises(InputError) as caught:
        read_adapter(folder)
    said = str(caught.value)
    assert said.startswith(f"{folder}: not a whole adapter: ")
    assert said.endswith("; point at a folder with adapters.safetensors and adapter_config.json")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lora_parameters": {"rank": 8, "scale": 2.0}}, r"rank is not the task's 4; got 8; set \[lora\] rank"),
        ({"lora_parameters": {"rank": 4, "scale": 1.0}}, r"scale is not the task's 2.0; got 1.0"),
        ({"fine_tune_type": "dora"}, "kind is not the task's 'lora'; got 'dora'"),
        ({"base_sha256": "ff"}, "was made for another base; got 'else'"),
        ({"lora_parameters": None}, "not a whole adapter"),
        (None, "not a whole adapter"),
    ],
)
def test_a_start_from_elsewhere_that_does_not_fit_is_refused(
    change: dict[str, Any] | None, line: str, tmp_path: Path
) -> None:
    if change is not None:
        _, path = Adapter(config=replace(CONFIG, model="else"), tensors=TENSORS).write(tmp_path)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=line):
        read_start(tmp_path, LORA, "00")
