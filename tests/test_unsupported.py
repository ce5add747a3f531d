"""Models that pilocal cannot train or serve exactly: one line that says which part of them it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from pilocal.base.base import Base, find_base
from pilocal.errors import ModelError
from tests.gguf_models import write_model

LAYERS = {"layer_types": ["linear_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model_type": "gemma3", "vision_config": {}},
            "vision_config: a model that also reads images is not supported",
        ),
        (
            {"model_type": "mistral3", "vision_config": {}, "text_config": {"model_type": "ministral3"}},
            "vision_config: a model that also reads images is not supported; got 'mistral3'; take its text alone: a",
        ),
        (
            {"model_type": "gemma4", "text_config": {}, "vision_config": {}, "audio_config": {}},
            "vision_config: a model that also reads images is not supported; got 'gemma4'; take its text alone: a GGUF",
        ),
        (
            {"model_type": "qwen2_audio", "audio_config": {}},
            "audio_config: a model that also reads audio is not supported",
        ),
        ({"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts: a mixture of experts is not supported"),
        (
            {"model_type": "qwen3_5_text", **LAYERS},
            "linear_attention: layers that keep a state instead of keys and val",
        ),
        (
            {"model_type": "lfm2", "layer_types": ["conv"]},
            "conv: layers that keep a state instead of keys and values are",
        ),
        (
            {"model_type": "granitemoehybrid", "mamba_d_conv": 4},
            "mamba_d_conv: layers that keep a state instead of keys",
        ),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number above 0, 512 at most; got 1000000000"),
        ({"hidden_size": 2**31}, "hidden_size must be a whole number above 0, 1048576 at most; got 2147483648"),
        ({"model_type": "bert"}, "this architecture is not supported; got 'bert'; take a base of one of these types: "),
        (
            {"architectures": ["LlamaModel"]},
            "an embedding model: it makes no text; got 'LlamaModel'; take a base of the",
        ),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "it makes no text; got 'LlamaForSequenceClassification'",
        ),
        (
            {"architectures": ["Qwen3ForCausalLM"]},
            "architectures and model_type do not belong together; got 'Qwen3ForCau",
        ),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], line: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base.folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert refused(folder).startswith(f"{folder / 'config.json'}: {line}")


def test_a_folder_of_sentence_transformers_is_an_embedding_model(tiny_base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base.folder, tmp_path / "base")
    (folder / "modules.json").write_text("[]")
    assert refused(folder).startswith(f"{folder / 'modules.json'}: an embedding model: it makes no text; got 'LlamaFor")


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("pooling_type", 1, "an embedding model: it makes no text; got 'other'"),
        ("expert_count", 8, "a mixture of experts is not supported; got 'other'"),
        ("ssm.inner_size", 8, "layers that keep a state instead of keys and values are not supported; got 'other'"),
        ("context_length", 8, "this architecture is not supported; got 'other'; take a base of one of these: llama, "),
    ],
)
def test_a_gguf_file_says_it_by_its_metadata(key: str, value: int, line: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, architecture="other", metadata={key: value})
    assert refused(path).startswith(f"{path}: {line}")


@pytest.mark.parametrize(("tensor", "reads"), [("v.blk.0.attn_q.weight", "images"), ("a.conv1d.1.weight", "audio")])
def test_a_gguf_file_with_a_part_for_images_or_audio_is_refused_by_it(
    tensor: str, reads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ollama's own files of such models are."""
    path, add = tmp_path / "model.gguf", GGUFWriter.write_header_to_file

    def with_part(writer: GGUFWriter) -> None:
        writer.add_tensor(tensor, np.zeros((4, 4), np.float32))
        add(writer)

    monkeypatch.setattr(GGUFWriter, "write_header_to_file", with_part)
    write_model(path)
    assert refused(path).startswith(
        f"{path}: {tensor}: a model that also reads {reads} is not supported; take its text"
    )


WRITES = "{{ turn['role'] }}{% for part in turn['content'] %}{{ part['text'] }}{% endfor %}<|eot_id|>"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (
            f"{{% for turn in messages %}}{WRITES}{{% endfor %}}",
            "leaves out what messages say, as one",
        ),
        (
            "{% if not tools %}{{ raise_exception('it needs tools') }}{% endif %}",
            "a chat of user: it needs tools",
        ),
        ("{{ tools | length }}", "the base's chat template refuses a chat of user: "),
    ],
)
def test_a_chat_template_of_images_or_tools_is_refused(
    template: str, line: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_base.folder, tmp_path / "base")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=line):
        _ = Base.at(folder).layout


def refused(path: Path) -> str:
    """What is said of a base; one line."""
    with pytest.raises(ModelError) as caught:
        find_base(str(path), path.parent)
    assert "\n" not in str(caught.value)
    return str(caught.value)
