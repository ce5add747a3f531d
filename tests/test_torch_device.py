"""What a run on the PyTorch backend needs: its packages, a device, and room for the weights."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.errors import InputError, TrainingError
from pilocal.task import Lora, Training
from pilocal.training.backend import NF4, PACKED, UNPACKED, WEIGHTS
from pilocal.training.torch_backend.device import check_bitsandbytes, find_device
from pilocal.training.torch_backend.memory import choose_weights, estimate
from tests.forked import pilocal
from tests.test_flow import make_task
from tests.test_train import adapter_bytes, random_rows


@pytest.mark.parametrize("name", ["torch", "peft"])
def test_a_package_that_is_missing_is_named_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find(package))
    with pytest.raises(InputError, match=rf"{name} is not installed; pip install 'pilocal\[torch\]'"):
        find_device(None)


@pytest.mark.parametrize(("device", "name"), [("cuda", "CUDA"), ("mps", r"Metal \(MPS\)")])
def test_a_device_that_is_not_there_is_named(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device(None) == "cpu"
    with pytest.raises(InputError, match=rf"--device {device}: PyTorch .* finds no {name} here; leave --device out"):
        find_device(device)


def test_a_gpu_that_is_too_small_is_told_what_to_change(tiny_base: Base) -> None:
    config = {key: value for key, value in tiny_base.config.items() if key != "quantization"}
    stages = [random_rows(0, 30, 200)]
    lora, training = Lora(rank=4), Training(batch_size=8)
    needed = estimate(config, lora, training, "float32", stages)
    assert choose_weights(needed, UNPACKED, config, lora, training, "float32", stages) == UNPACKED
    with pytest.raises(
        TrainingError, match=r"--device cuda: the training takes about .* set \[training\] accumulate = 2"
    ):
        choose_weights(needed - 1, UNPACKED, config, lora, training, "float32", stages)
    least = estimate(config, lora, replace(training, accumulate=8, recompute=True), "float32", stages)
    with pytest.raises(TrainingError, match="recompute = true"):
        choose_weights(least, UNPACKED, config, lora, training, "float32", stages)
    with pytest.raises(TrainingError, match="shorten the template"):
        choose_weights(least - 1, UNPACKED, config, lora, training, "float32", stages)


def test_a_base_stays_packed_only_where_its_floats_do_not_fit() -> None:
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = shape | {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256}
    config |= {"tie_word_embeddings": False}
    packed = config | {"quantization": {"bits": 4, "group_size": 64}}
    rest = (Lora(), Training(batch_size=1), "bfloat16", [random_rows(0, 30, 200)])
    needed = {weights: estimate(packed, *rest, weights) for weights in WEIGHTS}
    assert needed[PACKED] < needed[NF4] < needed[UNPACKED] / 2
    assert needed[PACKED] > 8.03e9 * 4.5 / 8
    assert choose_weights(needed[UNPACKED], None, packed, *rest) == UNPACKED
    assert choose_weights(needed[UNPACKED] - 1, None, packed, *rest) == PACKED
    assert choose_weights(needed[NF4], NF4, packed, *rest) == NF4
    with pytest.raises(TrainingError, match="leave --weights out: the base stays packed"):
        choose_weights(needed[UNPACKED] - 1, UNPACKED, packed, *rest)
    with pytest.raises(TrainingError, match="shorten the template"):
        choose_weights(needed[UNPACKED] // 2, None, config, *rest)


@pytest.mark.parametrize("weights", [PACKED, NF4])
def test_a_task_trains_with_four_bits(weights: str, starter: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", starter.folder)
    run = tmp_path / "run"
    command = ["train", task, "--schedule", task / "schedule.toml", "--run", run]
    command += ["--backend", "torch", "--device", "cpu", "--weights"]
    done = pilocal(*command, weights)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["backend"]["weights"] == weights
    first = adapter_bytes(run / "stages")
    other = pilocal(*command, UNPACKED)
    assert other.returncode == 0, other.stderr
    assert (adapter_bytes(run / "stages") == first) == (weights == PACKED)
    assert ("is up to date" in other.stderr) == (weights == PACKED)


def test_weights_that_cannot_be_held_so_are_refused(
    tiny_float_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(tmp_path / "task", tiny_float_base.folder)
    done = pilocal("train", task, "--backend", "torch", "--device", "cpu", "--weights", "packed")
    assert done.returncode == 1
    assert "--weights packed: the weights of this base are not packed" in done.stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"bitsandbytes is not installed; pip install 'pilocal\[nf4\]'"):
        check_bitsandbytes()
