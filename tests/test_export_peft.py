from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import ExportError
from pilocal.export.card import Facts
from pilocal.export.fuse import FusedWeights
from pilocal.export.peft import write_peft
from pilocal.export.tensors import Entry, write_tensors
from tests.tiny import make_adapter, make_base

TOLERANCE = 1e-4
"""Largest logit difference in standard deviations of the logits: both compute in float32."""

# peft reads a property whose name transformers is about to change.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FACTS = Facts(task="smart-home", base="owner/model")


def tokens_T() -> list[int]:
    return [2040, *np.random.default_rng(0).integers(0, 2000, 200).tolist()]


def mlx_logits(base: Base, adapter: Path | None) -> np.ndarray:
    """(T, V) float32."""
    model = load_base(base, adapter, precision="float32")
    import mlx.core as mx

    return np.array(model(mx.array([tokens_T()]))[0])


def float_copy(base: Base, folder: Path) -> Path:
    """The base as transformers reads it: float32 throughout."""
    weights = FusedWeights(base, None)
    layout = {name: Entry("F32", shape) for name, shape in weights.shapes.items()}
    folder.mkdir()
    write_tensors(folder / "model.safetensors", layout, map(weights.read, layout), {"format": "pt"})
    config = {key: value for key, value in base.config.items() if key != "quantization"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def peft_model(base: Path, folder: Path) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).eval()


def peft_logits(model: Any) -> np.ndarray:
    """(T, V) float32."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens_T()])).logits[0])


def trim(adapter: Path, folder: Path, *kept: str) -> Path:
    """An adapter of which only the modules remain that begin with one of `kept`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(adapter, folder)
    tensors = load_file(adapter / "adapters.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if name.startswith(kept)}, folder / "adapters.safetensors"
    )
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"num_layers": 1}))
    return folder


@pytest.mark.parametrize("layers", ["all layers", "last layer"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_computes_what_mlx_computes(kind: str, layers: str, tiny_base: Base, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_base, kind=kind)
    if layers == "last layer":
        adapter = trim(adapter, tmp_path / "last", "model.layers.1.")
    files = write_peft(tiny_base, adapter, tmp_path / "peft", FACTS)
    assert sorted(tmp_path.joinpath("peft").iterdir()) == sorted(files)
    model = peft_model(float_copy(tiny_base, tmp_path / "float"), tmp_path / "peft")
    expected = mlx_logits(tiny_base, adapter)
    assert np.abs(peft_logits(model) - expected).max() < TOLERANCE * expected.std()
    assert np.abs(mlx_logits(tiny_base, None) - expected).max() > 1000 * TOLERANCE * expected.std()


@pytest.mark.parametrize(
    ("kept", "as_names"),
    [
        ([""], True),
        (["model.layers.1."], True),
        (["model.layers.0.mlp."], True),
        (["model.layers.1.self_attn.q_proj"], True),
        (["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj"], False),
    ],
)
def test_peft_adapts_exactly_the_modules_that_were_trained(
    kept: list[str], as_names: bool, tiny_base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    adapter = trim(tiny_adapter, tmp_path / "adapter", *kept)
    write_peft(tiny_base, adapter, tmp_path / "peft", FACTS)
    model = peft_model(float_copy(tiny_base, tmp_path / "float"), tmp_path / "peft")
    marks = (".lora_A.default", "base_model.model.")
    adapted = {name[len(marks[1]) : -len(marks[0])] for name, _ in model.named_modules() if name.endswith(marks[0])}
    trained = FusedWeights(tiny_base, adapter).adapter
    assert trained is not None
    assert adapted == set(trained.by_module)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert isinstance(config["target_modules"], list if as_names else str)


def test_the_config_and_the_card_say_what_it_is(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    write_peft(tiny_base, tiny_adapter, tmp_path, FACTS)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (4, 8.0, False)
    assert (config["base_model_name_or_path"], config["task_type"]) == ("owner/model", "CAUSAL_LM")
    assert "layers_to_transform" not in config
    card = (tmp_path / "README.md").read_text()
    assert card.startswith('---\nbase_model: "owner/model"\nlibrary_name: "peft"\n')
    assert "smart-home" in card


def test_an_adapter_of_another_base_is_refused(tiny_adapter: Path, starter: Base, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", starter.folder, hidden_size=128)
    with pytest.raises(ExportError, match="the adapter does not fit"):
        write_peft(base, tiny_adapter, tmp_path / "peft", FACTS)
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize("dated", [True, False])
def test_the_call_on_the_card_makes_the_tokens_of_the_training(
    dated: bool, tiny_base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    base = Base.at(shutil.copytree(tiny_base.folder, tmp_path / "base"))
    template = base.folder / "chat_template.jinja"
    if dated:
        year = "{{- bos_token }}{{ strftime_now('%Y') }}"
        template.write_text(template.read_text().replace("{{- bos_token }}", year))
    files = write_peft(base, tiny_adapter, tmp_path / "peft", Facts(task="t", base=str(base.folder)))
    assert sorted((tmp_path / "peft").iterdir()) == sorted(files)
    assert (tmp_path / "peft" / "chat_template.jinja").is_file() == dated
    card = (tmp_path / "peft" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("this/folder", str(tmp_path / "peft"))
    lines = [line for line in code.splitlines() if not line.startswith(("base =", "model =", "answer ="))]
    found: dict[str, Any] = {}
    exec("\n".join(lines), found)
    assert found["prompt"]["input_ids"][0].tolist() == base.layout.prompt(found["chat"])


VLLM_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""The linear layers of Llama, Mistral and Qwen that vLLM puts an adapter on, by the last word of a tensor's module."""


def vllm_command(card: str) -> list[str]:
    return shlex.split(card.split("```sh\n")[1].split("```", maxsplit=1)[0].replace("\\\n", " "))


@pytest.mark.parametrize(("rank", "most"), [(1, "1"), (4, "8"), (16, "16"), (17, "32"), (200, "256"), (257, "320")])
def test_the_card_s_command_for_vllm_has_room_for_the_rank(
    rank: int, most: str, tiny_base: Base, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_base, rank=rank)
    write_peft(tiny_base, adapter, tmp_path / "peft", FACTS)
    words = vllm_command((tmp_path / "peft" / "README.md").read_text())
    assert words == [
        *("vllm", "serve", "owner/model", "--enable-lora", "--max-lora-rank", most),
        *("--lora-modules", "smart-home=this/folder"),
    ]


def test_what_vllm_reads_is_what_it_supports(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    """Its loader takes no bias, no saved modules and no DoRA, and finds modules by the names of the tensors."""
    from safetensors.numpy import load_file

    write_peft(tiny_base, tiny_adapter, tmp_path, FACTS)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert (config["bias"], config["use_dora"], config.get("modules_to_save")) == ("none", False, None)
    for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        module, part, weight = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert module.rpartition(".")[2] in VLLM_MODULES
        assert tensor.shape[0 if part == "lora_A" else 1] == config["r"]
        assert (part in ("lora_A", "lora_B"), weight) == (True, "weight")


def test_a_name_or_a_base_with_blanks_survives_the_shell(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    facts = Facts(task="it's = a, b", base="/models/my base")
    write_peft(tiny_base, tiny_adapter, tmp_path, facts)
    words = vllm_command((tmp_path / "README.md").read_text())
    assert words[2] == "/models/my base"
    assert json.loads(words[-1]) == {"name": "it's = a, b", "path": "this/folder"}


def test_what_vllm_does_not_load_is_said(tiny_base: Base, tmp_path: Path) -> None:
    for kind, rank, said in (("dora", 4, "DoRA"), ("lora", 513, "a rank above 512")):
        adapter = make_adapter(tmp_path / f"adapter-{kind}", tiny_base, kind=kind, rank=rank)
        write_peft(tiny_base, adapter, tmp_path / kind, FACTS)
        card = (tmp_path / kind / "README.md").read_text()
        assert f"vLLM does not load {said}." in card and "vllm serve" not in card
