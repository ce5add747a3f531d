"""What run, export or serve would refuse after the training is refused by check, and by run before it begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pilocal.base.base import Base
from pilocal.errors import ModelError, PilocalError, TrainingError
from pilocal.export.finite import check_finite
from pilocal.export.gguf import check_exportable
from pilocal.flow.plan import check
from pilocal.flow.run import run_task
from tests.test_flow import make_task
from tests.tiny import CONFIG

Damage = Callable[[Path], None]


def config(**changes: Any) -> Damage:
    """Change keys of config.json; ... takes one away."""

    def damage(base: Path) -> None:
        said = json.loads((base / "config.json").read_text()) | changes
        said = {key: value for key, value in said.items() if value is not ...}
        (base / "config.json").write_text(json.dumps(said))

    return damage


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(base: Path) -> None:
        said = json.loads((base / "tokenizer.json").read_text())
        change(said)
        (base / "tokenizer.json").write_text(json.dumps(said))

    return damage


def weight(name: str, value: float | None) -> Damage:
    """Put a number into a tensor, or take the tensor away."""

    def damage(base: Path) -> None:
        tensors = load_file(base / "model.safetensors")
        if value is None:
            del tensors[name]
        else:
            tensors[name].reshape(-1)[-1] = value
        save_file(tensors, base / "model.safetensors", {"format": "mlx"})

    return damage


def renamed(old: str, new: str, kind: str | None = None) -> Damage:
    def damage(base: Path) -> None:
        tensors = load_file(base / "model.safetensors")
        tensor = tensors.pop(old)
        tensors[new] = tensor.astype(kind) if kind else tensor
        save_file(tensors, base / "model.safetensors", {"format": "mlx"})

    return damage


def _one_token_more(said: dict[str, Any]) -> None:
    token = {"id": 2048, "content": "<more>", "single_word": False, "lstrip": False, "rstrip": False}
    said["added_tokens"].append(token | {"normalized": False, "special": True})


def _cut_otherwise(said: dict[str, Any]) -> None:
    split = said["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = split["Regex"].replace("{1,3}", "{1,2}")


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}
LONG = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
PACKED = {"group_size": 32, "bits": 4}
Q = "model.layers.1.self_attn.q_proj"
NORM = "model.layers.0.input_layernorm.weight"

REFUSED: dict[str, tuple[Damage, str]] = {
    "dynamic": (config(rope_scaling=DYNAMIC), "this kind cannot be exported; got 'dynamic'"),
    "dynamic, as transformers 5 writes it": (
        config(rope_scaling=..., rope_theta=..., rope_parameters={**DYNAMIC, "rope_theta": 1e4}),
        "this kind cannot be exported; got 'dynamic'",
    ),
    "dynamic, twice": (config(rope_scaling=None, rope_parameters=DYNAMIC), "cannot be exported; got 'dynamic'"),
    "longrope": (config(rope_scaling=LONG), "cannot be exported; got 'longrope'"),
    "two kinds": (config(rope_scaling={"type": "linear", "rope_type": "yarn", "factor": 2.0}), "got 'linear, yarn'"),
    "a kind for each": (config(rope_scaling=None, rope_parameters={"full_attention": DYNAMIC}), "each kind of layer'"),
    "no factor": (config(rope_scaling={"type": "linear"}), "linear needs a factor above 0"),
    "no frequency between": (
        config(rope_scaling={**CONFIG["rope_scaling"], "high_freq_factor": 1}),
        "llama3 needs a high_freq_factor above its low_freq_factor; got 1",
    ),
    "a word": (config(rope_scaling="linear"), "cannot be exported"),
    "rope_traditional": (config(rope_traditional=True), "rope_traditional: llama.cpp computes this model in another"),
    "part of a head": (config(partial_rotary_factor=0.5), "partial_rotary_factor: llama.cpp computes this model"),
    "gelu": (config(hidden_act="gelu"), "hidden_act: llama.cpp computes this model in another way; got 'gelu'"),
    "a classifier": (config(architectures=["LlamaForSequenceClassification"]), "it makes no text; got 'LlamaForSeq"),
    "another's class": (config(architectures=["Qwen2ForCausalLM"]), "architectures and model_type do not belong"),
    "another's kind": (config(model_type="qwen2", architectures=...), "q_proj.bias is not what config.json says"),
    "no epsilon": (config(rms_norm_eps=...), "rms_norm_eps must be a number above 0"),
    "a width in words": (
        config(hidden_size="256"),
        "hidden_size must be a whole number above 0, 1048576 at most; got '256'",
    ),
    "a layer too few": (config(num_hidden_layers=1), r"model.layers.1.\S+ is not what config.json says, none"),
    "a layer too many": (config(num_hidden_layers=3), r"model.layers.2.\S+ is not what config.json says, .*'none'"),
    "another width": (config(intermediate_size=640), "is not what config.json says, 640 x 256; got '384 x 256'"),
    "another vocabulary": (config(vocab_size=2000), "embed_tokens.weight is not what config.json says, 2000 x 256"),
    "biases that are not there": (config(attention_bias=True), "q_proj.bias is not what config.json says, 256; got"),
    "a bias too many": (renamed(NORM, f"{Q}.bias"), "is not what config.json says"),
    "a norm too many": (renamed(NORM, "model.layers.0.self_attn.q_norm.weight"), "GGUF's llama has no such tensor"),
    "no output matrix": (weight("lm_head.weight", None), "lm_head.weight is not what config.json says, 2048 x 256"),
    "tied or not": (config(tie_word_embeddings=...), "config.json does not say tie_word_embeddings"),
    "mxfp4": (config(quantization={**PACKED, "mode": "mxfp4"}), "is not in affine quantization; got 'mxfp4'"),
    "nvfp4": (config(quantization={**PACKED, "mode": "nvfp4"}), "is not in affine quantization; got 'nvfp4'"),
    "mxfp8": (config(quantization={"group_size": 32, "bits": 8, "mode": "mxfp8"}), "affine quantization; got 'mxfp8'"),
    "mxfp4 in one layer": (
        config(quantization={**PACKED, Q: {**PACKED, "mode": "mxfp4"}}),
        f"{Q} is not in affine quantization; got 'mxfp4'",
    ),
    "other groups": (
        config(quantization={"group_size": 64, "bits": 4}),
        "does not hold groups of 64 weights of 4 bits",
    ),
    "other bits": (config(quantization={"group_size": 32, "bits": 8}), "does not hold groups of 32 weights of 8 bits"),
    "nothing said of 4 bits": (config(quantization=...), "is packed, and config.json does not say how"),
    "gptq": (
        config(quantization=..., quantization_config={"quant_method": "gptq", "bits": 4}),
        "the weights are not packed as MLX packs them; got 'gptq'",
    ),
    "no biases of groups": (weight(f"{Q}.biases", None), f"{Q} does not hold groups of 32 weights of 4 bits"),
    "whole numbers": (renamed(NORM, NORM, "int8"), "is packed in an unknown way; got 'I8'"),
    "a scale that is NaN": (weight(f"{Q}.scales", np.nan), f"{Q}.scales holds numbers that are infinite or NaN"),
    "an infinite bias of a group": (weight("lm_head.biases", -np.inf), "lm_head.biases holds numbers that are infin"),
    "a norm that is NaN": (weight(NORM, -np.nan), f"{NORM} holds numbers that are infinite or NaN"),
    "a greedy token": (
        tokenizer(lambda said: said["added_tokens"][-1].update(lstrip=True, special=False)),
        "llama.cpp would find this token in other places",
    ),
    "a control token inside a word": (
        tokenizer(lambda said: said["added_tokens"][-1].update(content="ol")),
        "a control token is a part of 'role'; got 'ol'",
    ),
    "a token too many": (tokenizer(_one_token_more), "'<more>' has no embedding among 2048; got 2048"),
    "text cut otherwise": (tokenizer(_cut_otherwise), "llama.cpp cannot cut text as this tokenizer does"),
    "a tokenizer that is none": (tokenizer(lambda said: said.pop("model")), "its tokenizer cannot be loaded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line_before_any_work(case: str, tiny_base: Base, tmp_path: Path) -> None:
    damage, line = REFUSED[case]
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    damage(tmp_path / "base")
    task = make_task(tmp_path / "task", "../base")
    for command in (
        lambda: check(task, schedule=task / "schedule.toml", probe=False),
        lambda: run_task(task, task / "schedule.toml", task / "run", until="train"),
    ):
        with pytest.raises(PilocalError, match=line) as caught:
            command()
        assert "\n" not in str(caught.value)
    assert [path.name for path in (task / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("fixture", ["tiny_base", "tiny_tied_base", "tiny_float_base", "tiny_biased_base", "starter"])
def test_what_can_be_exported_passes(fixture: str, request: pytest.FixtureRequest) -> None:
    base: Base = request.getfixturevalue(fixture)
    base.check()
    check_exportable(base)
    check_finite(base)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"type": "llama3", **dict.fromkeys(("factor", "high_freq_factor"), 8), "low_freq_factor": 1,
                          "original_max_position_embeddings": 64, "rope_type": "llama3"}},
        {"hidden_act": "silu", "rope_traditional": False, "partial_rotary_factor": 1.0},
        {"architectures": None},
        {"architectures": ["LLaMAForCausalLM"]},
        {"tie_word_embeddings": True},
        {"quantization_config": {"group_size": 32, "bits": 4}},
    ],
)  # fmt: skip
def test_what_only_looks_odd_passes(change: dict[str, Any], tiny_base: Base, tmp_path: Path) -> None:
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    config(**change)(tmp_path / "base")
    base = Base.at(tmp_path / "base")
    base.check()
    check_exportable(base)


def test_every_fault_is_told_at_once(tiny_base: Base, tmp_path: Path) -> None:
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    config(rope_scaling=DYNAMIC)(tmp_path / "base")
    weight(NORM, np.inf)(tmp_path / "base")
    task = make_task(tmp_path / "task", "../base")
    (task / "task.toml").write_text((task / "task.toml").read_text().replace('"tiny"', '"base"'))
    with pytest.raises(PilocalError) as caught:
        check(task, schedule=task / "schedule.toml", probe=False)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert [word for line in lines for word in ("bare base", "dynamic", "NaN") if word in line] == [
        "bare base",
        "dynamic",
        "NaN",
    ]


@pytest.mark.parametrize(("name", "line"), [("base", "the bare base answers to this name"), ("a\\nb", "is one line")])
def test_a_name_that_cannot_be_served_is_refused(name: str, line: str, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", "starter")
    (task / "task.toml").write_text((task / "task.toml").read_text().replace('"tiny"', f'"{name}"'))
    with pytest.raises(PilocalError, match=rf"task\.toml name: .*{line}"):
        check(task, schedule=task / "schedule.toml", probe=False)


def test_a_large_base_is_looked_through_once(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr("pilocal.export.finite.LARGE", 1000)
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    weight(NORM, 0.5)(tmp_path / "base")
    check_finite(Base.at(tmp_path / "base"))
    monkeypatch.setattr("pilocal.export.finite.stored_in", lambda path: pytest.fail("looked through again"))
    check_finite(Base.at(tmp_path / "base"))
    monkeypatch.undo()
    weight(NORM, np.inf)(tmp_path / "base")
    with pytest.raises(ModelError, match="infinite or NaN"):
        check_finite(Base.at(tmp_path / "base"))


def test_a_probe_notices_a_base_whose_loss_is_no_number(starter: Base, tmp_path: Path) -> None:
    """Every number is finite, and their products are not."""
    shutil.copytree(starter.folder, tmp_path / "base")
    names = [
        f"model.layers.{layer}.{norm}_layernorm.weight" for layer in (0, 1) for norm in ("input", "post_attention")
    ]
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    for name in names:
        tensors[name] = np.full(tensors[name].shape, 3e38, dtype=np.float32)
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "mlx"})
    task = make_task(tmp_path / "task", "../base")
    with pytest.raises(PilocalError, match="the base's own loss on the task's rows is not a number"):
        check(task, schedule=task / "schedule.toml")
    with pytest.raises(TrainingError, match="stage 0, step 1: the base's own loss on the task's rows is not a number"):
        run_task(task, task / "schedule.toml", task / "run", until="train")
